//! The proof of the dirty map's extent: every interleaving, and every reordering
//! that the memory model allows, of writers and healers on one word. Compiles the
//! very source of `src/image/dirty_map/extent.rs` with loom's atomics.
//!
//! The claim: whenever an extent is not dirty for a peer, the peer has its newest
//! bytes, and that at every moment, so also when any process is killed there. Each
//! rule of the protocol is broken once, by a model that departs from it in that
//! one step, and the model must fail.

#![allow(clippy::unwrap_used)]

mod sync {
    pub use loom::sync::atomic::{AtomicU64, Ordering};
}

#[allow(dead_code, reason = "the model uses what is atomic, not all of it")]
#[path = "../src/image/dirty_map/extent.rs"]
mod extent;

use extent::{Copied, Extent, Peer, Peers};
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;

/// The rule that a model breaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The write is submitted, then counted and marked.
    MarkAfterSubmit,
    /// The write is counted out before it has landed.
    EndBeforeLanding,
    /// Clears after the copy if nothing is in flight, without *copying*.
    ClearWithoutCopying,
    /// Begins a copy while a write is in flight.
    CopyUnderWrite,
    /// A write does not take *copying* away.
    WriteKeepsCopying,
    /// A new session forgets the writes of a killed one without marking them.
    SettleWithoutMarking,
    /// The end of a write does not release.
    RelaxedEndWrite,
    /// The begin of a copy does not acquire.
    RelaxedBeginCopy,
    /// A write that finds the extent full only raises the flag.
    NoAnnouncement,
}

const FAILURE: &str = "the peer misses bytes and nothing says so";

// The layout of lane 0 with peer 0, for the broken steps only.
const IN_FLIGHT: u64 = 0xff;
const DIRTY: u64 = 1 << 8;
const COPYING: u64 = 1 << 12;

const FULL: u64 = 255;

/// One extent on the local disk and on two peers.
struct World {
    word: AtomicU64,
    local: AtomicU64,
    peers: [AtomicU64; 2],
    broken: Broken,
}

impl World {
    /// The local copy has 1, the peers have 0 and are dirty.
    fn new(broken: Broken) -> Arc<Self> {
        let world = Self {
            word: AtomicU64::new(0),
            local: AtomicU64::new(1),
            peers: [AtomicU64::new(0), AtomicU64::new(0)],
            broken,
        };
        world.extent().mark_dirty(all());
        Arc::new(world)
    }

