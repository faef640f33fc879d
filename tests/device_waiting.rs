//! How the device's queues wait for requests and for the disk: wherever they sleep, nothing
//! that comes is overlooked.

#![allow(clippy::unwrap_used)]

mod device_support;
#[allow(dead_code)]
#[path = "chaos/rng.rs"]
mod rng;

use std::time::{Duration, Instant};

use bypass_blk::device::Idle;
use device_support::front_end::{DATA, FrontEnd, Kicks};
use device_support::{Device, wait_for};
use rng::Rng;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_bindings::virtio_blk::*;
use vmm_sys_util::eventfd::EventFd;

/// A driver of one queue, with the queues' threads where this kernel lets them wait, and
/// where older ones do.
fn wherever_they_wait(test: impl Fn(&Device, FrontEnd)) {
    for idle in [Idle::Soonest, Idle::EventLoop] {
        let device = Device::with_idle(idle);
        let (stream, _serving) = device.serve();
        test(&device, FrontEnd::start(stream, 1));
    }
}

/// Makes a read of each of the first `count` sectors available.
fn submit_reads(guest: &mut FrontEnd, count: u64) {
    for sector in 0..count {
        guest.submit(0, VIRTIO_BLK_T_IN, sector, &[(DATA, 512)]);
    }
}

fn wait_answers(guest: &mut FrontEnd, count: u64) {
    for _ in 0..count {
        guest.wait_used(0);
    }
}

fn read(guest: &mut FrontEnd) {
    submit_reads(guest, 1);
    wait_answers(guest, 1);
}

fn wait_asleep() {
    wait_for("the queues to sleep", queues_sleep);
}

/// Keeps a processor for a while, as a guest that has something else to do.
fn busy(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn a_driver_that_kicks_only_when_asked_is_answered_whenever_it_comes() {
    wherever_they_wait(|_, mut guest| {
        guest.kicks = Kicks::WhenAsked;
        let mut rng = Rng::new(1, 0);
        for round in 0..1000 {
            let requests = 1 + round % 7;
            submit_reads(&mut guest, requests);
            wait_answers(&mut guest, requests);
            // In which the device may or may not fall asleep.
            busy(Duration::from_micros(rng.below(250)));
        }
    });
}

#[test]
fn a_ring_may_be_disabled_and_enabled_while_requests_complete() {
    wherever_they_wait(|device, mut guest| {
        for _ in 0..300 {
            submit_reads(&mut guest, 8);
            // The queue may be woken for a ring that is no longer to be looked at.
            for enable in [false, true, false] {
                guest.vhost.set_vring_enable(0, enable).unwrap();
            }
            wait_for("what was taken to be answered", || {
                device.server.stats().snapshot().total().in_flight == 0
            });
            guest.vhost.set_vring_enable(0, true).unwrap();
            wait_answers(&mut guest, 8);
        }
    });
}

#[test]
fn a_ring_that_is_enabled_needs_no_kick_for_what_it_has() {
    wherever_they_wait(|_, mut guest| {
        read(&mut guest);
        guest.kicks = Kicks::Never;
        for _ in 0..100 {
            guest.vhost.set_vring_enable(0, false).unwrap();
            submit_reads(&mut guest, 1);
            wait_asleep();
            guest.vhost.set_vring_enable(0, true).unwrap();
            wait_answers(&mut guest, 1);
        }
    });
}

#[test]
fn a_ring_that_is_started_again_needs_no_kick_for_what_it_has() {
    wherever_they_wait(|_, mut guest| {
        read(&mut guest);
        guest.kicks = Kicks::Never;
        for _ in 0..100 {
            let base = guest.vhost.get_vring_base(0).unwrap();
            submit_reads(&mut guest, 1);
            wait_asleep();
            guest.vhost.set_vring_base(0, base as u16).unwrap();
            guest.set_vring_addr(0);
            // It is enabled still: this starts it.
            guest.set_kick(0, EventFd::new(0).unwrap());
            wait_answers(&mut guest, 1);
        }
    });
}

#[test]
fn a_new_event_fd_for_kicks_is_heard_at_once() {
    wherever_they_wait(|_, mut guest| {
        for round in 0..150 {
            read(&mut guest);
            if round % 2 == 0 {
                wait_asleep();
            }
            guest.set_kick(0, EventFd::new(0).unwrap());
            if round % 3 == 0 {
                wait_asleep();
            }
        }
    });
}

#[test]
fn a_stopped_ring_leaves_no_kick_for_who_has_the_event_fd_next() {
    wherever_they_wait(|_, mut guest| {
        for _ in 0..100 {
            for _ in 0..3 {
                read(&mut guest);
            }
            let base = guest.vhost.get_vring_base(0).unwrap();
            assert!(!guest.has_kick(0));
            guest.start_queue(0, base as u16);
        }
    });
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
    wherever_they_wait(|_, mut guest| {
        for _ in 0..50 {
            submit_reads(&mut guest, 8);
            guest.remove_memory();
            wait_asleep();
            guest.add_memory();
            wait_answers(&mut guest, 8);
        }
    });
}
