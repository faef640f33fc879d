//! The session thread's rounds of marking: begun when the state machine asks for one, and what
//! comes of them told to it.

use super::healing::stamp_for;
use std::time::Duration;

use super::{FileReplica, Runner, syncing};
use crate::image::error_chain::chain;
use crate::image::layout::FileIndex;
use crate::image::replica::brick_port::{CopyState, PortError};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::brick_worker::Team;
use crate::image::replica::marking;
use crate::image::replica::missed_writes::MissedWrites;
use crate::image::session::state_machine::{Event, Phase};

/// How long a heal of a file is waited for that is to be marked, and how often it is asked.
const GUARD_LIMIT: Duration = Duration::from_secs(10);
const GUARD_PAUSE: Duration = Duration::from_millis(20);

impl Runner {
    pub(super) fn mark(&mut self, file: FileIndex, bricks: BrickSet) {
        if self.phase(file) == &Phase::Marking {
            self.note_clean();
        }
        let bricks = bricks.without(self.keep_heals_from(file, bricks));
        let Some(replica) = self.files.get(file.at()) else {
            return;
        };
        let (debt, local) = (&mut self.debt, &*replica.local);
        let durability = &*self.durability;
        let machine = &replica.machine;
        let mut changed = false;
        let ready = |copies: &[(usize, CopyState)]| {
            let answered = copies.iter().map(|(brick, _)| *brick).collect();
            changed = machine.compares_local(answered) && !local.is_untouched();
            let debt = debt.as_mut().filter(|_| !changed)?;
            stamp_for(debt, file, local, durability, copies)
        };
        let standing = marking::Standing {
            marked: machine.marked_bricks(),
            overruled: machine.overruled(),
        };
        let team = Team::new(&self.workers, file);
        let round = marking::mark(&self.shape, team, bricks, standing, ready);
        if changed {
            return self.take(file, Event::LocalChanged);
        }
        self.conclude(file, round);
    }

    /// Before a file is marked. The bricks where that is not possible; they are given up.
    pub(super) fn keep_heals_from(&mut self, file: FileIndex, bricks: BrickSet) -> BrickSet {
        let end = self.threads.now() + GUARD_LIMIT;
        loop {
            let refused = self.guard(
                file,
                bricks.iter().filter(|b| self.held().contains(*b)).collect(),
            );
            let only_busy =
                |(_, error): &(usize, PortError)| matches!(error, PortError::Refused(_));
            if refused.is_empty() {
                return BrickSet::EMPTY;
            }
            if !refused.iter().all(only_busy) || self.threads.now() >= end {
                for (brick, error) in &refused {
                    self.give_up(*brick, "keeping heals away", error);
                }
                return refused.iter().map(|(brick, _)| *brick).collect();
            }
            self.threads.sleep(GUARD_PAUSE);
        }
    }

    pub(super) fn conclude(&mut self, file: FileIndex, round: marking::MarkingRound) {
        for (brick, error) in &round.failed {
            self.give_up(*brick, "marking", error);
        }
        self.pass_over_busy(file, &round.busy);
        self.note_copies(file, round.copies, round.unsure);
        if let Some(by) = round.local_accused_by {
            return self.take(file, Event::LocalAccused { by });
        }
        for brick in round.marked.iter() {
            self.file_mut(file).machine.marked(brick);
        }
        let local_away = !self.held().contains(self.shape.local);
        let replica = self.file(file);
        // As for the brick: not before it is known to be of use.
        if local_away && self.shape.is_quorum(replica.machine.marked_bricks()) {
            if replica.local.accuses(self.shape.local) {
                let by = self.shape.local;
                return self.take(file, Event::LocalAccused { by });
            }
            self.mark_local_file(file);
        }
        self.take(file, Event::MarkRoundOver);
        let stands =
            |file: &FileReplica| matches!(file.machine.phase(), Phase::Dirty | Phase::Unmarked);
        if self.phase(file) == &Phase::Dirty && self.files.iter().all(stands) {
            self.robbed = false;
            self.note_unguarded(false);
        }
    }

    /// Another client kept the data lock. A brick whose marks stand is asked again with
    /// the next round; to give its locks up would leave nobody to keep heals away. One
    /// that is to be marked for the first time is joined again, and then asked.
    fn pass_over_busy(&mut self, file: FileIndex, busy: &[(usize, PortError)]) {
        let stand = match self.phase(file) {
            Phase::Dirty => self.file(file).machine.marked_bricks(),
            _ => BrickSet::EMPTY,
        };
        for (brick, error) in busy {
            match stand.contains(*brick) {
                true => log::warn!("brick {}: {error}", self.names.one(*brick)),
                false => self.give_up(*brick, "marking", error),
            }
        }
    }

    /// The local brick's process is away, so nobody else changes the attributes of
    /// its file now. The peers' indices name the file for heal; the local brick's
    /// does once it is back and marked like the others.
    fn mark_local_file(&mut self, file: FileIndex) {
        let stamp = self.debt.as_ref().map_or(0, MissedWrites::current_stamp);
        if stamp == 0 {
            return;
        }
        let marked = self.file(file).local.mark(self.shape.peers(), stamp);
        match syncing::noted(&self.durability, marked) {
            Ok(()) => self.file_mut(file).machine.local_marked(),
            Err(error) => log::error!("{}", chain(&error)),
        }
    }
}
