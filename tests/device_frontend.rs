//! The device against libblkio's vhost-user front-end: another's idea of how a
//! driver behaves.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use blkio::{Blkio, BlkioStartOutcome, Blkioq, Completion, MemoryRegion, ReqFlags};
use bypass_blk::device::EndReason;
use bypass_blk::device::gate::Admission;
use device_support::{DISK_SIZE, Device, Serving, pattern, wait_for};

struct Guest {
    queues: Vec<Blkioq>,
    region: MemoryRegion,
    // Last: the queues and the region are of it.
    blkio: Blkio,
    serving: Serving,
}

impl Guest {
    fn start(device: &Device, queues: i32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = Arc::clone(&device.server);
        let serving = std::thread::spawn(move || server.serve(listener.accept().unwrap().0));
        let mut blkio = Blkio::new("virtio-blk-vhost-user").unwrap();
        blkio.set_str("path", path.to_str().unwrap()).unwrap();
        blkio.connect().unwrap();
        blkio.set_i32("num-queues", queues).unwrap();
        let BlkioStartOutcome { mut queues, .. } = blkio.start().unwrap();
        for queue in &mut queues {
            queue.set_completion_fd_enabled(true);
        }
        let region = blkio.alloc_mem_region(4 << 20).unwrap();
        blkio.map_mem_region(&region).unwrap();
        Self {
            queues,
            region,
            blkio,
            serving,
        }
    }

    fn memory(&mut self) -> &mut [u8] {
        // SAFETY: the region is mapped as long as `self.blkio` lives, and no
        // request is in flight while a test looks at it.
        unsafe { std::slice::from_raw_parts_mut(self.region.addr as *mut u8, self.region.len) }
    }

    fn at(&self, offset: usize) -> *mut u8 {
        (self.region.addr + offset) as *mut u8
    }

    /// The results of `count` requests by their user data.
    fn reap(&mut self, queue: usize, count: usize) -> Vec<(usize, i32)> {
        let mut done = Vec::new();
        while done.len() < count {
            let mut completions: [MaybeUninit<Completion>; 32] =
                [const { MaybeUninit::uninit() }; 32];
            let mut timeout = Duration::from_secs(20);
            let n = self.queues[queue]
                .do_io(&mut completions, 1, Some(&mut timeout), None)
                .unwrap();
            assert!(n > 0, "timed out waiting for completions");
            done.extend(completions.iter().take(n).map(|completion| {
                // SAFETY: the first n are initialized by do_io.
                let completion = unsafe { completion.assume_init_ref() };
                (completion.user_data, completion.ret)
            }));
        }
        done
    }

    fn one(&mut self, request: impl FnOnce(&mut Blkioq)) -> i32 {
        request(&mut self.queues[0]);
        self.reap(0, 1)[0].1
    }
}

const NONE: ReqFlags = ReqFlags::empty();

