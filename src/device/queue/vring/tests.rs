use super::*;
use crate::device::guest::memory::Memory;
use crate::device::queue::control::{CLOSED, Control};
use crate::device::queue::ring::{Ring, RingError};
use crate::device::shared_memory::dirty_log::DirtyLog;
use crate::device::shared_memory::log_switch::{LogView, Logging, QueueLog};
use rustix::event::{EventfdFlags, eventfd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 8;
const USED_EVENT: u64 = AVAIL + 4 + 2 * SIZE as u64;
const AVAIL_EVENT: u64 = USED + 4 + 8 * SIZE as u64;

fn event(flags: EventfdFlags) -> File {
    eventfd(0, flags).unwrap().into()
}

/// Reads the event, and says whether there was one.
fn signalled(event: &File) -> bool {
    rustix::io::read(event, &mut [0; 8]).is_ok()
}

/// A running ring, the guest's memory, and the event fd that interrupts it.
fn ring(event_idx: bool) -> (Vring, Memory, File) {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let vring = Vring::new(MemoryHandle::new(memory.clone()), SIZE).unwrap();
    let call = event(EventfdFlags::NONBLOCK);
    vring.set_queue_size(SIZE);
    vring.set_queue_info(DESC, AVAIL, USED).unwrap();
    vring.set_queue_event_idx(event_idx);
    vring.set_call(Some(call.try_clone().unwrap()));
    vring.set_queue_ready(true);
    vring.set_enabled(true);
    (vring, memory, call)
}

fn put(memory: &Memory, addr: u64, value: u16) {
    memory.write_obj(value, GuestAddress(addr)).unwrap();
}

fn get(memory: &Memory, addr: u64) -> u16 {
    memory.read_obj(GuestAddress(addr)).unwrap()
}

/// Publishes what was pushed, and interrupts if that is wanted.
fn publish(ring: &mut Ring<'_>, memory: &Memory) {
    if let Some(published) = ring.publish(memory, &QueueLog::default()).unwrap() {
        ring.signal(memory, &published).unwrap();
    }
}

#[test]
fn a_running_ring_keeps_its_indices() {
    let (vring, _, _) = ring(true);
    vring.set_queue_next_used(5);
    vring.set_queue_next_avail(5);
    assert_eq!(vring.get_ref().get_queue().next_used(), 0);
    assert_eq!(vring.queue_next_avail(), 0);
    vring.set_queue_ready(false);
    vring.set_queue_next_used(5);
    vring.set_queue_next_avail(6);
    assert_eq!(vring.get_ref().get_queue().next_used(), 5);
    assert_eq!(vring.queue_next_avail(), 6);
}

#[test]
fn used_elements_are_seen_and_signalled_once_per_batch() {
    let (vring, memory, call) = ring(true);
    put(&memory, USED_EVENT, 0);
    let mut ring = vring.open();
    for head in 0..3 {
        ring.push_used(&memory, &QueueLog::default(), head, 100)
            .unwrap();
    }
    assert_eq!(get(&memory, USED + 2), 0);
    assert!(!signalled(&call));
    publish(&mut ring, &memory);
    assert_eq!(get(&memory, USED + 2), 3);
    assert_eq!(get(&memory, USED + 4 + 8), 1);
    assert!(signalled(&call));
    publish(&mut ring, &memory);
    assert!(!signalled(&call));
}

#[test]
fn a_guest_is_interrupted_only_when_it_wants_to_be() {
    let (vring, memory, call) = ring(true);
    // It wants to hear when the fifth element (index 4) is used.
    put(&memory, USED_EVENT, 4);
    let mut signals = Vec::new();
    for head in 0..SIZE {
        let mut ring = vring.open();
        ring.push_used(&memory, &QueueLog::default(), head, 0)
            .unwrap();
        publish(&mut ring, &memory);
        signals.push(signalled(&call));
    }
    assert_eq!(signals.iter().position(|&signal| signal), Some(4));
    assert_eq!(signals.iter().filter(|&&signal| signal).count(), 1);

    let (vring, memory, call) = ring(false);
    for (flags, wanted) in [(0, true), (1, false)] {
        put(&memory, AVAIL, flags);
        let mut ring = vring.open();
        ring.push_used(&memory, &QueueLog::default(), 0, 0).unwrap();
        publish(&mut ring, &memory);
        assert_eq!(signalled(&call), wanted);
    }
}

#[test]
fn what_came_while_asking_for_a_kick_is_noticed() {
    let (vring, memory, _) = ring(true);
    let mut ring = vring.open();
    assert!(!ring.rearm(&memory, &QueueLog::default()).unwrap());
    put(&memory, AVAIL + 2, 2);
    assert!(ring.rearm(&memory, &QueueLog::default()).unwrap());
    ring.look(&memory).unwrap();
    ring.take(&memory).unwrap().unwrap();
    ring.take(&memory).unwrap().unwrap();
    assert_eq!(ring.take(&memory).unwrap(), None);
    assert!(!ring.rearm(&memory, &QueueLog::default()).unwrap());
    assert_eq!(get(&memory, AVAIL_EVENT), 2);
}

#[test]
fn indices_wrap_around() {
    let (vring, memory, call) = ring(true);
    vring.set_queue_ready(false);
    vring.set_queue_next_avail(u16::MAX);
    vring.set_queue_next_used(u16::MAX);
    vring.set_queue_ready(true);
    put(&memory, AVAIL + 2, 1);
    put(&memory, USED_EVENT, u16::MAX);
    put(&memory, AVAIL + 4 + 2 * 7, 3);
    put(&memory, AVAIL + 4, 4);
    let mut ring = vring.open();
    ring.look(&memory).unwrap();
    assert_eq!(ring.take(&memory).unwrap(), Some(3));
    assert_eq!(ring.take(&memory).unwrap(), Some(4));
    assert_eq!(ring.take(&memory).unwrap(), None);
    ring.push_used(&memory, &QueueLog::default(), 3, 0).unwrap();
    ring.push_used(&memory, &QueueLog::default(), 4, 0).unwrap();
    publish(&mut ring, &memory);
    assert_eq!(get(&memory, USED + 2), 1);
    assert!(signalled(&call));
}

#[test]
fn a_ring_that_is_too_full_or_not_in_memory_is_an_error() {
    let (vring, memory, _) = ring(true);
    put(&memory, AVAIL + 2, SIZE + 1);
    assert!(matches!(
        vring.open().look(&memory),
        Err(RingError::AvailIndex { index: 9, next: 0 })
    ));
    let elsewhere = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let mut ring = vring.open();
    assert!(matches!(ring.look(&elsewhere), Err(RingError::Memory(_))));
    assert!(matches!(
        ring.push_used(&elsewhere, &QueueLog::default(), 0, 0),
        Err(RingError::Memory(_))
    ));
}

#[test]
fn a_kick_that_cannot_be_read_does_not_end_the_thread() {
    let (vring, _, _) = ring(true);
    let kick = event(EventfdFlags::empty());
    vring.set_kick(Some(kick.try_clone().unwrap()));
    assert!(!vring.running(), "a new kick must be registered");
    vring.set_queue_ready(true);
    // Nothing to read: neither an error nor a wait.
    assert!(vring.read_kick().unwrap());
    rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
    assert!(vring.read_kick().unwrap());
    vring.set_enabled(false);
    assert!(!vring.read_kick().unwrap());
}

/// A log of eight pages in which the used ring begins at `base`, and its file.
fn log_of_used(memory: &Memory, base: u64) -> (QueueLog, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8).unwrap();
    let wake = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let control = Arc::new(Control::new(Arc::new(wake)));
    // There is no thread to adopt what is set.
    control.drained(CLOSED);
    let logging = Arc::new(Logging::new(vec![control]));
    let log = DirtyLog::new(file.try_clone().unwrap(), 0, 8).unwrap();
    logging.set_log(log, memory).unwrap();
    logging.set_used(0, Some(base));
    let mut view = LogView::new(logging, 0);
    assert!(view.refresh().is_some());
    (view.current().clone(), file)
}

