//! The session thread's look at what stands on the bricks.
//!
//! Locks and marks can be taken away by others: an administrator clears locks
//! (`gluster volume clear-locks`), a brick revokes them, and then stock Gluster heals
//! underneath the guest and removes the marks. Nothing tells the session. So it looks, at
//! short intervals while the guest may write, at longer ones else, soon when a brick says that
//! somebody wants one of its locks, and once more when it ends. A brick whose locks are gone is given up and joined again like one that was lost;
//! marks that are gone are stored again.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::image::error_chain::chain;
use crate::image::replica::brick_port::{CopyState, PortError};
use crate::image::replica::data_lock::wait;
use crate::image::session::input::Input;
use crate::image::session::state_machine::{Event, Phase};

use super::Runner;

/// Between two looks while the guest's writes go through.
const WHILE_DIRTY: Duration = Duration::from_secs(1);
/// Between two looks while none does.
const WHILE_CLEAN: Duration = Duration::from_secs(15);
/// Between two looks when somebody wants a lock: whoever does may have taken others away.
const WHEN_CONTENDED: Duration = Duration::from_millis(100);
/// How long a session that ends tries to get back bricks whose locks were taken away.
const REJOIN_LIMIT: Duration = Duration::from_secs(10);

impl Runner {
    /// Until when nothing is to be done unasked, by the clock of the threads.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let look = self.looks().then(|| self.next_look());
        look.into_iter().chain(self.quorum_deadline).min()
    }

    /// Does what is due.
    pub(super) fn do_what_is_due(&mut self) {
        let now = self.threads.now();
        if self.quorum_deadline.is_some_and(|end| end <= now) {
            self.quorum_deadline = None;
            self.take(Event::QuorumTimeout);
        }
        if self.looks() && self.next_look() <= now {
            self.look();
        }
    }

    /// As soon as the guest writes, or somebody wants a lock, the last look counts for a moment
    /// only.
    fn next_look(&self) -> Duration {
        let pause = match self.machine.phase() {
            _ if self.contended => WHEN_CONTENDED,
            Phase::Unmarked | Phase::Stopped(_) => WHILE_CLEAN,
            _ => WHILE_DIRTY,
        };
        self.looked_at + pause
    }

    /// Is there anything to lose? A session that only reads lets heals go on.
    fn looks(&self) -> bool {
        let over = matches!(self.machine.phase(), Phase::Stopped(_));
        !self.read_only && !over && !self.machine.held().is_empty()
    }

    /// Looks at every brick that is held.
    pub(super) fn look(&mut self) {
        self.contended = false;
        let copies = self.read_held();
        let over = self.machine.overruled();
        let accuses_local = |(brick, copy): &&(usize, CopyState)| {
            copy.accuses().contains(self.shape.local) && !over.contains(*brick)
        };
        if let Some(&(by, _)) = copies.iter().find(accuses_local) {
            self.take(Event::LocalAccused { by });
        }
        match self.machine.phase() {
            Phase::Dirty => self.look_after_marks(&copies),
            // Of a peer that cannot be healed the marks stand, while others are unmarked.
            Phase::Unmarked => self.mark_debt(),
            _ => {}
        }
        self.looked_at = self.threads.now();
    }

    /// Bricks that were not marked yet are being marked, or have not come so far.
    fn look_after_marks(&mut self, copies: &[(usize, CopyState)]) {
        let marked = self.machine.marked_bricks();
        let Some(debt) = &self.debt else { return };
        let changed: Vec<_> = copies
            .iter()
            .filter(|(brick, copy)| marked.contains(*brick) && !debt.stands_on(copy))
            .map(|(brick, copy)| (*brick, copy.accuses().covers(self.shape.peers())))
            .collect();
        for &(on, accuses_all) in &changed {
            let name = self.names.one(on);
            match accuses_all {
                true => log::warn!("brick {name}: somebody else has marked a copy, too"),
                false => log::error!("brick {name}: somebody removed marks of this session"),
            }
            if !accuses_all {
                self.distrust_all();
                self.take(Event::MarksGone { on });
            }
        }
        if changed.iter().any(|(_, accuses_all)| *accuses_all) {
            self.take(Event::MarkAgain);
        }
    }

    /// What the bricks that are held say now. One that has not all locks any more is given
    /// up.
    pub(super) fn read_held(&mut self) -> Vec<(usize, CopyState)> {
        let held = self.machine.held();
        let asked: Vec<_> = held
            .iter()
            .filter_map(|brick| Some((brick, self.workers.get(brick)?.ask(|port| port.probe()))))
            .collect();
        let mut copies = Vec::new();
        for (brick, answer) in asked {
            match wait(answer) {
                Ok(copy) => {
                    self.note(brick, |known| known.saw(Some(copy.pending.clone())));
                    copies.push((brick, copy));
                }
                Err(error @ PortError::LockGone(_)) => self.give_up(brick, "looking", &error),
                // Its own worker reports it lost.
                Err(_) => {}
            }
        }
        copies
    }

    /// Locks were taken away while the peers miss something. Healers' own locks may be gone
    /// with them, and whatever stock Gluster copied meanwhile may have been older than what
    /// a healer sent: the map vouches for nothing that it calls clean.
    pub(super) fn note_robbed(&mut self) {
        if self.machine.phase() == &Phase::Unmarked || self.robbed {
            return;
        }
        self.robbed = true;
        log::error!("locks of this session were taken away: all copies are compared");
        self.distrust_all();
    }

    fn distrust_all(&mut self) {
        let Some(debt) = &mut self.debt else { return };
        let all = debt.map().geometry().all_peers();
        if let Err(error) = debt.distrust(all) {
            log::error!("{}", chain(&error));
        }
    }

    /// Before the session ends: whoever still misses something is marked then. Bricks whose
    /// locks were taken away are waited for. Is it certain?
    pub(super) fn secure_marks(&mut self, events: &Receiver<Input>) -> bool {
        if matches!(self.machine.phase(), Phase::Dirty | Phase::Unmarked) {
            self.look();
        }
        let end = self.threads.now() + REJOIN_LIMIT;
        while self.waits_for_locks() {
            let left = end.saturating_sub(self.threads.now());
            match self.threads.receive(events, Some(left)) {
                Ok(Input::Brick(brick, report)) => self.heard(brick, report),
                // The device is drained, and whoever else asks learns that it is over.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        let certain = !self.waits_for_locks();
        if !certain {
            log::error!(
                "the locks of this session were taken away, and its marks may be gone. Keep the \
                 state directory and run `bypass-blk heal` here: it has what the other copies miss"
            );
            self.note_unguarded(true);
        }
        certain
    }

    /// Since they were taken away, marks do not stand on a quorum again.
    fn waits_for_locks(&self) -> bool {
        self.robbed && matches!(self.machine.phase(), Phase::Stalled | Phase::Marking)
    }
}
