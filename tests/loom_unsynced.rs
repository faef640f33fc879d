//! The proof of the counters by which a flush knows which files to sync: every interleaving, and every
//! reordering that the memory model allows, of a queue that writes and then flushes, and one that flushes
//! meanwhile. Compiles the very source of `src/device/io/unsynced.rs` with loom's atomics.
//!
//! The claim: when a flush is answered, every write of the file that was answered before the flush was
//! asked for is durable. Each rule is broken once, by a model that departs from it in that one step, and
//! the model must fail.

#![allow(clippy::unwrap_used)]

mod sync {
    pub use loom::sync::atomic::{AtomicU64, Ordering};
}

#[path = "../src/device/io/unsynced.rs"]
mod unsynced;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use unsynced::Changes;

/// The rule that a model breaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The guest is told of a write before that is counted.
    CountAfterTelling,
    /// What is durable is counted before the sync has ended.
    SyncedBeforeItIs,
    /// What was written by the end of the sync counts as durable, not what was by its beginning.
    SyncedWhatCameDuringIt,
    /// A failed sync counts.
    FailedSyncCounts,
}

const FAILURE: &str = "a flush was answered, and a write before it is not durable";

/// One file, whose writes are numbered from 1 on.
struct World {
    changes: Changes,
    /// The newest write that has reached the kernel.
    cached: AtomicU64,
    /// The newest one that is durable.
    durable: AtomicU64,
    /// The newest one that the guest was told of.
    told: AtomicU64,
    broken: Broken,
}

impl World {
    fn new(broken: Broken) -> Arc<Self> {
        Arc::new(Self {
            changes: Changes::new(false),
            cached: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            told: AtomicU64::new(0),
            broken,
        })
    }

    fn write(&self, number: u64) {
        self.cached.store(number, Ordering::Release);
        if self.broken == Broken::CountAfterTelling {
            self.told.store(number, Ordering::Release);
            self.changes.completed();
        } else {
            self.changes.completed();
            self.told.store(number, Ordering::Release);
        }
    }

    /// What the kernel does; it takes its time.
    fn sync(&self) {
        let cached = self.cached.load(Ordering::Acquire);
        thread::yield_now();
        self.durable.fetch_max(cached, Ordering::AcqRel);
    }

    fn flush(&self) {
        let told = self.told.load(Ordering::Acquire);
        if let Some(mut covered) = self.changes.unsynced() {
            match self.broken {
                Broken::SyncedBeforeItIs => {
                    self.changes.synced(covered);
                    self.sync();
                }
                Broken::SyncedWhatCameDuringIt => {
                    self.sync();
                    covered = self.changes.unsynced().unwrap_or(covered);
                    self.changes.synced(covered);
                }
                Broken::FailedSyncCounts => {
                    self.changes.synced(covered);
                    // This flush is not answered.
                    return;
                }
                Broken::Nothing | Broken::CountAfterTelling => {
                    self.sync();
                    self.changes.synced(covered);
                }
            }
        }
        assert!(self.durable.load(Ordering::Acquire) >= told, "{FAILURE}");
    }
}

fn check(broken: Broken) {
    loom::model(move || {
        let world = World::new(broken);
        let flushing = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.flush())
        };
        world.write(1);
        world.write(2);
        world.flush();
        flushing.join().unwrap();
    });
}

#[test]
fn what_was_answered_before_a_flush_is_durable_after_it() {
    check(Broken::Nothing);
}

#[test]
#[should_panic(expected = "a flush was answered")]
fn a_write_must_be_counted_before_the_guest_is_told() {
    check(Broken::CountAfterTelling);
}

#[test]
#[should_panic(expected = "a flush was answered")]
fn a_sync_under_way_counts_for_nothing() {
    check(Broken::SyncedBeforeItIs);
}

#[test]
#[should_panic(expected = "a flush was answered")]
fn what_is_written_during_a_sync_is_not_covered_by_it() {
    check(Broken::SyncedWhatCameDuringIt);
}

#[test]
#[should_panic(expected = "a flush was answered")]
fn a_sync_that_failed_counts_for_nothing() {
    check(Broken::FailedSyncCounts);
}