/// The log's first byte, which is set to 0.
fn take_marks(file: &File) -> u8 {
    let mut marks = [0];
    file.read_exact_at(&mut marks, 0).unwrap();
    file.write_all_at(&[0], 0).unwrap();
    marks[0]
}

#[test]
fn every_write_to_the_used_ring_is_logged_in_its_own_place() {
    const PAGE: u64 = 4096;
    for event_idx in [true, false] {
        let (vring, memory, _) = ring(event_idx);
        // Flags and index in the first page, elements and event index in the second.
        let (log, marks) = log_of_used(&memory, PAGE - 4);
        let mut ring = vring.open();
        ring.push_used(&memory, &log, 0, 0).unwrap();
        assert_eq!(take_marks(&marks), 0b10);
        let _ = ring.publish(&memory, &log).unwrap();
        assert_eq!(take_marks(&marks), 0b01);
        let _ = ring.rearm(&memory, &log).unwrap();
        assert_eq!(take_marks(&marks), if event_idx { 0b10 } else { 0b01 });
        // The last element begins in one page and ends in the next.
        let before_last = 4 + 8 * (u64::from(SIZE) - 1);
        let (log, marks) = log_of_used(&memory, PAGE - before_last - 4);
        for _ in 1..SIZE - 1 {
            ring.push_used(&memory, &log, 0, 0).unwrap();
        }
        assert_eq!(take_marks(&marks), 0b01);
        ring.push_used(&memory, &log, 0, 0).unwrap();
        assert_eq!(take_marks(&marks), 0b11);
        let _ = ring.publish(&memory, &log).unwrap();
    }
}

