//! A local disk that is full, or that fails to make durable what was written.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bypass_blk::device::{Config, DeviceError, EndReason, Server};
use device_support::faulty_disk::{Faults, FaultyDisk};
use device_support::front_end::{DATA, FrontEnd, Inflight, ORDINARY};
use device_support::{TestGate, pattern, wait_for};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio_bindings::virtio_blk::*;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
/// Offset of `writeback` in the config space.
const WRITEBACK: u32 = 32;
/// Not answered yet.
const NONE: u8 = 0xff;

/// A device over a disk that fails.
struct Device {
    disk: FaultyDisk,
    gate: Arc<TestGate>,
    server: Arc<Server<TestGate>>,
}

type Serving = JoinHandle<Result<EndReason, DeviceError>>;

impl Device {
    fn new() -> Self {
        Self::with(|server| server)
    }

    fn with(adjust: impl FnOnce(Server<TestGate>) -> Server<TestGate>) -> Self {
        let disk = FaultyDisk::new(0xee);
        let gate = Arc::new(TestGate::default());
        let config = Config {
            num_queues: 2,
            queue_size: 64,
        };
        let server = Server::new(disk.disk(), gate.clone(), config).unwrap();
        Self {
            disk,
            gate,
            server: Arc::new(adjust(server)),
        }
    }

    fn serve(&self) -> (UnixStream, Serving) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = self.server.clone();
        let serving = std::thread::spawn(move || server.serve(theirs));
        (ours, serving)
    }

    fn faults(&self) -> &Faults {
        &self.disk.faults
    }

    fn held(&self) -> usize {
        self.server.space().full().map_or(0, |full| full.waiting)
    }

    fn wait_held(&self, count: usize) {
        wait_for("requests to wait for room", || self.held() == count);
    }
}

/// With two running queues and a record of requests in flight.
fn start(device: &Device) -> (FrontEnd, Inflight, Serving) {
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::connect(stream, 2, ORDINARY);
    let inflight = guest.get_inflight();
    guest.set_inflight(&inflight).unwrap();
    guest.share_memory();
    (0..2).for_each(|queue| guest.start_queue(queue, 0));
    (guest, inflight, serving)
}

/// One page to sector 8 times `page`.
fn write(guest: &mut FrontEnd, queue: usize, page: u64) -> u64 {
    let at = DATA + page * 4096;
    guest.write(at, &pattern(4096, page as u8));
    guest.submit(queue, VIRTIO_BLK_T_OUT, page * 8, &[(at, 4096)])
}

fn is_written(device: &Device, page: u64) -> bool {
    device.faults().read(page as usize * 4096, 4096) == pattern(4096, page as u8)
}

/// A discard, or a write-zeroes, of a page.
fn discard(guest: &mut FrontEnd, kind: u32) -> u64 {
    let range = [800u64.to_le_bytes(), 8u64.to_le_bytes()].concat();
    let page = guest.page();
    guest.write(page, &range);
    guest.submit(0, kind, 0, &[(page, 16)])
}

fn flush(guest: &mut FrontEnd, queue: usize) -> u8 {
    guest.request(queue, VIRTIO_BLK_T_FLUSH, 0, &[]) as u8
}

fn read(guest: &mut FrontEnd, queue: usize) -> u8 {
    guest.request(queue, VIRTIO_BLK_T_IN, 800, &[(DATA + (1 << 20), 4096)]) as u8
}

#[test]
fn after_one_flush_has_failed_every_flush_of_every_queue_does() {
    let device = Device::new();
    let (mut guest, ..) = start(&device);
    assert_eq!(flush(&mut guest, 0), OK);
    device.faults().fail_syncs(1);
    assert_eq!(flush(&mut guest, 0), IOERR);
    assert_eq!(flush(&mut guest, 0), IOERR);
    assert_eq!(flush(&mut guest, 1), IOERR);
    assert_eq!(read(&mut guest, 1), OK);
    let asked = device.faults().syncs.load(Ordering::SeqCst);
    assert_eq!(asked, 2, "what it says afterwards is not asked for");
}

