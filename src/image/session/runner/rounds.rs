//! The session thread's rounds of marking: begun when the state machine asks for one, and what
//! comes of them told to it.

use super::healing::stamp_for;
use super::{Runner, syncing};
use crate::image::error_chain::chain;
use crate::image::replica::brick_port::{CopyState, PortError};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::marking;
use crate::image::replica::missed_writes::MissedWrites;
use crate::image::session::state_machine::{Event, Phase};

impl Runner {
    pub(super) fn mark(&mut self, bricks: BrickSet) {
        if self.machine.phase() == &Phase::Marking {
            self.note_clean();
        }
        let (debt, local) = (&mut self.debt, &*self.local);
        let durability = &*self.durability;
        let machine = &self.machine;
        let mut changed = false;
        let ready = |copies: &[(usize, CopyState)]| {
            let answered = copies.iter().map(|(brick, _)| *brick).collect();
            changed = machine.compares_local(answered) && !local.is_untouched();
            let debt = debt.as_mut().filter(|_| !changed)?;
            stamp_for(debt, local, durability, copies)
        };
        let standing = marking::Standing {
            marked: self.machine.marked_bricks(),
            overruled: self.machine.overruled(),
        };
        let round = marking::mark(&self.shape, &self.workers, bricks, standing, ready);
        if changed {
            return self.take(Event::LocalChanged);
        }
        self.conclude(round);
    }

    pub(super) fn conclude(&mut self, round: marking::MarkingRound) {
        for (brick, error) in &round.failed {
            self.give_up(*brick, "marking", error);
        }
        self.pass_over_busy(&round.busy);
        self.note_copies(round.copies, round.unsure);
        if let Some(by) = round.local_accused_by {
            return self.take(Event::LocalAccused { by });
        }
        for brick in round.marked.iter() {
            self.machine.marked(brick);
        }
        let local_away = !self.machine.held().contains(self.shape.local);
        // As for the brick: not before it is known to be of use.
        if local_away && self.shape.is_quorum(self.machine.marked_bricks()) {
            if self.local.accuses(self.shape.local) {
                let by = self.shape.local;
                return self.take(Event::LocalAccused { by });
            }
            self.mark_local_file();
        }
        self.take(Event::MarkRoundOver);
        if self.machine.phase() == &Phase::Dirty {
            self.robbed = false;
            self.note_unguarded(false);
        }
    }

    /// Another client kept the data lock. A brick whose marks stand is asked again with
    /// the next round; to give its locks up would leave nobody to keep heals away. One
    /// that is to be marked for the first time is joined again, and then asked.
    fn pass_over_busy(&mut self, busy: &[(usize, PortError)]) {
        let stand = match self.machine.phase() {
            Phase::Dirty => self.machine.marked_bricks(),
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
    fn mark_local_file(&mut self) {
        let stamp = self.debt.as_ref().map_or(0, MissedWrites::current_stamp);
        if stamp == 0 {
            return;
        }
        let marked = self.local.mark(self.shape.peers(), stamp);
        match syncing::noted(&self.durability, marked) {
            Ok(()) => self.machine.local_marked(),
            Err(error) => log::error!("{}", chain(&error)),
        }
    }
}
