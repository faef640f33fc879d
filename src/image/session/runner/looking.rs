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
use crate::image::layout::FileIndex;
use crate::image::replica::brick_port::{CopyState, PortError};
use crate::image::replica::data_lock::wait;
use crate::image::session::input::Input;
use crate::image::session::state_machine::{Event, Phase};

use super::{FileReplica, Runner};

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
        let due = look.into_iter().chain(self.quorum_deadline);
        due.chain(self.next_cooling()).min()
    }

    /// Does what is due.
    pub(super) fn do_what_is_due(&mut self) {
        let now = self.threads.now();
        if self.quorum_deadline.is_some_and(|end| end <= now) {
            self.quorum_deadline = None;
            self.take_all(Event::QuorumTimeout);
        }
        if self.looks() && self.next_look() <= now {
            self.look();
        }
        if self.next_cooling().is_some_and(|due| due <= now) {
            self.cool_down();
        }
    }

    /// As soon as the guest writes, or somebody wants a lock, the last look counts for a moment
    /// only.
    fn next_look(&self) -> Duration {
        let clean = |file: &FileReplica| {
            matches!(file.machine.phase(), Phase::Unmarked | Phase::Stopped(_))
        };
        let pause = match self.files.iter().all(clean) {
            _ if self.contended => WHEN_CONTENDED,
            true => WHILE_CLEAN,
            false => WHILE_DIRTY,
        };
        self.looked_at + pause
    }

    /// Is there anything to lose? A session that only reads lets heals go on.
    fn looks(&self) -> bool {
        !self.read_only && !self.stopped && !self.held().is_empty()
    }

    /// Looks at every brick that is held, and every file of which somebody may miss something.
    pub(super) fn look(&mut self) {
        self.contended = false;
        for file in self.hot_files() {
            self.look_at(file);
        }
        // Of a peer that cannot be healed the marks stand, while others are unmarked.
        self.mark_debt();
        self.looked_at = self.threads.now();
    }

    fn look_at(&mut self, file: FileIndex) {
        let copies = self.read_held(file);
        let over = self.file(file).machine.overruled();
        let accuses_local = |(brick, copy): &&(usize, CopyState)| {
            copy.accuses().contains(self.shape.local) && !over.contains(*brick)
        };
        if let Some(&(by, _)) = copies.iter().find(accuses_local) {
            self.take(file, Event::LocalAccused { by });
        }
        if self.phase(file) == &Phase::Dirty {
            self.look_after_marks(file, &copies);
        }
    }

    /// Bricks that were not marked yet are being marked, or have not come so far.
    fn look_after_marks(&mut self, file: FileIndex, copies: &[(usize, CopyState)]) {
        let marked = self.file(file).machine.marked_bricks();
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
                self.take(file, Event::MarksGone { on });
            }
        }
        if changed.iter().any(|(_, accuses_all)| *accuses_all) {
            self.take(file, Event::MarkAgain);
        }
    }

    /// What the bricks that are held say now of a file. One that has not all locks any more is
    /// given up.
    pub(super) fn read_held(&mut self, file: FileIndex) -> Vec<(usize, CopyState)> {
        let held = self.held();
        let team = self.team(file);
        let asked: Vec<_> = held
            .iter()
            .filter_map(|brick| Some((brick, team.get(brick)?.ask(|port| port.probe()))))
            .collect();
        let mut copies = Vec::new();
        for (brick, answer) in asked {
            match wait(answer) {
                Ok(copy) => {
                    self.saw(file, brick, Some(copy.pending.clone()));
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
        let unmarked = |file: &FileReplica| file.machine.phase() == &Phase::Unmarked;
        if self.files.iter().all(unmarked) || self.robbed {
            return;
        }
        self.robbed = true;
        log::error!("locks of this session were taken away: all copies are compared");
        self.distrust_all();
    }

    fn distrust_all(&mut self) {
        let Some(debt) = &mut self.debt else { return };
        let all = debt.map().geometry().all_peers();
        if let Err(error) = debt.distrust_all(all) {
            log::error!("{}", chain(&error));
        }
    }

    /// Before the session ends: whoever still misses something is marked then. Bricks whose
    /// locks were taken away are waited for. Is it certain?
    pub(super) fn secure_marks(&mut self, events: &Receiver<Input>) -> bool {
        let calm =
            |file: &FileReplica| matches!(file.machine.phase(), Phase::Dirty | Phase::Unmarked);
        if self.files.iter().any(calm) {
            self.look();
            self.mark_debt_of_files(usize::MAX);
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
        let waits =
            |file: &FileReplica| matches!(file.machine.phase(), Phase::Stalled | Phase::Marking);
        self.robbed && self.files.iter().any(waits)
    }
}
