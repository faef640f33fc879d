//! The proof of the stream's rings: every interleaving, and every reordering that the memory model
//! allows, of a queue that records and a sender that reads. Compiles the very sources of
//! `src/image/stream` with loom's atomics.
//!
//! Two claims. What a sender has read and found whole is what was recorded under that number, also
//! where its slot is used again because the peer was left behind. And of each write either the
//! dirty map, looked at after the peer has joined, has it, or it is recorded for the peer. Each
//! rule is broken once, by a model that departs from it in that one step, and the model must fail.

#![allow(clippy::unwrap_used)]

mod sync {
    pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
}

#[allow(dead_code, reason = "the model uses what is atomic, not all of it")]
#[path = "../src/image/stream/cells.rs"]
mod cells;
#[allow(dead_code, reason = "the model uses what is atomic, not all of it")]
#[path = "../src/image/stream/in_order.rs"]
mod in_order;
#[allow(dead_code, reason = "the model uses what is atomic, not all of it")]
#[path = "../src/image/stream/recorder.rs"]
mod recorder;

use cells::{Cells, EntryKind, Rings};
use in_order::{InOrder, NextEntry};
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;
use recorder::{Recorder, Room};

/// The rule that a model breaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The sender does not look whether its peer still follows.
    NoLookAfterReading,
    /// The write looks whether anybody follows, then notes itself in the dirty map.
    RecordedBeforeNoted,
    /// The sender looks at the dirty map, then joins.
    MapReadBeforeJoining,
}

/// One queue with a ring of one slot and one page, and its data as one word.
struct World {
    words: Vec<AtomicU64>,
    data: AtomicU64,
    /// The dirty map.
    dirty: AtomicU64,
    broken: Broken,
}

const RINGS: Rings = Rings {
    queues: 1,
    slots: 1,
};
const PEER: usize = 0;

impl World {
    fn new(broken: Broken) -> Arc<Self> {
        Arc::new(Self {
            words: (0..RINGS.words()).map(|_| AtomicU64::new(0)).collect(),
            data: AtomicU64::new(0),
            dirty: AtomicU64::new(0),
            broken,
        })
    }

    fn cells(&self) -> Cells<'_> {
        Cells::over(&self.words, RINGS)
    }

    /// Records a write of this value at this offset, if anybody wants it, which lands at once.
    fn record(&self, queue: &mut Recorder, offset: u64, value: u64) -> bool {
        let Room::At(place) = queue.make_room(self.cells(), 1) else {
            return false;
        };
        // The data are bytes: their order against the words is that of a copy.
        fence(Ordering::Release);
        self.data.store(value, Ordering::Relaxed);
        let change = queue.publish(self.cells(), place, EntryKind::Write, offset, 1);
        queue.end(self.cells(), change, true);
        true
    }

    /// What the sender reads next, if it is whole.
    fn read(&self, reader: &mut InOrder) -> Option<(u64, u64)> {
        let NextEntry::Entry(entry) = reader.next(self.cells()) else {
            return None;
        };
        let value = self.data.load(Ordering::Relaxed);
        let whole = self.broken == Broken::NoLookAfterReading || reader.is_whole(self.cells());
        whole.then_some((entry.offset, value))
    }
}

/// The queue records two writes in a ring of one; the sender reads whatever there is.
fn read_beside_a_ring_that_wraps(broken: Broken) {
    let world = World::new(broken);
    let mut reader = InOrder::join(world.cells(), PEER);
    let queue = {
        let world = Arc::clone(&world);
        thread::spawn(move || {
            let mut queue = Recorder::new(0, 4096);
            world.record(&mut queue, 1, 101);
            // It leaves the peer behind, which nobody else keeps from being followed again.
            if !world.record(&mut queue, 2, 102) {
                InOrder::join(world.cells(), PEER + 1);
                world.record(&mut queue, 2, 102);
            }
        })
    };
    if let Some((offset, value)) = world.read(&mut reader) {
        assert_eq!(
            value,
            offset + 100,
            "what was read is not what was recorded"
        );
    }
    queue.join().unwrap();
}

/// A write is let in while a peer joins.
fn join_beside_a_write(broken: Broken) {
    let world = World::new(broken);
    let queue = {
        let world = Arc::clone(&world);
        thread::spawn(move || {
            let mut queue = Recorder::new(0, 4096);
            let note = || {
                world.dirty.fetch_or(1, Ordering::AcqRel);
                // As the gate does.
                fence(Ordering::SeqCst);
            };
            if broken == Broken::RecordedBeforeNoted {
                world.record(&mut queue, 1, 101);
                note();
            } else {
                note();
                world.record(&mut queue, 1, 101);
            }
        })
    };
    let early = world.dirty.load(Ordering::Acquire);
    let mut reader = InOrder::join(world.cells(), PEER);
    let dirty = match broken {
        Broken::MapReadBeforeJoining => early,
        _ => world.dirty.load(Ordering::Acquire),
    };
    queue.join().unwrap();
    let recorded = world.read(&mut reader).is_some();
    assert!(
        recorded || dirty == 1,
        "a write is neither in the map nor in the stream"
    );
}

fn check(model: fn(Broken), broken: Broken) -> bool {
    let check = move || {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(move || model(broken));
    };
    std::panic::catch_unwind(check).is_ok()
}

#[test]
fn what_a_sender_finds_whole_is_what_was_recorded() {
    assert!(check(read_beside_a_ring_that_wraps, Broken::Nothing));
    let broken = Broken::NoLookAfterReading;
    assert!(!check(read_beside_a_ring_that_wraps, broken));
}

#[test]
fn a_write_is_in_the_map_or_in_the_stream_of_a_peer_that_joins() {
    assert!(check(join_beside_a_write, Broken::Nothing));
    for broken in [Broken::RecordedBeforeNoted, Broken::MapReadBeforeJoining] {
        assert!(!check(join_beside_a_write, broken));
    }
}