    fn extent(&self) -> Extent<'_> {
        Extent::new(&self.word, 0)
    }

    /// One guest write.
    fn write(&self, value: u64) {
        if self.broken == Broken::MarkAfterSubmit {
            self.land(value);
        }
        self.begin_write();
        if self.broken == Broken::EndBeforeLanding {
            self.end_write();
            self.land(value);
            return;
        }
        if self.broken != Broken::MarkAfterSubmit {
            self.land(value);
        }
        self.end_write();
    }

    /// The bytes reach the disk. A release: who reads them from the kernel also
    /// sees what the writer did before it submitted them.
    fn land(&self, value: u64) {
        self.local.store(value, Ordering::Release);
    }

    fn begin_write(&self) {
        if self.broken == Broken::WriteKeepsCopying {
            self.change(|word| Some((word | DIRTY) + 1));
        } else {
            assert!(self.extent().begin_write(all()));
        }
    }

    fn end_write(&self) {
        if self.broken == Broken::RelaxedEndWrite {
            self.word.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.extent().end_write().unwrap();
        }
    }

    /// The session is killed with a write in flight, and the next one begins.
    fn killed_and_reopened(&self, value: u64) {
        self.begin_write();
        self.land(value);
        if self.broken == Broken::SettleWithoutMarking {
            self.change(|word| Some(word & !(IN_FLIGHT | DIRTY)));
        } else {
            assert!(self.extent().settle(all()));
        }
    }

    /// One attempt of a healer.
    fn heal(&self, peer: usize) {
        let id = Peer::new(peer).unwrap();
        if !self.begin_copy(id) {
            return;
        }
        // Relaxed: what the copy sees of earlier writes is the protocol's doing.
        let copied = self.local.load(Ordering::Relaxed);
        self.peers[peer].store(copied, Ordering::Relaxed);
        if self.end_copy(id) == Copied::Cleared {
            // Looked at from now on: newer bytes on the local disk are never
            // there without the mark.
            let newest = self.local.load(Ordering::Acquire);
            let is_marked = self.extent().state().is_dirty(id);
            assert!(is_marked || copied == newest, "{FAILURE}");
        }
    }

    fn begin_copy(&self, peer: Peer) -> bool {
        match self.broken {
            Broken::CopyUnderWrite => {
                self.change(|word| (word & DIRTY != 0).then_some(word | COPYING))
            }
            Broken::RelaxedBeginCopy => {
                let may = |word| (word & (IN_FLIGHT | DIRTY) == DIRTY).then_some(word | COPYING);
                let word = &self.word;
                word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, may)
                    .is_ok()
            }
            _ => self.extent().begin_copy(peer),
        }
    }

    fn end_copy(&self, peer: Peer) -> Copied {
        if self.broken != Broken::ClearWithoutCopying {
            return self.extent().end_copy(peer);
        }
        let clear = |word| (word & IN_FLIGHT == 0).then_some(word & !(DIRTY | COPYING));
        if self.change(clear) {
            Copied::Cleared
        } else {
            Copied::Again
        }
    }

    /// A broken step, atomic and as ordered as the real ones.
    fn change(&self, next: impl Fn(u64) -> Option<u64>) -> bool {
        let word = &self.word;
        word.fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
            .is_ok()
    }

    /// After all threads have ended.
    fn check(&self) {
        let newest = self.local.load(Ordering::Acquire);
        let state = self.extent().state();
        assert_eq!(state.in_flight(), 0);
        for (index, peer) in self.peers.iter().enumerate() {
            let has = peer.load(Ordering::Acquire);
            let is_marked = state.is_dirty(Peer::new(index).unwrap());
            assert!(is_marked || has == newest, "{FAILURE}");
        }
    }
}

fn all() -> Peers {
    Peers::first(2)
}

/// Checks `body` in every interleaving in which threads are preempted at most so
/// often: enough for two threads, and what three allow in seconds.
fn check(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(body);
}

const TWO_THREADS: usize = 4;
const THREE_THREADS: usize = 2;

/// Two writes after each other and a healer that tries twice.
fn a_writer_and_a_healer(broken: Broken) {
    check(TWO_THREADS, move || {
        let world = World::new(broken);
        let writer = thread::spawn({
            let world = world.clone();
            move || {
                world.write(2);
                world.write(3);
            }
        });
        world.heal(0);
        world.heal(0);
        writer.join().unwrap();
        world.check();
    });
}

#[test]
fn a_cleared_peer_has_the_newest_bytes() {
    a_writer_and_a_healer(Broken::Nothing);
}

#[test]
fn two_overlapping_writers_and_a_healer() {
    check(THREE_THREADS, || {
        let world = World::new(Broken::Nothing);
        let writers = [2, 3].map(|value| {
            let world = world.clone();
            thread::spawn(move || world.write(value))
        });
        world.heal(0);
        for writer in writers {
            writer.join().unwrap();
        }
        world.check();
    });
}

#[test]
fn peers_are_healed_independently() {
    check(THREE_THREADS, || {
        let world = World::new(Broken::Nothing);
        let healers = [0, 1].map(|peer| {
            let world = world.clone();
            thread::spawn(move || world.heal(peer))
        });
        world.write(2);
        for healer in healers {
            healer.join().unwrap();
        }
        world.check();
    });
}

