//! The session's state machine: what to do when the guest wants to write, when
//! a brick goes and when it comes back.
//!
//! Events in, actions out; no socket, file or clock. Owned by the session
//! thread ([`super::runner`]), which carries the actions out. It does not
//! decide whether an image may be opened: that is [`crate::image::replica::freshness`].
//!
//! ```text
//!               write wanted,                     marks durable
//!               lock quorum held                  on a quorum
//!  Unmarked ───────────────────────► Marking ───────────────────► Dirty
//!     │  ▲                            ▲   │                         │
//!     │  │ quorum back, timed out     │   │ not on a quorum         │ our copy accused,
//!     │  └────────── Failed           │   ▼                         │ lock somebody else's
//!     │                ▲   time-out   │                             ▼
//!     └──────────────► └───────────── Stalled ◄──────────────────── (no brick held)
//!       write wanted, no lock quorum     └──────────► Stopped (from every phase)
//!
//!  Unmarked or Dirty ──unmark wanted, quorum and local brick held──► Unmarking
//!  Unmarking ──marks were removed──► Unmarked        ──nothing was changed──► as before
//! ```

use crate::image::replica::brick_set::{BrickSet, SetChange, Shape};

mod events;

pub use events::{Action, CannotUnmark, Event, GateState, Phase, StopReason};

/// The state of one session. See the module's diagram.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    shape: Shape,
    phase: Phase,
    /// Bricks on which our locks are held.
    held: BrickSet,
    /// Bricks on which marks against every peer are known to be durable.
    marked: BrickSet,
    /// The local copy carries them too, stored past its brick's process.
    local_marked: bool,
    /// Our locks were on less than a quorum at some moment since the open.
    quorum_was_lost: bool,
    /// Bricks on which our locks have been since then without a gap, as far as noticed.
    unbroken: BrickSet,
    /// The gate has been open.
    wrote: bool,
    /// Bricks that accuse the local copy of what is over; see `rejoined`.
    overruled: BrickSet,
}

impl Machine {
    /// A session that just opened with its locks on `held`.
    pub fn new(shape: Shape, held: BrickSet) -> Self {
        let quorum_was_lost = !shape.is_quorum(held);
        Self {
            shape,
            phase: Phase::Unmarked,
            held,
            marked: BrickSet::EMPTY,
            local_marked: false,
            quorum_was_lost,
            unbroken: held,
            wrote: false,
            overruled: BrickSet::EMPTY,
        }
    }

    /// Where the session stands.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The bricks on which our locks are held.
    pub fn held(&self) -> BrickSet {
        self.held
    }

    /// Marks against every peer are now stored and fsynced on `brick`, through
    /// the connection that holds our lock there.
    pub fn marked(&mut self, brick: usize) {
        if self.held.contains(brick) {
            self.marked.insert(brick);
            self.overruled.remove(brick);
        }
    }

    /// Bricks whose accusation of the local copy is known to be of what is over: it is
    /// taken off when they are marked.
    pub fn overruled(&self) -> BrickSet {
        self.overruled
    }

    /// The bricks whose marks are known to stand.
    pub fn marked_bricks(&self) -> BrickSet {
        self.marked
    }

    /// Marks against every peer are now durable on the local copy, whose brick's
    /// process is away.
    pub fn local_marked(&mut self) {
        self.local_marked = true;
    }

    /// May the guest write? The local copy's own marks are needed besides a
    /// quorum: bricks that accuse themselves are not believed by AFR's heal, and
    /// without an accuser that is believed it may choose the stale copy with the
    /// most marks as its source (`afr_selfheal_find_direction`,
    /// `afr_mark_biggest_witness_as_source`).
    fn marks_suffice(&self) -> bool {
        let local = self.local_marked || self.marked.contains(self.shape.local);
        local && self.shape.is_quorum(self.marked)
    }

    /// Must the local file be as it was? While our locks were on less than a quorum
    /// another session may have written and healed our copy; what we write ourselves
    /// hides that.
    pub fn watches_local(&self) -> bool {
        self.quorum_was_lost && !self.wrote
    }

    /// The same for a round that these bricks answer. A loss is noticed late: only
    /// those that answer, and were never lost before, show that there was none.
    pub fn compares_local(&self, answered: BrickSet) -> bool {
        let held: BrickSet = self
            .unbroken
            .iter()
            .filter(|&i| answered.contains(i))
            .collect();
        self.watches_local() || !self.wrote && !self.shape.is_quorum(held)
    }

    /// May marks be removed now? The local brick's own must be reached too, and a
    /// quorum says that no other session can be at work.
    ///
    /// # Errors
    /// Why not.
    pub fn may_unmark(&self) -> Result<(), CannotUnmark> {
        match self.phase {
            Phase::Unmarked | Phase::Dirty => {}
            _ => return Err(CannotUnmark::Busy),
        }
        if !self.shape.is_quorum(self.held) {
            Err(CannotUnmark::NoQuorum)
        } else if !self.held.contains(self.shape.local) {
            Err(CannotUnmark::LocalAway)
        } else {
            Ok(())
        }
    }

