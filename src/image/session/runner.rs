//! The session's thread: the only owner of the [`Machine`].
//!
//! It turns what workers and queues report into the machine's events, and the
//! machine's actions into work. Started by [`super::life`]; ends with it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::image::dirty_map::{DirtyMap, ExtentSize};
use crate::image::error_chain::chain;
use crate::image::local::{CopyWatch, Durability};
use crate::image::replica::brick_port::{CopyState, Fence, PortError, Publication};
use crate::image::replica::brick_set::{BrickSet, Shape};
use crate::image::replica::brick_worker::{BrickReport, Worker};
use crate::image::replica::data_lock::wait;
use crate::image::replica::missed_writes::MissedWrites;
use crate::image::replica::names::Names;
use crate::image::scheduler::Scheduler;

use super::bell::Bell;
use super::ending::{Ending, Parting};
use super::error::stop_message;
use super::fencing;
use super::input::Input;
use super::snapshot::{CopySnapshot, Snapshot};
use super::state_machine::{Action, Event, GateState, Machine, StopReason};
use super::write_gate::WriteGate;

mod broken;
mod growing;
mod healing;
mod keeping;
mod looking;
mod rounds;
mod settling;
mod syncing;

/// The thread's state.
pub struct Runner {
    /// The decisions.
    pub machine: Machine,
    /// The replica set.
    pub shape: Shape,
    /// Its bricks' names.
    pub names: Names,
    /// Its bricks' workers, in child order.
    pub workers: Vec<Worker>,
    /// What the guest's requests meet: another one when the image has grown.
    pub gate: Arc<ArcSwap<WriteGate>>,
    /// The thread's own, for gates.
    pub inbox: Sender<Input>,
    /// How finely the dirty map counts, if the operator chose.
    pub extent_size: Option<ExtentSize>,
    /// The fence that was published at open.
    pub fence: Fence,
    /// The session never writes.
    pub read_only: bool,
    /// The local file.
    pub local: Box<dyn CopyWatch>,
    /// What the peers miss. Absent in a read-only session.
    pub debt: Option<MissedWrites>,
    /// What is known of the local copy's syncs, the guest's among them.
    pub durability: Arc<Durability>,
    /// The next session will know of the one that failed.
    pub sync_failure_noted: bool,
    /// How long a first write may wait for a quorum.
    pub quorum_timeout: Duration,
    /// Bricks whose marks were read in this session.
    pub reached: BrickSet,
    /// When it has waited for that long, by the clock of `threads`.
    pub quorum_deadline: Option<Duration>,
    /// When the bricks were last looked at, by the same clock.
    pub looked_at: Duration,
    /// A brick said since that somebody wants a lock of this session's.
    pub contended: bool,
    /// Locks were taken away, and marks are not known to stand since.
    pub robbed: bool,
    /// For waiting.
    pub threads: Scheduler,
    /// For the status.
    pub snapshot: Arc<Mutex<Snapshot>>,
    /// Rung whenever that, or the dirty map but for the guest's writes, may have changed.
    pub bell: Arc<Bell>,
    /// Told when the session ends by itself.
    pub on_stop: Box<dyn Fn(StopReason) + Send>,
    /// Told how it ends, before its locks go.
    pub on_end: Box<dyn Fn(Parting, Ending) + Send>,
    /// Told when a brick that was away is back.
    pub on_return: Box<dyn Fn() + Send>,
    /// Fence and locks are given back.
    pub given_back: bool,
}

/// A gate that tells the session's thread when a write wants to get through, or a flush failed.
pub fn gate_over(
    map: Option<Arc<DirtyMap>>,
    durability: Arc<Durability>,
    inbox: &Sender<Input>,
) -> WriteGate {
    let tell = |input: fn() -> Input| {
        let inbox = inbox.clone();
        move || {
            // To a session that is over it makes no difference.
            let _ = inbox.send(input());
        }
    };
    let gate = WriteGate::new(map, tell(|| Input::WriteWanted));
    gate.over(durability, tell(|| Input::SyncFailed))
}

