//! The log of dirty pages against a front-end that migrates: whatever differs in
//! the guest's memory was logged, whenever the log began, moved or ended.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::os::unix::fs::FileExt;

use bypass_blk::device::DeviceError;
use device_support::front_end::log::Log;
use device_support::front_end::{DATA, FrontEnd, MEMORY_SIZE, ORDINARY};
use device_support::{Device, wait_for};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::EventFd;

const PAGE: u64 = 4096;
const PAGES: u64 = MEMORY_SIZE / PAGE;

fn changed_pages(before: &[u8], after: &[u8]) -> Vec<u64> {
    before
        .chunks(PAGE as usize)
        .zip(after.chunks(PAGE as usize))
        .enumerate()
        .filter(|(_, (before, after))| before != after)
        .map(|(page, _)| page as u64)
        .collect()
}

fn assert_logged(log: &Log, pages: &[u64]) {
    for &page in pages {
        assert!(log.has(page), "page {page} changed, but is not logged");
    }
}

/// A driver with and one without event indices, which has other words written.
fn drivers() -> [u64; 2] {
    [ORDINARY, ORDINARY & !(1 << VIRTIO_RING_F_EVENT_IDX)]
}

fn start(stream: std::os::unix::net::UnixStream, features: u64) -> FrontEnd {
    let mut guest = FrontEnd::connect(stream, 2, features);
    guest.share_memory();
    for queue in 0..2 {
        guest.start_queue(queue, 0);
    }
    guest
}

#[test]
fn every_kind_of_write_to_the_guests_memory_is_logged() {
    for features in drivers() {
        let device = Device::new();
        let (stream, _serving) = device.serve();
        let mut guest = start(stream, features);
        let requests: [Request<'_>; 6] = [
            (VIRTIO_BLK_T_IN, 0, &[(DATA, 8192)]),
            // By bounce buffers, over page borders.
            (
                VIRTIO_BLK_T_IN,
                8,
                &[(DATA + 0x10ffd, 7), (DATA + 0x20ffc, 4089)],
            ),
            (VIRTIO_BLK_T_GET_ID, 0, &[(DATA + 0x30ff6, 20)]),
            (VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]),
            (VIRTIO_BLK_T_FLUSH, 0, &[]),
            (VIRTIO_BLK_T_IN, u64::MAX, &[(DATA + 0x40000, 512)]),
        ];
        for (kind, sector, data) in requests {
            let log = Log::new(PAGES);
            guest.set_log(&log).unwrap();
            guest.set_logging(true);
            // Only the device writes to the guest's memory after this.
            let before = guest.contents();
            let status = guest.submit(0, kind, sector, data);
            let mine = guest.contents();
            guest.wait_used(0);
            guest.vhost.get_vring_base(0).unwrap();
            let pages = changed_pages(&before, &guest.contents());
            let of_driver = changed_pages(&before, &mine);
            let of_device: Vec<u64> = pages
                .iter()
                .copied()
                .filter(|page| !of_driver.contains(page) || *page == status / PAGE)
                .collect();
            assert!(log.has(status / PAGE), "the status of request {kind}");
            assert!(log.has(guest.used_ring(0) / PAGE), "the used ring");
            assert_logged(&log, &of_device);
            if kind == VIRTIO_BLK_T_GET_ID {
                assert!(log.has((DATA + 0x30ff6) / PAGE) && log.has((DATA + 0x31000) / PAGE));
            }
            assert!(!log.has((DATA + 0x50000) / PAGE), "a page of nobody");
            guest.set_logging(false);
            let base = guest.used_index(0);
            guest.start_queue(0, base);
        }
    }
}

/// Type, sector and data.
type Request<'a> = (u32, u64, &'a [(u64, u32)]);

/// The target of a migration: what it has of the guest's memory.
struct Target {
    memory: Vec<u8>,
}

impl Target {
    /// Copies what was logged since the last time, as the source's QEMU does: first
    /// the bits are taken, then the pages are read.
    fn sync(&mut self, guest: &FrontEnd, log: &Mapped) {
        for page in log.take() {
            let at = page * PAGE;
            let bytes = guest.read(at, PAGE as usize);
            self.memory[at as usize..(at + PAGE) as usize].copy_from_slice(&bytes);
        }
    }
}

