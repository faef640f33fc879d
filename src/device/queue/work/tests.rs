use std::sync::Arc;

use vhost_user_backend::VringT;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::device::cache_mode::CacheMode;
use crate::device::config::{Config, Idle};
use crate::device::gate::AlwaysOpen;
use crate::device::guest::memory::{Epoch, Memory, MemoryHandle};
use crate::device::io::disk::Disk;
use crate::device::shared_memory::inflight::Inflight;
use crate::device::shared_memory::log_switch::Logging;
use crate::device::size_change::SizeChanges;
use crate::device::stats::Stats;

const SIZE: u16 = 8;

/// A queue over an empty ring.
fn queue() -> (Queue<AlwaysOpen>, Vring) {
    let handle = MemoryHandle::new(Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
    let vring = Vring::new(handle.clone(), SIZE).unwrap();
    vring.set_queue_size(SIZE);
    vring.set_queue_info(0x1000, 0x2000, 0x3000).unwrap();
    vring.set_queue_ready(true);
    vring.set_enabled(true);
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let shared = Shared {
        disk: Disk::new(file, "").unwrap(),
        gate: Arc::new(AlwaysOpen),
        config: Config {
            num_queues: 1,
            queue_size: SIZE,
        },
        stats: Arc::new(Stats::new(1)),
        size_changes: SizeChanges::default(),
        space: Arc::default(),
        cache: Arc::new(CacheMode::new()),
    };
    let control = Arc::new(Control::new(Arc::new(EventFd::new(0).unwrap())));
    let connection = Connection {
        inflight: Arc::new(Inflight::new(1)),
        logging: Arc::new(Logging::new(vec![Arc::clone(&control)])),
        idle: Idle::default(),
    };
    let view = View::new(handle, Arc::new(Epoch::default()));
    let queue = Queue::new(0, Arc::new(shared), control, &connection, view).unwrap();
    (queue, vring)
}

#[test]
#[cfg_attr(
    debug_assertions,
    should_panic(expected = "neither answered nor given back")
)]
fn a_request_that_is_lost_is_found_when_the_ring_stops() {
    let (mut queue, vring) = queue();
    assert!(queue.slots.take().is_some());
    let ring = &mut vring.open();
    queue.put_back(ring).unwrap();
    assert_eq!(queue.slots.taken(), 0);
}