#[test]
fn everything_a_front_end_asks_for_is_done() {
    let device = Device::new();
    let mut guest = Guest::start(&device, 1);
    assert_eq!(guest.blkio.get_u64("capacity").unwrap(), DISK_SIZE);
    assert!(guest.blkio.get_bool("flush-needed").unwrap());
    let data = pattern(128 << 10, 9);
    guest.memory()[..data.len()].copy_from_slice(&data);
    let (from, to) = (guest.at(0), guest.at(1 << 20));
    assert_eq!(guest.one(|q| q.write(8192, from, 128 << 10, 0, NONE)), 0);
    assert_eq!(
        guest.one(|q| q.write(1 << 20, from, 4096, 0, ReqFlags::FUA)),
        0
    );
    assert_eq!(guest.one(|q| q.flush(0, NONE)), 0);
    assert_eq!(device.image.read(8192, data.len()), data);
    assert_eq!(guest.one(|q| q.read(8192, to, 128 << 10, 0, NONE)), 0);
    assert_eq!(guest.memory()[1 << 20..][..data.len()], data);
    assert_eq!(guest.one(|q| q.discard(8192, 4096, 0, NONE)), 0);
    assert_eq!(guest.one(|q| q.write_zeroes(12288, 4096, 0, NONE)), 0);
    assert_eq!(
        guest.one(|q| q.write_zeroes(16384, 4096, 0, ReqFlags::NO_UNMAP)),
        0
    );
    assert_eq!(device.image.read(8192, 12288), vec![0; 12288]);
    assert_eq!(device.image.read(20480, 4096), data[12288..16384]);
    // An address without alignment.
    let odd = guest.at(4097);
    assert_eq!(guest.one(|q| q.write(0, odd, 8192, 0, NONE)), 0);
    assert_eq!(device.image.read(0, 8192), data[4097..][..8192]);
    assert!(guest.one(|q| q.read(DISK_SIZE, to, 512, 0, NONE)) < 0);
    drop(guest.queues);
    drop(guest.blkio);
    assert_eq!(
        guest.serving.join().unwrap().unwrap(),
        EndReason::Disconnected
    );
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn many_requests_on_several_queues_all_come_to_their_place() {
    const DEPTH: usize = 32;
    let device = Device::new();
    let mut guest = Guest::start(&device, 2);
    let data = pattern(2 * DEPTH * 4096, 5);
    guest.memory()[..data.len()].copy_from_slice(&data);
    for round in 0..20 {
        for queue in 0..2 {
            for i in 0..DEPTH {
                // Each round the blocks change places.
                let block = queue * DEPTH + i;
                let place = (block * 37 + round) % (2 * DEPTH);
                let from = guest.at(block * 4096);
                guest.queues[queue].write((place * 4096) as u64, from, 4096, i, NONE);
            }
        }
        for queue in 0..2 {
            let mut done = guest.reap(queue, DEPTH);
            done.sort_unstable();
            let expected: Vec<_> = (0..DEPTH).map(|i| (i, 0)).collect();
            assert_eq!(done, expected);
        }
        let file = device.image.read(0, data.len());
        for block in 0..2 * DEPTH {
            let place = (block * 37 + round) % (2 * DEPTH);
            assert!(file[place * 4096..][..4096] == data[block * 4096..][..4096]);
        }
    }
    let snapshot = device.server.stats().snapshot();
    assert_eq!(snapshot.queues[0].writes, 20 * DEPTH as u64);
    assert_eq!(snapshot.queues[1].writes, 20 * DEPTH as u64);
    assert_eq!(device.gate.unbalanced(), []);
}

#[test]
fn a_closed_gate_holds_writes_and_a_refusing_one_fails_them() {
    let device = Device::new();
    let mut guest = Guest::start(&device, 1);
    let from = guest.at(0);
    device.gate.set(Admission::Wait);
    for i in 0..8 {
        guest.queues[0].write(i * 4096, from, 4096, 0, NONE);
    }
    let mut none: [MaybeUninit<Completion>; 1] = [const { MaybeUninit::uninit() }; 1];
    guest.queues[0].do_io(&mut none, 0, None, None).unwrap();
    wait_for("a write to be parked", || device.parked() == 1);
    device.gate.set(Admission::Go);
    assert!(guest.reap(0, 8).iter().all(|&(_, result)| result == 0));
    device.gate.set(Admission::Refuse);
    assert_eq!(guest.one(|q| q.write(0, from, 4096, 0, NONE)), -libc::EIO);
}

#[test]
fn the_next_front_end_is_served_after_an_abrupt_end() {
    let device = Device::new();
    for round in 0..5 {
        let mut guest = Guest::start(&device, 2);
        let from = guest.at(0);
        for i in 0..16 {
            guest.queues[round % 2].write(i * 4096, from, 4096, 0, NONE);
        }
        let mut none: [MaybeUninit<Completion>; 1] = [const { MaybeUninit::uninit() }; 1];
        guest.queues[round % 2]
            .do_io(&mut none, 0, None, None)
            .unwrap();
        // libblkio just closes its socket, requests in flight or not.
        drop(guest.queues);
        drop(guest.blkio);
        assert_eq!(
            guest.serving.join().unwrap().unwrap(),
            EndReason::Disconnected
        );
        assert_eq!(device.server.stats().snapshot().total().in_flight, 0);
    }
    assert_eq!(device.gate.unbalanced(), []);
}