impl Runner {
    fn run_until_closed(&mut self, events: &Receiver<Input>) -> Ending {
        self.mark_debt();
        self.update_snapshot();
        loop {
            let now = self.threads.now();
            let limit = self.next_due().map(|end| end.saturating_sub(now));
            match self.threads.receive(events, limit) {
                Ok(Input::Brick(brick, report)) => self.heard(brick, report),
                Ok(Input::WriteWanted) => self.take(Event::WriteWanted),
                // What there is to do about it is done below.
                Ok(Input::SyncFailed) => {}
                Ok(Input::MarkAgain) => self.take(Event::MarkAgain),
                Ok(Input::SetChanged(change)) => {
                    self.shape.since = change;
                    self.take(Event::SetChanged(change));
                }
                Ok(Input::Unmark { despite, answer }) => {
                    let unmarked = self.unmark(despite);
                    // Whoever asked may have given up waiting.
                    let _ = answer.send(unmarked);
                }
                Ok(Input::Repair {
                    peer,
                    ranges,
                    answer,
                }) => {
                    let _ = answer.send(self.repair(peer, &ranges));
                }
                Ok(Input::Grow { to, insist, answer }) => {
                    let _ = answer.send(self.grow(to, insist));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Input::HandOver(to, answer)) => {
                    let settled = match self.secure_marks(events) {
                        true => self.settle_held(to),
                        false => Err("its locks were taken away".to_owned()),
                    };
                    match settled {
                        Ok(ending) => {
                            self.update_snapshot();
                            // Nobody else can write to it before the locks are given back.
                            let left = self.local.fingerprint();
                            self.let_go_of_all(Parting::HandedOver, ending);
                            let _ = answer.send(Ok(left));
                            return ending;
                        }
                        Err(why) => {
                            let _ = answer.send(Err(why));
                        }
                    }
                }
                Ok(Input::Keep(answer)) => self.rest(&answer),
                Ok(Input::Close) | Err(RecvTimeoutError::Disconnected) => break,
            }
            self.do_what_is_due();
            self.note_sync_failure();
            self.update_snapshot();
        }
        self.secure_marks(events);
        let ending = self.settle();
        self.let_go_of_all(Parting::Closed, ending);
        ending
    }

    fn let_go_of_all(&mut self, parting: Parting, ending: Ending) {
        if let Err(error) = self.sync_local() {
            log::error!(
                "the dirty map is not closed as one to trust: {}",
                chain(&error)
            );
        }
        if let Some(debt) = &self.debt
            && let Err(error) = debt.close()
        {
            log::error!("{}", chain(&error));
        }
        (self.on_end)(parting, ending);
        self.let_go("the session is closed");
    }

    fn heard(&mut self, brick: usize, report: BrickReport) {
        let name = self.names.one(brick);
        match report {
            BrickReport::Lost(why) => {
                log::warn!("brick {name} lost: {why}");
                self.note(brick, |copy| {
                    copy.locked = false;
                    copy.why_away = Some(why);
                });
                self.take(Event::Lost(brick));
                if let Some(worker) = self.workers.get(brick) {
                    worker.loss_heard();
                }
            }
            BrickReport::Waiting(why) => {
                log::info!("brick {name} not joined yet: {why}");
                self.note(brick, |copy| copy.why_away = Some(why));
            }
            BrickReport::HealInTheWay => self.turn_heals_away(),
            BrickReport::Contended => self.contended = true,
            BrickReport::TakenByOther { holder, accuses } => {
                log::warn!("brick {name} is back, but locked by another session: {holder}");
                self.note(brick, |copy| {
                    copy.why_away = Some(format!("locked by {holder}"))
                });
                let accused = accuses.is_some_and(|accuses| accuses.contains(self.shape.local));
                self.take(Event::TakenByOther { brick, accused });
            }
            BrickReport::Rejoined(copy) => self.rejoined(brick, copy),
        }
    }

    fn rejoined(&mut self, brick: usize, copy: CopyState) {
        log::info!("brick {} is back and locked", self.names.one(brick));
        (self.on_return)();
        let accuses = copy.accuses();
        let marks_stand = self.debt.as_ref().is_none_or(|debt| debt.stands_on(&copy));
        self.reached.insert(brick);
        self.check_size(brick, &copy);
        self.note(brick, |known| {
            known.locked = true;
            known.why_away = None;
            known.saw(Some(copy.pending));
        });
        let accused = accuses.contains(self.shape.local);
        // Another brick's word counts more: it was not away.
        let local_accused_by = self.accuser_among_held().or(accused.then_some(brick));
        let local_untouched = self.local.is_untouched();
        self.take(Event::Rejoined {
            brick,
            marks_stand,
            local_accused_by,
            local_untouched,
        });
        self.mark_debt();
    }

    /// Marks can change on a brick that never went away, while another one did.
    fn accuser_among_held(&mut self) -> Option<usize> {
        let copies = self.read_held().into_iter();
        let mut accusers = copies.filter(|(_, copy)| copy.accuses().contains(self.shape.local));
        accusers.next().map(|(brick, _)| brick)
    }