    /// Takes an event in; what to do comes out, to be done in this order. An action that is
    /// not carried out leaves the gate as it was before the event.
    #[must_use = "what is not carried out leaves the gate open, or nobody waiting"]
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        if matches!(self.phase, Phase::Stopped(_)) {
            return Vec::new();
        }
        match event {
            Event::WriteWanted => self.write_wanted(),
            Event::MarkRoundOver => self.mark_round_over(),
            Event::MarkAgain => self.mark_again(),
            Event::MarksGone { on } => self.marks_gone(on),
            Event::LocalAccused { by } => self.stop(StopReason::CopyAccused { by }),
            Event::Lost(brick) => self.lost(brick),
            Event::Rejoined {
                brick,
                marks_stand,
                local_accused_by,
                local_untouched,
            } => match local_accused_by {
                Some(by) if by == brick && !self.quorum_was_lost => {
                    self.overruled.insert(brick);
                    let mut actions = self.rejoined(brick, false, local_untouched);
                    actions.extend(self.write_wanted());
                    actions
                }
                Some(by) => self.stop(StopReason::CopyAccused { by }),
                None => self.rejoined(brick, marks_stand, local_untouched),
            },
            Event::SetChanged(change) => self.set_changed(change),
            Event::TakenByOther { brick, accused } => self.taken_by_other(brick, accused),
            Event::StoppedElsewhere(reason) => {
                self.phase = Phase::Stopped(reason);
                vec![Action::SetGate(GateState::FailAll)]
            }
            Event::LocalChanged => self.stop(StopReason::ChangedUnderneath),
            Event::QuorumTimeout => self.quorum_timeout(),
            Event::UnmarkBegun => self.unmark_begun(),
            Event::UnmarkOver { changed } => self.unmark_over(changed),
        }
    }

    fn write_wanted(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Unmarked if self.shape.is_quorum(self.held) => self.start_marking(),
            Phase::Unmarked => {
                self.phase = Phase::Stalled;
                vec![Action::StartQuorumTimer]
            }
            _ => Vec::new(),
        }
    }

    fn start_marking(&mut self) -> Vec<Action> {
        self.phase = Phase::Marking;
        self.local_marked = false;
        vec![Action::Mark(self.held)]
    }

    fn mark_round_over(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Marking if self.marks_suffice() => {
                self.phase = Phase::Dirty;
                self.wrote = true;
                let mut actions = vec![Action::StopQuorumTimer, Action::SetGate(GateState::Open)];
                let late = self.held.without(self.marked);
                if !late.is_empty() {
                    actions.push(Action::Mark(late));
                }
                actions
            }
            Phase::Marking => {
                self.phase = Phase::Stalled;
                vec![Action::StartQuorumTimer]
            }
            _ => Vec::new(),
        }
    }

    /// What somebody else marked becomes dirty in the round, and gets this session's marks:
    /// so they can go once it is healed.
    fn mark_again(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Dirty => vec![Action::Mark(self.held)],
            Phase::Unmarked => self.write_wanted(),
            _ => Vec::new(),
        }
    }

    /// Writes go on only while enough marks are known to stand. Those of bricks that are
    /// away do: nobody heals, and so nobody removes marks, while we hold a brick.
    fn marks_gone(&mut self, on: usize) -> Vec<Action> {
        self.marked.remove(on);
        match self.phase {
            Phase::Dirty if self.marks_suffice() => vec![Action::Mark(self.held)],
            Phase::Dirty => {
                let mut actions = vec![Action::SetGate(GateState::Hold)];
                actions.extend(self.start_marking());
                actions
            }
            _ => Vec::new(),
        }
    }

    fn lost(&mut self, brick: usize) -> Vec<Action> {
        self.held.remove(brick);
        self.unbroken.remove(brick);
        self.overruled.remove(brick);
        // Before the gate is open, a mark counts only while the lock under which
        // it was stored is held: whoever had the lock since may have removed it.
        if !matches!(
            self.phase,
            Phase::Dirty | Phase::Unmarking { was_dirty: true }
        ) {
            self.marked.remove(brick);
        }
        if !self.shape.is_quorum(self.held) {
            self.quorum_was_lost = true;
        }
        if self.phase == Phase::Dirty && self.held.is_empty() {
            return self.unguarded();
        }
        Vec::new()
    }

    /// Dirty, and no heal lock is held anywhere: as soon as the bricks are back,
    /// stock Gluster may heal underneath us and remove the marks (AFR heals under
    /// the locks of all bricks, so one that is ours prevents it). Writes wait
    /// until the marks are known to stand again.
    ///
    /// Another session may even write and heal our copy meanwhile: the file is watched
    /// from now on, as before the first write.
    fn unguarded(&mut self) -> Vec<Action> {
        self.phase = Phase::Stalled;
        self.marked = BrickSet::EMPTY;
        self.local_marked = false;
        self.wrote = false;
        vec![
            Action::SetGate(GateState::Hold),
            Action::WatchLocal,
            Action::StartQuorumTimer,
        ]
    }

    /// A brick that alone accuses the local copy, while we hold a quorum without a gap
    /// since the open and no brick of it says so: whoever wrote to another copy would have
    /// marked a quorum, and the two have a brick in common. What it says was left behind:
    /// by a session that never got so far as to write, or by a removal of marks that it
    /// missed or lost in a power cut. To stop for it would leave the choice to stock
    /// Gluster, which may then take a stale copy (`afr_mark_biggest_witness_as_source`).
    fn rejoined(&mut self, brick: usize, marks_stand: bool, local_untouched: bool) -> Vec<Action> {
        if self.watches_local() && !local_untouched {
            return self.stop(StopReason::ChangedUnderneath);
        }
        self.held.insert(brick);
        if !marks_stand {
            self.marked.remove(brick);
        }
        let mut actions = vec![Action::Publish(brick)];
        match self.phase {
            // To overrule it, all the others are asked.
            Phase::Dirty if self.overruled.contains(brick) => actions.push(Action::Mark(self.held)),
            Phase::Dirty if !self.marked.contains(brick) => {
                actions.push(Action::Mark(BrickSet::only(brick)))
            }
            _ => actions.extend(self.go_on_with_quorum()),
        }
        actions
    }

    /// From now on a quorum is one of the set as it is: else a session that is cut off, and
    /// whoever opens the image with the bricks that came, could both have one. What the marks
    /// of a session that writes already stand on does not change by it.
    fn set_changed(&mut self, change: SetChange) -> Vec<Action> {
        self.shape.since = change;
        self.quorum_was_lost |= !self.shape.is_quorum(self.held);
        self.go_on_with_quorum()
    }

    /// Writes that wait, or fail, for a quorum, if there is one.
    fn go_on_with_quorum(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Stalled if self.shape.is_quorum(self.held) => self.start_marking(),
            Phase::Failed if self.shape.is_quorum(self.held) => {
                self.phase = Phase::Unmarked;
                vec![Action::SetGate(GateState::Hold)]
            }
            _ => Vec::new(),
        }
    }

    /// The other one may have begun after us, and then we are over. Not while we hold a
    /// quorum: then it is the minority and gives way. Nor while our marks stand on a
    /// quorum and some brick is held, so that nobody heals: whoever wants to open
    /// another copy meets one that accuses it. Then the other one is older, and mostly
    /// dead, its lock kept by a brick that has not noticed yet. But a promotion opens a
    /// copy in spite of marks; then every brick accuses ours.
    fn taken_by_other(&mut self, brick: usize, accused: bool) -> Vec<Action> {
        let marked = matches!(
            self.phase,
            Phase::Dirty | Phase::Unmarking { was_dirty: true }
        );
        if self.shape.is_quorum(self.held) || marked && !accused {
            // The brick's worker keeps trying.
            return Vec::new();
        }
        self.stop(StopReason::LockTaken { on: brick })
    }

    fn quorum_timeout(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Stalled => {
                self.phase = Phase::Failed;
                vec![Action::SetGate(GateState::FailWrites)]
            }
            _ => Vec::new(),
        }
    }

    fn unmark_begun(&mut self) -> Vec<Action> {
        if self.may_unmark().is_err() {
            return Vec::new();
        }
        let was_dirty = self.phase == Phase::Dirty;
        self.phase = Phase::Unmarking { was_dirty };
        vec![Action::SetGate(GateState::Hold)]
    }

    /// After a change nothing is known of the marks: the next write stores them anew.
    /// It also is a new beginning for what may be found written behind our back.
    fn unmark_over(&mut self, changed: bool) -> Vec<Action> {
        let Phase::Unmarking { was_dirty } = self.phase else {
            return Vec::new();
        };
        if was_dirty && !changed {
            self.phase = Phase::Dirty;
            return match self.held.is_empty() {
                true => self.unguarded(),
                false => vec![Action::SetGate(GateState::Open)],
            };
        }
        self.phase = Phase::Unmarked;
        if changed {
            self.marked = BrickSet::EMPTY;
            self.local_marked = false;
            self.wrote = false;
            self.quorum_was_lost = !self.shape.is_quorum(self.held);
            self.unbroken = self.held;
        }
        // A write may have come to the held gate meanwhile.
        vec![Action::SetGate(GateState::Hold)]
    }

    fn stop(&mut self, reason: StopReason) -> Vec<Action> {
        self.phase = Phase::Stopped(reason);
        vec![Action::SetGate(GateState::FailAll), Action::Stop(reason)]
    }
}

#[cfg(test)]
mod tests;