#[test]
fn a_neighbour_in_the_same_word_disturbs_nothing() {
    check(THREE_THREADS, || {
        let world = World::new(Broken::Nothing);
        let neighbour = thread::spawn({
            let world = world.clone();
            move || {
                let extent = Extent::new(&world.word, 1);
                assert!(extent.begin_write(all()));
                extent.end_write().unwrap();
                assert!(extent.state().is_dirty(Peer::new(0).unwrap()));
            }
        });
        let writer = thread::spawn({
            let world = world.clone();
            move || world.write(2)
        });
        world.heal(0);
        neighbour.join().unwrap();
        writer.join().unwrap();
        world.check();
    });
}

fn a_killed_session_under_a_healer(broken: Broken) {
    check(TWO_THREADS, move || {
        let world = World::new(broken);
        let sessions = thread::spawn({
            let world = world.clone();
            move || {
                world.killed_and_reopened(2);
                world.write(3);
            }
        });
        world.heal(0);
        world.heal(0);
        sessions.join().unwrap();
        world.check();
    });
}

#[test]
fn what_a_killed_session_left_in_flight_stays_marked() {
    a_killed_session_under_a_healer(Broken::Nothing);
}

/// One write finds the extent full while another ends.
fn a_full_extent(broken: Broken) {
    check(TWO_THREADS, move || {
        let world = World::new(broken);
        world.change(|word| Some(word + FULL));
        let wants_room = Arc::new(AtomicBool::new(false));
        let ending = thread::spawn({
            let (world, wants_room) = (world.clone(), wants_room.clone());
            move || {
                world.end_write();
                wants_room.load(Ordering::Acquire)
            }
        });
        let mut has_begun = world.extent().begin_write(all());
        if !has_begun {
            wants_room.store(true, Ordering::Release);
            if broken != Broken::NoAnnouncement {
                world.extent().announce();
            }
            has_begun = world.extent().begin_write(all());
        }
        let is_woken = ending.join().unwrap();
        assert!(has_begun || is_woken, "a write waits and nobody wakes it");
    });
}

#[test]
fn a_write_told_full_is_woken_by_the_next_end() {
    a_full_extent(Broken::Nothing);
}

#[test]
#[should_panic = "a write waits and nobody wakes it"]
fn broken_a_full_extent_without_announcement_is_caught() {
    a_full_extent(Broken::NoAnnouncement);
}

#[test]
#[should_panic = "the peer misses bytes and nothing says so"]
fn broken_marking_after_submitting_is_caught() {
    a_writer_and_a_healer(Broken::MarkAfterSubmit);
}

#[test]
#[should_panic = "the peer misses bytes and nothing says so"]
fn broken_ending_a_write_before_it_landed_is_caught() {
    a_writer_and_a_healer(Broken::EndBeforeLanding);
}

#[test]
#[should_panic = "the peer misses bytes and nothing says so"]
fn broken_clearing_without_the_copying_flag_is_caught() {
    a_writer_and_a_healer(Broken::ClearWithoutCopying);
}

#[test]
#[should_panic = "the peer misses bytes and nothing says so"]
fn broken_copying_under_a_write_is_caught() {
    a_writer_and_a_healer(Broken::CopyUnderWrite);
}

#[test]
#[should_panic = "the peer misses bytes and nothing says so"]
fn broken_a_write_that_keeps_copying_is_caught() {
    a_writer_and_a_healer(Broken::WriteKeepsCopying);
}

#[test]
#[should_panic = "the peer misses bytes and nothing says so"]
fn broken_forgetting_a_killed_session_s_writes_is_caught() {
    a_killed_session_under_a_healer(Broken::SettleWithoutMarking);
}

#[test]
#[should_panic = "the peer misses bytes and nothing says so"]
fn broken_an_end_of_write_that_does_not_release_is_caught() {
    a_writer_and_a_healer(Broken::RelaxedEndWrite);
}

#[test]
#[should_panic = "the peer misses bytes and nothing says so"]
fn broken_a_begin_of_copy_that_does_not_acquire_is_caught() {
    a_writer_and_a_healer(Broken::RelaxedBeginCopy);
}
