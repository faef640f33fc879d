//! What a request is told at the gate, and who is woken when that changes.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::image::dirty_map::{ExtentSize, Identity, Peer, Peers};

/// A clean map of two extents and one peer.
fn map() -> (tempfile::TempDir, Arc<DirtyMap>) {
    let directory = tempfile::tempdir().unwrap();
    let identity = Identity {
        gfid: uuid::Uuid::from_u128(1),
        size: 8192,
        extent_size: ExtentSize::new(4096).unwrap(),
        local: "a:/b".into(),
        peers: vec!["b:/b".into()],
    };
    let (map, _) = DirtyMap::open(&directory.path().join("map"), &identity).unwrap();
    map.declare_clean(Peers::first(1));
    (directory, Arc::new(map))
}

fn the_peer() -> Peer {
    Peer::new(0).unwrap()
}

#[test]
fn an_admitted_write_is_in_the_map_and_one_that_waits_is_not() {
    let (_directory, map) = map();
    let gate = WriteGate::new(Some(map.clone()), || {});
    let seen = || (map.dirty_extents(the_peer()), map.extents_in_flight());
    assert_eq!(gate.begin_write(0, 512), Admission::Wait);
    assert_eq!(seen(), (0, 0));
    gate.set(GateState::Open);
    assert_eq!(gate.begin_write(4096, 512), Admission::Go);
    assert_eq!(seen(), (1, 1));
    gate.end_write(4096, 512);
    assert_eq!(seen(), (1, 0));
    let behind_the_end = gate.begin_write(8192, 1);
    assert_eq!(behind_the_end, Admission::Refuse);
}

#[test]
fn a_full_extent_makes_a_write_wait_until_one_has_ended() {
    let (_directory, map) = map();
    let gate = WriteGate::new(Some(map), || {});
    gate.set(GateState::Open);
    let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    gate.subscribe(wake.clone());
    (0..255).for_each(|_| assert_eq!(gate.begin_write(0, 512), Admission::Go));
    assert_eq!(gate.begin_write(0, 512), Admission::Wait);
    assert!(wake.read().is_err(), "woken too early");
    gate.end_write(0, 512);
    assert_eq!(wake.read().unwrap(), 1);
    assert_eq!(gate.begin_write(0, 512), Admission::Go);
}

#[test]
fn after_a_flush_that_failed_none_is_answered_well_not_even_one_that_was_under_way() {
    let told = Arc::new(AtomicUsize::new(0));
    let telling = told.clone();
    let gate = WriteGate::new(None, || {}).over(Arc::default(), move || {
        telling.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(gate.begin_sync(), Admission::Go);
    assert!(gate.end_sync());
    assert_eq!([gate.begin_sync(), gate.begin_sync()], [Admission::Go; 2]);
    gate.sync_failed(libc::EIO);
    gate.sync_failed(libc::EIO);
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert_eq!([gate.end_sync(), gate.end_sync()], [false; 2]);
    assert_eq!(gate.begin_sync(), Admission::Refuse);
}

#[test]
fn whoever_closes_the_gate_and_then_finds_the_map_clean_is_followed_by_no_write() {
    for _ in 0..300 {
        let (_directory, map) = map();
        let gate = WriteGate::new(Some(map.clone()), || {});
        gate.set(GateState::Open);
        let (admitted, found_clean) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| gate.begin_write(0, 512) == Admission::Go);
            gate.set(GateState::Hold);
            let clean = map.next_dirty(the_peer(), 0).is_none();
            (writer.join().unwrap(), clean)
        });
        assert!(!(admitted && found_clean));
    }
}

#[test]
fn a_held_gate_asks_for_marks_once_and_again_after_it_was_held_anew() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let (_directory, map) = map();
    let gate = WriteGate::new(Some(map), move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(gate.begin_write(0, 512), Admission::Wait);
    assert_eq!(gate.begin_write(0, 512), Admission::Wait);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    gate.set(GateState::FailWrites);
    assert_eq!(gate.begin_write(0, 512), Admission::Refuse);
    gate.set(GateState::Hold);
    assert_eq!(gate.begin_write(0, 512), Admission::Wait);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[test]
fn reads_go_on_in_every_state_but_the_stopped_one() {
    let (_directory, map) = map();
    let gate = WriteGate::new(Some(map), || {});
    for state in [GateState::Hold, GateState::Open, GateState::FailWrites] {
        gate.set(state);
        assert_eq!(gate.admit_read(), Admission::Go);
    }
    gate.set(GateState::FailAll);
    assert_eq!(gate.admit_read(), Admission::Refuse);
    assert_eq!(gate.begin_write(0, 1), Admission::Refuse);
}

#[test]
fn a_change_wakes_every_subscribed_queue_and_forgets_those_that_are_gone() {
    let gate = WriteGate::new(None, || {});
    let (kept, gone) = (
        Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
        Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
    );
    gate.subscribe(gone.clone());
    drop(gone);
    gate.subscribe(kept.clone());
    gate.set(GateState::Open);
    assert_eq!(kept.read().unwrap(), 1);
    assert_eq!(gate.wakers.lock().unwrap().len(), 1);
}