    /// The one way to tell the machine what happened: what it wants is done before
    /// anything else happens, also where an action has events of its own.
    fn take(&mut self, event: Event) {
        for action in self.machine.step(event) {
            match action {
                Action::SetGate(state) => self.set_gate(state),
                Action::Publish(brick) => self.publish(brick),
                Action::Mark(bricks) => self.mark(bricks),
                Action::WatchLocal => self.watch_local(),
                Action::StartQuorumTimer => {
                    let timeout = self.quorum_timeout;
                    log::warn!(
                        "no quorum to store the marks: the guest's writes wait, and fail after {}",
                        humantime::format_duration(timeout)
                    );
                    self.quorum_deadline
                        .get_or_insert(self.threads.now() + timeout);
                }
                Action::StopQuorumTimer => self.quorum_deadline = None,
                Action::Stop(reason) => {
                    log::error!("{}", stop_message(reason, &self.names));
                    (self.on_stop)(reason);
                    self.let_go("the session has stopped");
                }
            }
        }
    }

    fn set_gate(&self, state: GateState) {
        match state {
            GateState::Open => log::info!("marks are stored on a quorum: the guest's writes go on"),
            GateState::Hold => {
                log::debug!("the guest's writes wait; the next one stores the marks")
            }
            GateState::FailWrites => {
                log::error!("still no quorum: the guest's writes fail until it is back")
            }
            GateState::FailAll => log::error!("every request of the guest fails from now on"),
        }
        self.gate.load().set(state);
    }

    fn publish(&mut self, brick: usize) {
        let (fence, read_only) = (self.fence, self.read_only);
        let Some(worker) = self.workers.get(brick) else {
            return;
        };
        let name = self.names.one(brick);
        match wait(worker.ask(move |port| port.publish(fence, read_only))) {
            Ok(Publication::Done) => {}
            Ok(Publication::FenceUnavailable) => {
                log::warn!(
                    "brick {name} came back without mandatory fencing; other clients are not refused there"
                );
            }
            Ok(Publication::InUse(conflict)) => {
                log::warn!("brick {name} came back with the image in use there by {conflict}");
            }
            Err(error) => worker.drop_connection(format!("publishing our record failed: {error}")),
        }
    }

    /// A brick in a state that nobody knows: its connection goes, its locks with it.
    fn give_up(&mut self, brick: usize, what: &str, error: &PortError) {
        self.note_brick_sync(brick, error);
        log::warn!("{what} failed on brick {}: {error}", self.names.one(brick));
        if matches!(error, PortError::LockGone(_)) {
            self.note_robbed();
        }
        self.take(Event::Lost(brick));
        if let Some(worker) = self.workers.get(brick) {
            worker.drop_connection(format!("{what} failed: {error}"));
        }
    }

    fn note_copies(&self, copies: Vec<(usize, CopyState)>, unsure: BrickSet) {
        for (brick, copy) in copies {
            let pending = (!unsure.contains(brick)).then_some(copy.pending);
            self.note(brick, |known| known.saw(pending));
        }
    }

    fn note(&self, brick: usize, change: impl FnOnce(&mut CopySnapshot)) {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(copy) = snapshot.copies.get_mut(brick) {
            change(copy);
        }
    }

    /// No write gets through now: whoever misses nothing will miss nothing older.
    fn note_clean(&self) {
        let Some(debt) = &self.debt else { return };
        let clean = self.shape.peers().without(debt.behind());
        let mut snapshot = self.snapshot.lock().unwrap_or_else(|e| e.into_inner());
        snapshot.clean_before_writes = Some((Instant::now(), clean));
    }

    fn update_snapshot(&self) {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(|e| e.into_inner());
        snapshot.phase = self.machine.phase().clone();
        drop(snapshot);
        self.bell.ring();
    }

    /// Gives everything back and joins no brick again: the fence first, so that
    /// it never outlives its lock. Whoever has the image now must find it free.
    fn let_go(&mut self, why: &str) {
        self.given_back = true;
        if self.fence == Fence::Mandatory {
            fencing::lift(&self.workers, self.machine.held());
        }
        let asked: Vec<_> = self.workers.iter().map(Worker::retire).collect();
        for (brick, answer) in asked.into_iter().enumerate() {
            self.note(brick, |copy| {
                copy.locked = false;
                copy.why_away = Some(why.to_owned());
            });
            if self.machine.held().contains(brick) {
                // Only the waiting matters; a worker that is gone holds nothing.
                let _ = answer.wait();
            }
        }
    }
}

#[cfg(test)]
mod tests;
