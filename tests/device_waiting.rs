//! How the device's queues wait for requests and for the disk: wherever they sleep, nothing
//! that comes is overlooked.

#![allow(clippy::unwrap_used)]

mod device_support;
#[allow(dead_code)]
#[path = "chaos/rng.rs"]
mod rng;

use std::time::{Duration, Instant};

use device_support::front_end::{DATA, FrontEnd};
use device_support::{Device, wait_for};
use rng::Rng;
use vhost::vhost_user::VhostUserFrontend;
use virtio_bindings::virtio_blk::*;

/// Keeps a processor for a while, as a guest that has something else to do.
fn busy(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn a_driver_that_kicks_only_when_asked_is_answered_whenever_it_comes() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    guest.thrifty = true;
    let mut rng = Rng::new(1, 0);
    for round in 0..1000 {
        let requests = 1 + round % 7;
        for sector in 0..requests {
            guest.submit(0, VIRTIO_BLK_T_IN, sector, &[(DATA, 512)]);
        }
        for _ in 0..requests {
            guest.wait_used(0);
        }
        // In which the device may or may not fall asleep.
        busy(Duration::from_micros(rng.below(250)));
    }
}

#[test]
fn a_ring_may_be_disabled_and_enabled_while_requests_complete() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    for _ in 0..300 {
        for sector in 0..8 {
            guest.submit(0, VIRTIO_BLK_T_IN, sector, &[(DATA, 512)]);
        }
        // The queue may be woken for a ring that is no longer to be looked at.
        for enable in [false, true, false] {
            guest.vhost.set_vring_enable(0, enable).unwrap();
        }
        wait_for("what was taken to be answered", || {
            device.server.stats().snapshot().total().in_flight == 0
        });
        guest.vhost.set_vring_enable(0, true).unwrap();
        for _ in 0..8 {
            guest.wait_used(0);
        }
    }
}

/// Whether all queues' threads of this process sleep, proc(5).
fn queues_sleep() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let mut stats = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok())
        .filter(|stat| stat.contains("(vring_worker)"));
    stats.all(|stat| stat.contains("(vring_worker) S"))
}

#[test]
fn a_ring_without_its_memory_is_waited_for_asleep_whatever_the_disk_has_done() {
    let device = Device::new();
    let (stream, _serving) = device.serve();
    let mut guest = FrontEnd::start(stream, 1);
    for _ in 0..50 {
        for sector in 0..8 {
            guest.submit(0, VIRTIO_BLK_T_IN, sector, &[(DATA, 512)]);
        }
        guest.remove_memory();
        wait_for("the queues to sleep", queues_sleep);
        guest.add_memory();
        for _ in 0..8 {
            guest.wait_used(0);
        }
    }
}