#[test]
fn a_change_that_was_to_be_durable_and_is_not_counts_as_a_flush_that_failed() {
    for discards in [false, true] {
        let device = Device::new();
        let (mut guest, ..) = start(&device);
        device.faults().fill(libc::EIO);
        let status = write(&mut guest, 0, 1);
        guest.wait_used(0);
        assert_eq!(guest.byte(status), IOERR);
        assert_eq!(flush(&mut guest, 1), OK, "nothing was to be durable");
        let none = VhostUserConfigFlags::empty();
        guest.vhost.set_config(WRITEBACK, none, &[0]).unwrap();
        let status = match discards {
            // What it said of the write, a file system may say of the sync alone.
            false => write(&mut guest, 0, 1),
            true => {
                device.faults().make_room();
                device.faults().fail_syncs(1);
                discard(&mut guest, VIRTIO_BLK_T_DISCARD)
            }
        };
        guest.wait_used(0);
        assert_eq!(guest.byte(status), IOERR);
        device.faults().make_room();
        assert_eq!(flush(&mut guest, 1), IOERR);
        let status = write(&mut guest, 0, 2);
        guest.wait_used(0);
        assert_eq!(guest.byte(status), IOERR);
        assert!(device.gate.unbalanced().is_empty());
    }
}

#[test]
fn on_a_full_disk_changes_wait_and_are_done_when_there_is_room() {
    let device = Device::new();
    let (mut guest, ..) = start(&device);
    for errno in [libc::ENOSPC, libc::EDQUOT] {
        device.faults().fill(errno);
        let mut statuses: Vec<_> = (1..4).map(|page| write(&mut guest, 0, page)).collect();
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            statuses.push(discard(&mut guest, kind));
        }
        device.wait_held(5);
        assert_eq!((flush(&mut guest, 1), read(&mut guest, 1)), (OK, OK));
        assert_eq!((flush(&mut guest, 0), read(&mut guest, 0)), (OK, OK));
        assert!(
            device.gate.unbalanced().is_empty(),
            "what waits owes the gate nothing"
        );
        assert!(statuses.iter().all(|&status| guest.byte(status) == NONE));
        device.faults().make_room();
        for _ in &statuses {
            guest.wait_used(0);
        }
        assert!(statuses.iter().all(|&status| guest.byte(status) == OK));
        assert!((1..4).all(|page| is_written(&device, page)));
        assert_eq!(device.held(), 0);
        assert_eq!(device.faults().read(800 * 512, 4096), [0; 4096]);
    }
}

#[test]
fn a_full_disk_is_tried_a_few_times_a_second_at_most() {
    let device = Device::new();
    let (mut guest, ..) = start(&device);
    device.faults().fill(libc::ENOSPC);
    let begin = Instant::now();
    for page in 1..10 {
        write(&mut guest, 0, page);
    }
    device.wait_held(9);
    let tries = || device.faults().refused.load(Ordering::SeqCst);
    wait_for("it to be tried again", || tries() >= 12);
    let most = 9 + 4 + begin.elapsed().as_secs() as usize;
    assert!(tries() <= most, "{} tries, at most {most}", tries());
}

#[test]
fn what_waits_asks_the_gate_again_and_fails_when_that_is_shut_for_good() {
    let device = Device::new();
    let (mut guest, ..) = start(&device);
    device.faults().fill(libc::ENOSPC);
    let status = write(&mut guest, 0, 1);
    device.wait_held(1);
    device.gate.set(bypass_blk::device::gate::Admission::Wait);
    device.faults().make_room();
    let asked = device.gate.asked.load(Ordering::SeqCst);
    wait_for("the gate to be asked", || {
        device.gate.asked.load(Ordering::SeqCst) > asked
    });
    assert!(!is_written(&device, 1));
    device.gate.set(bypass_blk::device::gate::Admission::Refuse);
    guest.wait_used(0);
    assert_eq!(guest.byte(status), IOERR);
    assert!(!is_written(&device, 1));
    assert!(device.gate.unbalanced().is_empty());
}

