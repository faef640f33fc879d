//! What the session's thread knows of each file of the image. Marks, and the locks that keep
//! heals away, are of files; the session lock and the record are of the first one.
//!
//! From the first file heals are kept from the beginning to the end. Another one is *guarded*
//! from before its first mark until no mark stands on it: a heal begins only where one does. When
//! the volume has changed ([`super::pinning`]) all are, to the end.

use crate::image::layout::FileIndex;
use crate::image::local::CopyWatch;
use crate::image::replica::brick_port::{BrickPort, CopyState, FileCopies, Lock, PortError};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::brick_worker::Team;
use crate::image::replica::data_lock::wait;
use crate::image::replica::session_lock::{Blocked, lock_background};
use crate::image::session::state_machine::{Machine, Phase};

use super::Runner;

/// One file of the image.
pub struct FileReplica {
    /// The decisions.
    pub machine: Machine,
    /// The local file.
    pub local: Box<dyn CopyWatch>,
    /// Its data counters on each brick, in child order, as last read; absent if that is not
    /// known.
    pub known: Vec<Option<Vec<i32>>>,
    /// The bricks on which heals are kept from it now.
    pub guarded: BrickSet,
    /// Heals are to be kept from it.
    pub wants_guard: bool,
    /// And so to the end, marked or not; see [`Runner::volume_changed`].
    pub pinned: bool,
    /// Nothing was dirty when it was last looked whether its marks can go.
    pub quiet: bool,
}

impl FileReplica {
    /// As it is when the session was just opened. `guarded`: heals are kept from it, where
    /// the machine's locks are held.
    pub fn new(
        machine: Machine,
        local: Box<dyn CopyWatch>,
        copies: &FileCopies,
        guarded: bool,
    ) -> Self {
        let pending = |copy: &Option<CopyState>| copy.as_ref().map(|copy| copy.pending.clone());
        Self {
            guarded: match guarded {
                true => machine.held(),
                false => BrickSet::EMPTY,
            },
            machine,
            local,
            known: copies.iter().map(pending).collect(),
            wants_guard: guarded,
            pinned: false,
            quiet: false,
        }
    }

    /// May some brick say that a copy of it misses something?
    pub fn has_marks(&self) -> bool {
        let row = |brick: usize| self.known.get(brick)?.as_deref();
        let may = |row: Option<&[i32]>| row.is_none_or(|row| row.iter().any(|count| *count != 0));
        self.machine.held().iter().any(|brick| may(row(brick)))
    }

    /// Does some brick say so, as far as known?
    pub fn is_accused(&self) -> bool {
        let rows = self.known.iter().flatten();
        rows.flatten().any(|count| *count != 0)
    }

    /// Is there anything to be done about it before the session can end?
    pub fn is_hot(&self) -> bool {
        let guarded = !self.guarded.is_empty();
        let cold = self.pinned && !self.has_marks();
        !matches!(self.machine.phase(), Phase::Unmarked) || guarded && !cold
    }
}

impl Runner {
    /// The file.
    pub(super) fn file(&self, file: FileIndex) -> &FileReplica {
        &self.files[file.at()]
    }

    /// The file, to be changed.
    pub(super) fn file_mut(&mut self, file: FileIndex) -> &mut FileReplica {
        &mut self.files[file.at()]
    }

    /// Where a file stands.
    pub(super) fn phase(&self, file: FileIndex) -> &Phase {
        self.file(file).machine.phase()
    }

    /// The workers, asked about a file.
    pub(super) fn team(&self, file: FileIndex) -> Team<'_> {
        Team::new(&self.workers, file)
    }

    /// The bricks on which the session's locks are held.
    pub(super) fn held(&self) -> BrickSet {
        self.file(FileIndex::BASE).machine.held()
    }

    /// The files of which somebody may miss something: all that there is to be looked at.
    pub(super) fn hot_files(&self) -> Vec<FileIndex> {
        let is_hot = |file: &FileIndex| *file == FileIndex::BASE || self.file(*file).is_hot();
        self.layout.files().filter(is_hot).collect()
    }

    /// Keeps heals from a file on these bricks, and from now on wherever a brick comes back.
    /// Those where somebody else has the lock are returned: a heal of older marks is under
    /// way there.
    pub(super) fn guard(&mut self, file: FileIndex, bricks: BrickSet) -> Vec<(usize, PortError)> {
        let missing = bricks.without(self.file(file).guarded);
        if missing.is_empty() {
            return Vec::new();
        }
        self.file_mut(file).wants_guard = true;
        self.workers
            .iter()
            .for_each(|worker| worker.guard(file, true));
        let claim = self.claim;
        let team = self.team(file);
        let ask = |brick: usize| {
            let worker = team.get(brick)?;
            Some((brick, worker.ask(move |port| lock_background(port, &claim))))
        };
        let asked: Vec<_> = missing.iter().filter_map(ask).collect();
        let mut refused = Vec::new();
        for (brick, answer) in asked {
            match answer.wait() {
                Some(Ok(())) => self.file_mut(file).guarded.insert(brick),
                Some(Err(Blocked::Port(error))) => refused.push((brick, error)),
                Some(Err(_)) => {
                    let why = format!("a heal of {} is under way", self.names_file(file));
                    refused.push((brick, PortError::Refused(why)));
                }
                None => {}
            }
        }
        refused
    }

    /// No mark stands on a file any more: heals have nothing to do there.
    pub(super) fn unguard(&mut self, file: FileIndex) {
        if file == FileIndex::BASE || self.file(file).pinned {
            return;
        }
        self.file_mut(file).wants_guard = false;
        self.workers
            .iter()
            .for_each(|worker| worker.guard(file, false));
        let guarded = std::mem::take(&mut self.file_mut(file).guarded);
        let team = self.team(file);
        let ask = |brick: usize| {
            let worker = team.get(brick)?;
            let unlock = |port: &mut dyn BrickPort| {
                port.unlock(Lock::Rebalance)?;
                port.unlock(Lock::Heal)
            };
            Some(worker.ask(unlock))
        };
        let asked: Vec<_> = guarded.iter().filter_map(ask).collect();
        for answer in asked {
            if let Err(error) = wait(answer) {
                log::debug!("a heal lock was not given back: {error}");
            }
        }
    }

    /// What a file is called in messages.
    pub(super) fn names_file(&self, file: FileIndex) -> String {
        match self.layout.is_whole() {
            true => "the image".to_owned(),
            false => format!("shard {}", file.0),
        }
    }
}