/// The log as the front-end has it mapped.
struct Mapped(vm_memory::MmapRegion);

impl Mapped {
    fn new(log: &Log) -> Self {
        let file = vm_memory::FileOffset::new(log.file.try_clone().unwrap(), 0);
        Self(vm_memory::MmapRegion::from_file(file, log.len as usize).unwrap())
    }

    /// The pages that are marked, whose marks are taken away.
    fn take(&self) -> Vec<u64> {
        use std::sync::atomic::{AtomicU64, Ordering};
        use vm_memory::VolatileMemory;
        let mut pages = Vec::new();
        for word in 0..self.0.size() / 8 {
            let bits = self.0.get_atomic_ref::<AtomicU64>(word * 8).unwrap();
            let bits = bits.swap(0, Ordering::SeqCst);
            pages.extend(
                (0..64)
                    .filter(|bit| bits & 1 << bit != 0)
                    .map(|bit| word as u64 * 64 + bit),
            );
        }
        pages
    }
}

/// The disk's contents as a read of it would have them, by sector.
fn fill_disk(device: &Device) {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(device.image.path())
        .unwrap();
    let contents: Vec<u8> = (0..4 << 20)
        .map(|i: usize| (i / 512) as u8 ^ (i / 131_072) as u8)
        .collect();
    file.write_all_at(&contents, 0).unwrap();
}

/// Reads in flight, of all sizes and alignments, into memory of their own.
fn submit_reads(guest: &mut FrontEnd, round: u64) -> u64 {
    let shapes = [(0, 256 << 10), (0, 4096), (5, 40_960), (0x801, 512)];
    let mut count = 0;
    for queue in 0..2u64 {
        for (slot, (misaligned, len)) in shapes.into_iter().enumerate() {
            let at = DATA + (queue * 4 + slot as u64) * (300 << 10) + misaligned;
            let sector = (round * 37 + slot as u64 * 512) % 4096;
            guest.submit(queue as usize, VIRTIO_BLK_T_IN, sector, &[(at, len)]);
            count += 1;
        }
    }
    count
}

fn wait_for_all(guest: &mut FrontEnd) {
    for queue in 0..2 {
        for _ in 0..4 {
            guest.wait_used(queue);
        }
    }
}

#[test]
fn a_log_that_begins_while_reads_are_in_flight_misses_none_of_their_bytes() {
    let device = Device::new();
    fill_disk(&device);
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 2);
    for round in 0..60 {
        let log = Log::new(PAGES);
        let marks = Mapped::new(&log);
        submit_reads(&mut guest, round);
        guest.set_log(&log).unwrap();
        guest.set_logging(true);
        // The first pass of a migration: all of the memory.
        let mut target = Target {
            memory: guest.contents(),
        };
        target.sync(&guest, &marks);
        wait_for_all(&mut guest);
        target.sync(&guest, &marks);
        submit_reads(&mut guest, round + 1000);
        target.sync(&guest, &marks);
        // The guest's own pages: descriptors, available rings, headers.
        wait_for_all(&mut guest);
        for queue in 0..2 {
            guest.vhost.get_vring_base(queue).unwrap();
        }
        target.sync(&guest, &marks);
        let used_and_data = changed_pages(&target.memory, &guest.contents());
        let missed: Vec<u64> = used_and_data
            .into_iter()
            .filter(|page| {
                let at = page * PAGE;
                at >= DATA || (0..2).any(|queue| guest.used_ring(queue) == at)
            })
            .collect();
        assert_eq!(missed, [0u64; 0], "round {round}");
        guest.set_logging(false);
        for queue in 0..2 {
            let base = guest.used_index(queue);
            guest.start_queue(queue, base);
        }
    }
}