#[test]
fn a_log_must_reach_to_the_end_of_the_used_ring() {
    let (vring, memory, _) = ring(true);
    let end = 64 * 4096;
    let len = 4 + 8 * u64::from(SIZE) + 2;
    let (log, _marks) = log_of_used(&memory, end - len);
    assert!(vring.open().check_log(&log).is_ok());
    for base in [end - len + 1, end, u64::MAX] {
        let (log, _marks) = log_of_used(&memory, base);
        assert!(matches!(vring.open().check_log(&log), Err(RingError::Log)));
    }
}

#[test]
fn a_queue_that_locks_its_ring_again_and_again_lets_the_handler_have_it() {
    for enabled in [false, true].into_iter().cycle().take(100) {
        let (vring, _, _) = ring(true);
        vring.set_enabled(!enabled);
        let open = vring.open();
        let handler = std::thread::spawn({
            let vring = vring.clone();
            move || vring.set_enabled(enabled)
        });
        while vring.beside.handlers.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        drop(open);
        vring.give_way();
        assert_eq!(vring.state.get_ref().is_enabled(), enabled);
        handler.join().unwrap();
    }
}

#[test]
fn a_kick_is_taken_once_and_never_waited_for() {
    let (vring, ..) = ring(true);
    assert!(!vring.take_kick(), "there is no event fd yet");
    // As a front-end may leave it, or make it again: reading would wait.
    let kick = event(EventfdFlags::empty());
    vring.set_kick(Some(kick.try_clone().unwrap()));
    rustix::io::ioctl_fionbio(&kick, false).unwrap();
    assert!(!vring.take_kick());
    rustix::io::write(&kick, &3u64.to_ne_bytes()).unwrap();
    assert!(vring.take_kick());
    assert!(!vring.take_kick());
    vring.set_kick(None);
    rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
    assert!(!vring.take_kick(), "it is no longer the ring's");
}

#[test]
fn a_kick_that_is_replaced_is_not_left_to_wake_the_event_loop_for_ever() {
    let (vring, ..) = ring(true);
    let kicks = [(); 2].map(|()| event(EventfdFlags::NONBLOCK));
    vring.set_kick(Some(kicks[0].try_clone().unwrap()));
    rustix::io::write(&kicks[0], &1u64.to_ne_bytes()).unwrap();
    vring.set_kick(Some(kicks[1].try_clone().unwrap()));
    assert!(!signalled(&kicks[0]));
}
