//! A brick for unit tests that writes down what it is asked to change. It has every lock,
//! but for those that a rebalance has, and never loses its connection; one that fails does so at each change, one without a
//! copy does not answer when it is asked for it, and one that is robbed says so.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use crate::image::layout::FileIndex;

use super::brick_port::{
    BrickPort, Conflict, CopyState, Counter, Fence, Lock, PortError, Publication,
};
use super::holder::Holder;

/// What happened, in order: on which brick, and what. The same for all bricks of a test.
pub type Journal = Arc<Mutex<Vec<(usize, Change)>>>;

/// A change of a copy's marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Added to its counters.
    Add(Vec<(Counter, i32)>),
    /// Got this time, since the epoch.
    Times(Duration),
    /// What was changed is durable.
    Durable,
    /// The fence was lifted.
    Lifted,
    /// Heals are kept from this file of the image, or not any more. Of the first one that is
    /// not written down: they always are.
    Guarded(FileIndex, bool),
    /// Copies that came were accused, by these names.
    Newcomers(Vec<String>),
}

/// What a rebalance does to files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rebalance {
    /// Nothing.
    #[default]
    Idle,
    /// It has their locks.
    Works,
    /// They are elsewhere.
    Over,
}

/// See the module.
#[derive(Default)]
pub struct RecordingPort {
    /// Child index.
    pub brick: usize,
    /// Where changes are written down.
    pub journal: Journal,
    /// Changes are refused.
    pub fails: bool,
    /// What it says of its copy, whatever was changed; may be changed by the test.
    pub copy: Arc<Mutex<Option<CopyState>>>,
    /// Somebody took the locks away: the connection stands.
    pub robbed: Arc<AtomicBool>,
    /// How far a rebalance is with its files after the first.
    pub rebalance: Arc<Mutex<Rebalance>>,
    /// Somebody else has the image open there.
    pub in_use: bool,
    /// The file that it is asked about.
    pub file: FileIndex,
}

impl RecordingPort {
    fn note(&self, change: Change) {
        self.journal.lock().unwrap().push((self.brick, change));
    }
}

impl BrickPort for RecordingPort {
    fn select(&mut self, file: FileIndex) {
        self.file = file;
    }

    fn accuse_newcomers(&mut self, _count: u32, names: &[String]) -> Result<(), PortError> {
        self.note(Change::Newcomers(names.to_vec()));
        Ok(())
    }

    fn connect(&mut self, _lost: Box<dyn FnOnce(String) + Send>) -> Result<(), PortError> {
        Ok(())
    }

    fn try_lock(&mut self, lock: Lock) -> Result<bool, PortError> {
        if lock == Lock::Heal && self.file != FileIndex::BASE {
            self.note(Change::Guarded(self.file, true));
        }
        let works = *self.rebalance.lock().unwrap() == Rebalance::Works;
        Ok(!(lock == Lock::Rebalance && self.file != FileIndex::BASE && works))
    }

    fn unlock(&mut self, lock: Lock) -> Result<(), PortError> {
        if lock == Lock::Heal && self.file != FileIndex::BASE {
            self.note(Change::Guarded(self.file, false));
        }
        Ok(())
    }

    fn turn_heals_away(&mut self) -> Result<bool, PortError> {
        Ok(false)
    }

    fn holder(&mut self) -> Result<Option<Holder>, PortError> {
        Ok(None)
    }

    fn publish(&mut self, _fence: Fence, _read_only: bool) -> Result<Publication, PortError> {
        let (holder, pid) = (None, 7);
        Ok(match self.in_use {
            true => Publication::InUse(Conflict { holder, pid }),
            false => Publication::Done,
        })
    }

    fn lift_fence(&mut self) -> Result<(), PortError> {
        self.note(Change::Lifted);
        Ok(())
    }

    fn look(&mut self) -> Result<CopyState, PortError> {
        let moved = *self.rebalance.lock().unwrap() == Rebalance::Over;
        if self.file != FileIndex::BASE && moved {
            return Err(PortError::NoPiece(self.file.0));
        }
        let copy = self.copy.lock().unwrap().clone();
        copy.ok_or(PortError::NoImage)
    }

    fn probe(&mut self) -> Result<CopyState, PortError> {
        if self.robbed.load(Ordering::SeqCst) {
            return Err(PortError::LockGone(Lock::Heal.to_string()));
        }
        let silent = || PortError::Away("it does not answer".to_owned());
        self.copy.lock().unwrap().clone().ok_or_else(silent)
    }

    fn is_copied_to_for_others(&mut self, _ours: Uuid) -> Result<bool, PortError> {
        Ok(false)
    }

    fn add_to_counters(&mut self, changes: &[(Counter, i32)]) -> Result<(), PortError> {
        if self.fails {
            return Err(PortError::Away("it fails".to_owned()));
        }
        self.note(Change::Add(changes.to_vec()));
        Ok(())
    }

    fn fsync(&mut self) -> Result<(), PortError> {
        self.note(Change::Durable);
        Ok(())
    }

    fn set_times(&mut self, time: Duration) -> Result<(), PortError> {
        if self.fails {
            return Err(PortError::Away("it fails".to_owned()));
        }
        self.note(Change::Times(time));
        Ok(())
    }

    fn truncate(&mut self, _size: u64) -> Result<(), PortError> {
        Ok(())
    }

    fn disconnect(&mut self) {}
}