#[test]
fn a_log_that_is_replaced_or_ended_is_not_touched_once_that_is_answered() {
    let device = Device::new();
    fill_disk(&device);
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 2);
    let mut log = Log::new(PAGES);
    guest.set_log(&log).unwrap();
    guest.set_logging(true);
    for round in 0..40 {
        let before = guest.contents();
        submit_reads(&mut guest, round);
        let next = Log::new(PAGES);
        guest.set_log(&next).unwrap();
        let of_old = log.bytes();
        wait_for_all(&mut guest);
        assert_eq!(log.bytes(), of_old, "round {round}");
        // What the one does not have, the other has.
        for page in changed_pages(&before, &guest.contents()) {
            if page * PAGE >= DATA {
                assert!(
                    log.has(page) || next.has(page),
                    "page {page}, round {round}"
                );
            }
        }
        log = next;
    }
    submit_reads(&mut guest, 99);
    guest.set_logging(false);
    let of_old = log.bytes();
    wait_for_all(&mut guest);
    assert_eq!(log.bytes(), of_old);
}

#[test]
fn the_used_ring_is_logged_where_the_front_end_says() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    // Behind all of the guest's memory.
    let log = Log::new(PAGES + 64);
    guest.set_log(&log).unwrap();
    guest.log_used_at = Some(MEMORY_SIZE);
    guest.set_vring_addr(0);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), 0);
    guest.vhost.get_vring_base(0).unwrap();
    let used = guest.used_ring(0) / PAGE;
    assert!(log.has(PAGES + used) && !log.has(used));
    assert!(!log.has(DATA / PAGE), "only the used ring was asked for");
}

#[test]
fn a_used_ring_that_cannot_be_logged_is_not_written() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 2);
    let log = Log::new(PAGES);
    guest.set_log(&log).unwrap();
    guest.log_used_at = Some(MEMORY_SIZE);
    guest.set_vring_addr(0);
    guest.submit(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]);
    assert_eq!(guest.request(1, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), 0);
    guest.vhost.get_vring_base(0).unwrap();
    assert_eq!(guest.used_index(0), 0);
    guest.log_used_at = None;
    guest.start_queue(0, 0);
    guest.wait_used(0);
}

#[test]
fn a_log_without_room_for_the_guest_is_refused() {
    let device = Device::new();
    for pages in [8, PAGES - 8] {
        let (stream, serving) = device.serve();
        let guest = FrontEnd::start(stream, 1);
        assert!(guest.set_log(&Log::new(pages)).is_err());
        let error = serving.join().unwrap().unwrap_err();
        assert!(matches!(error, DeviceError::Log(_)), "{error:?}");
    }
    // A length that its file does not have.
    let (stream, serving) = device.serve();
    let guest = FrontEnd::start(stream, 1);
    let mut log = Log::new(PAGES);
    log.len *= 2;
    assert!(guest.set_log(&log).is_err());
    let error = serving.join().unwrap().unwrap_err();
    assert!(matches!(error, DeviceError::Log(_)), "{error:?}");
}

#[test]
fn a_listener_hears_of_what_was_logged() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    guest
        .vhost
        .set_log_fd(std::os::fd::AsRawFd::as_raw_fd(&event))
        .unwrap();
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), 0);
    guest.set_log(&Log::new(PAGES)).unwrap();
    assert!(event.read().is_err(), "nothing was logged");
    guest.set_logging(true);
    assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), 0);
    wait_for("the listener to be told", || event.read().is_ok());
}

#[test]
fn memory_that_the_log_does_not_cover_cannot_be_added_during_a_migration() {
    let device = Device::new();
    let (stream, serving) = device.serve();
    let mut guest = FrontEnd::connect(stream, 1, ORDINARY);
    guest.set_log(&Log::new(PAGES - 8)).unwrap();
    guest.share_memory();
    // That was before it began: the log was forgotten. Now it is in use.
    guest.remove_memory();
    guest.set_log(&Log::new(PAGES - 8)).unwrap();
    guest.set_logging_of_data(true);
    assert!(guest.vhost.add_mem_region(&guest.region()).is_err());
    let error = serving.join().unwrap().unwrap_err();
    assert!(matches!(error, DeviceError::Protocol(_)), "{error:?}");
}
