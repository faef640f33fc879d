//! Flushes of a disk over several files: each file that was changed is synced, no other one is, and no
//! flush is answered for what somebody else has not finished.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use bypass_blk::device::{Config, DeviceError, Disk, EndReason, Server};
use device_support::faulty_disk::FaultyDisk;
use device_support::front_end::{DATA, FrontEnd};
use device_support::{TestGate, pattern, wait_for};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio_bindings::virtio_blk::*;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IO_ERROR: u8 = VIRTIO_BLK_S_IOERR as u8;
/// Not answered yet.
const NONE: u8 = 0xff;
/// Offset of `writeback` in the config space.
const WRITEBACK: u32 = 32;
/// Bytes of each file.
const PIECE: u64 = 64 << 10;

struct Device {
    files: FaultyDisk,
    gate: Arc<TestGate>,
    guest: FrontEnd,
    _serving: JoinHandle<Result<EndReason, DeviceError>>,
}

impl Device {
    /// Over so many files, of which nothing has to be synced.
    fn new(files: usize) -> Self {
        Self::with(files, Disk::all_synced)
    }

    fn with(files: usize, adjust: impl FnOnce(Disk) -> Disk) -> Self {
        let files = FaultyDisk::of_files(files, PIECE, 0xee);
        let gate = Arc::new(TestGate::default());
        let config = Config {
            num_queues: 2,
            queue_size: 64,
        };
        let server = Server::new(adjust(files.whole_disk()), gate.clone(), config).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn(move || server.serve(theirs));
        Self {
            files,
            gate,
            guest: FrontEnd::start(ours, 2),
            _serving: serving,
        }
    }

    /// How often each file was synced.
    fn syncs(&self) -> Vec<usize> {
        let syncs =
            |faults: &Arc<device_support::faulty_disk::Faults>| faults.syncs.load(Ordering::SeqCst);
        self.files.all.iter().map(syncs).collect()
    }

    /// Writes to the beginning of a file.
    fn write(&mut self, queue: usize, file: u64) {
        self.write_at(queue, file * PIECE, 4096);
    }

    fn write_at(&mut self, queue: usize, at: u64, len: u32) {
        self.guest.write(DATA, &pattern(len as usize, 7));
        let written = self
            .guest
            .request(queue, VIRTIO_BLK_T_OUT, at / 512, &[(DATA, len)]);
        assert_eq!(written as u8, OK);
    }

    fn flush(&mut self, queue: usize) -> u8 {
        self.guest.request(queue, VIRTIO_BLK_T_FLUSH, 0, &[]) as u8
    }

    /// A flush that is not waited for: where its status will be.
    fn begin_flush(&mut self, queue: usize) -> u64 {
        self.guest.submit(queue, VIRTIO_BLK_T_FLUSH, 0, &[])
    }
}

#[test]
fn a_flush_syncs_the_files_that_were_changed_since_and_no_others() {
    let mut device = Device::new(3);
    let expect = |device: &mut Device, syncs: [usize; 3]| {
        assert_eq!(device.flush(1), OK);
        assert_eq!(device.syncs(), syncs);
    };
    expect(&mut device, [0, 0, 0]);
    device.write(0, 2);
    expect(&mut device, [0, 0, 1]);
    expect(&mut device, [0, 0, 1]);
    // Over a border.
    device.write_at(1, PIECE - 4096, 8192);
    expect(&mut device, [1, 1, 1]);
    let range = [(PIECE / 512).to_le_bytes(), 8u64.to_le_bytes()].concat();
    let page = device.guest.page();
    device.guest.write(page, &range);
    let discarded = device
        .guest
        .request(0, VIRTIO_BLK_T_DISCARD, 0, &[(page, 16)]);
    assert_eq!(discarded as u8, OK);
    expect(&mut device, [1, 2, 1]);
    let none = VhostUserConfigFlags::empty();
    device
        .guest
        .vhost
        .set_config(WRITEBACK, none, &[0])
        .unwrap();
    device.write(0, 0);
    let durable = device.files.all[0].durable.load(Ordering::SeqCst);
    assert_eq!(durable, 1, "written through");
    expect(&mut device, [1, 2, 1]);
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn of_files_of_which_nothing_is_known_each_is_synced_once() {
    let mut device = Device::with(3, |disk| disk);
    assert_eq!((device.flush(0), device.flush(1)), (OK, OK));
    assert_eq!(device.syncs(), [1, 1, 1]);
}

#[test]
fn when_one_file_cannot_be_synced_the_flush_fails_and_all_after_it() {
    let mut device = Device::new(3);
    (0..3).for_each(|file| device.write(0, file));
    device.files.all[1].fail_syncs(1);
    assert_eq!(device.flush(0), IO_ERROR);
    assert_eq!(device.syncs(), [1, 1, 1]);
    assert_eq!((device.flush(0), device.flush(1)), (IO_ERROR, IO_ERROR));
}

#[test]
fn files_are_synced_at_the_same_time_and_the_flush_waits_for_the_last() {
    let mut device = Device::new(3);
    (0..3).for_each(|file| device.write(0, file));
    device.files.all.iter().for_each(|file| file.keep_syncs());
    let flush = device.begin_flush(0);
    wait_for("all to be asked", || device.syncs() == [1, 1, 1]);
    for file in [2, 0, 1] {
        let read = device.guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]);
        assert_eq!(read as u8, OK);
        assert_eq!(device.guest.byte(flush), NONE);
        device.files.all[file].let_syncs_go();
    }
    device.guest.wait_used(0);
    assert_eq!(device.guest.byte(flush), OK);
}

#[test]
fn a_sync_that_another_queue_has_under_way_is_not_relied_on() {
    let mut device = Device::new(2);
    device.write(0, 0);
    device.files.all[0].keep_syncs();
    let first = device.begin_flush(0);
    wait_for("the first flush to sync", || device.syncs() == [1, 0]);
    let second = device.begin_flush(1);
    // That has been taken when a later request is answered.
    device.write(1, 1);
    let statuses = [first, second].map(|at| device.guest.byte(at));
    assert_eq!(statuses, [NONE, NONE]);
    device.files.all[0].let_syncs_go();
    device.guest.wait_used(0);
    device.guest.wait_used(1);
    let statuses = [first, second].map(|at| device.guest.byte(at));
    assert_eq!(statuses, [OK, OK]);
    assert_eq!(device.syncs()[0], 2);
}

#[test]
fn more_files_than_can_be_synced_at_once_are_synced_all_the_same() {
    // More than a queue's lanes, twice.
    let mut device = Device::new(80);
    (0..80).for_each(|file| device.write(0, file));
    device.files.all.iter().for_each(|file| file.keep_syncs());
    let flushes = [(); 3].map(|()| device.begin_flush(0));
    let asked = |device: &Device| device.syncs().iter().sum::<usize>();
    // How many at once is also the kernel's choice: four for each processor.
    wait_for("some to be asked", || asked(&device) > 1);
    device.files.all.iter().for_each(|file| file.let_syncs_go());
    for _ in flushes {
        device.guest.wait_used(0);
    }
    assert_eq!(flushes.map(|flush| device.guest.byte(flush)), [OK; 3]);
    assert!(device.syncs().iter().all(|&syncs| syncs >= 1));
    assert_eq!(device.flush(0), OK);
}