#[test]
fn with_a_limit_what_waits_for_too_long_fails() {
    let limit = Duration::from_millis(300);
    let device = Device::with(|server| server.with_full_timeout(limit));
    let (mut guest, ..) = start(&device);
    device.faults().fill(libc::ENOSPC);
    let begin = Instant::now();
    let statuses: Vec<_> = (1..6).map(|page| write(&mut guest, 0, page)).collect();
    for _ in &statuses {
        guest.wait_used(0);
    }
    assert!(begin.elapsed() >= limit);
    assert!(statuses.iter().all(|&status| guest.byte(status) == IOERR));
    assert_eq!(device.held(), 0);
    assert!(device.gate.unbalanced().is_empty());
}

#[test]
fn a_ring_that_stops_on_a_full_disk_goes_on_with_what_waits_when_it_is_started_again() {
    let device = Device::new();
    let (mut guest, ..) = start(&device);
    device.faults().fill(libc::ENOSPC);
    let first = write(&mut guest, 0, 1);
    device.wait_held(1);
    assert_eq!(read(&mut guest, 0), OK);
    let last = write(&mut guest, 0, 2);
    device.wait_held(2);
    // The last one is put back; the first one, before the read, cannot be.
    let base = guest.vhost.get_vring_base(0).unwrap();
    assert_eq!(base, 2);
    assert_eq!(device.held(), 0);
    guest.start_queue(0, base as u16);
    guest.kick(0);
    device.wait_held(2);
    device.faults().make_room();
    guest.wait_used(0);
    guest.wait_used(0);
    assert_eq!((guest.byte(first), guest.byte(last)), (OK, OK));
    assert!(is_written(&device, 1) && is_written(&device, 2));
}

#[test]
fn a_new_driver_does_not_get_what_the_one_before_left_on_a_full_disk() {
    let device = Device::new();
    let (mut guest, _, serving) = start(&device);
    device.faults().fill(libc::ENOSPC);
    write(&mut guest, 0, 1);
    device.wait_held(1);
    assert_eq!(read(&mut guest, 0), OK);
    assert_eq!(guest.vhost.get_vring_base(0).unwrap(), 2);
    device.faults().make_room();
    guest.begin_anew(0);
    assert_eq!(read(&mut guest, 0), OK);
    drop(guest);
    serving.join().unwrap().unwrap();
    assert!(!is_written(&device, 1));
}

#[test]
fn a_new_daemon_does_what_waited_in_the_one_before() {
    let device = Device::new();
    let (mut guest, inflight, serving) = start(&device);
    device.faults().fill(libc::ENOSPC);
    let status = write(&mut guest, 0, 1);
    device.wait_held(1);
    assert_eq!(read(&mut guest, 0), OK);
    device.server.stop_handle().stop();
    serving.join().unwrap().unwrap();
    assert_eq!(device.held(), 0);
    let config = Config {
        num_queues: 2,
        queue_size: 64,
    };
    let next = Server::new(device.disk.disk(), device.gate.clone(), config).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn(move || next.serve(theirs));
    device.faults().make_room();
    guest.reconnect(ours, &inflight);
    guest.wait_used(0);
    assert_eq!(guest.byte(status), OK);
    assert!(is_written(&device, 1));
    drop(guest);
    serving.join().unwrap().unwrap();
}

#[test]
fn without_a_record_what_waits_fails_when_the_ring_stops() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 2);
    device.faults().fill(libc::ENOSPC);
    let status = write(&mut guest, 0, 1);
    device.wait_held(1);
    guest.vhost.get_vring_base(0).unwrap();
    guest.wait_used(0);
    assert_eq!(guest.byte(status), IOERR);
}
