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
use crate::image::layout::{FileIndex, Layout};
use crate::image::local::{Durability, Fingerprint};
use crate::image::replica::brick_port::{CopyState, Fence, PortError, Publication, merged};
use crate::image::replica::brick_set::{BrickSet, Shape, VolumeChange};
use crate::image::replica::brick_worker::Worker;
use crate::image::replica::data_lock::wait;
use crate::image::replica::missed_writes::MissedWrites;
use crate::image::replica::names::Names;
use crate::image::replica::session_lock::Claim;
use crate::image::scheduler::Scheduler;

use super::bell::Bell;
use super::ending::{Ending, Parting};
use super::error::stop_message;
use super::fencing;
use super::input::Input;
use super::snapshot::{CopySnapshot, FilesSnapshot, Snapshot};
use super::state_machine::{Action, Event, GateState, Phase, StopReason};
use super::write_gate::WriteGate;

mod brick_news;
mod broken;
mod cooling;
mod files;
mod growing;
mod healing;
mod keeping;
mod looking;
mod pinning;
mod rounds;
mod settling;
mod syncing;
mod unmarking;

pub use files::FileReplica;

/// The thread's state.
pub struct Runner {
    /// Each file of the image, in the layout's order.
    pub files: Vec<FileReplica>,
    /// Which they are.
    pub layout: Layout,
    /// Who the session is.
    pub claim: Claim,
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
    /// See [`super::terms::Terms::hot_files`].
    pub hot_files: usize,
    /// The session never writes.
    pub read_only: bool,
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
    /// When it was last looked whether files are quiet, by the same clock.
    pub cooled_at: Duration,
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
    /// How the volume has changed since the session was opened, as last heard.
    pub volume: VolumeChange,
    /// The session has ended by itself.
    pub stopped: bool,
    /// Fence and locks are given back.
    pub given_back: bool,
}

/// A gate that tells the session's thread when a write wants to get through, or a flush failed.
pub fn gate_over(
    layout: &Layout,
    map: Option<Arc<DirtyMap>>,
    durability: Arc<Durability>,
    inbox: &Sender<Input>,
) -> WriteGate {
    let (wanted, failed) = (inbox.clone(), inbox.clone());
    // To a session that is over neither makes a difference.
    let gate = WriteGate::over_files(layout, map, move |file| {
        let _ = wanted.send(Input::WriteWanted(file));
    });
    gate.over(durability, move || {
        let _ = failed.send(Input::SyncFailed);
    })
}

impl Runner {
    fn run_until_closed(&mut self, events: &Receiver<Input>) -> Ending {
        if !self.layout.is_whole() {
            (0..self.shape.bricks).for_each(|brick| self.show(brick));
        }
        self.mark_debt();
        self.update_snapshot();
        loop {
            let now = self.threads.now();
            let limit = self.next_due().map(|end| end.saturating_sub(now));
            match self.threads.receive(events, limit) {
                Ok(Input::Brick(brick, report)) => self.heard(brick, report),
                Ok(Input::WriteWanted(file)) => self.take(file, Event::WriteWanted),
                // What there is to do about it is done below.
                Ok(Input::SyncFailed) => {}
                Ok(Input::MarkAgain) => self.mark_again(),
                Ok(Input::VolumeChanged(change)) => self.volume_changed(change),
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
                Ok(Input::Grow {
                    to,
                    insist,
                    extend,
                    answer,
                }) => {
                    let _ = answer.send(self.grow(to, insist, extend));
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
                            let left = self.fingerprint();
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
        if let Err(error) = self.sync_all() {
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

    /// The same for every file.
    fn take_all(&mut self, event: Event) {
        for file in self.layout.files() {
            self.take(file, event);
        }
    }

    /// A healer misses a mark of some file's.
    fn mark_again(&mut self) {
        for file in self.layout.files() {
            if self.layout.is_whole() || self.phase(file) == &Phase::Dirty {
                self.take(file, Event::MarkAgain);
            }
        }
        self.mark_debt();
    }

    /// The one way to tell a file's machine what happened: what it wants is done before
    /// anything else happens, also where an action has events of its own.
    fn take(&mut self, file: FileIndex, event: Event) {
        for action in self.file_mut(file).machine.step(event) {
            match action {
                Action::SetGate(state) => self.set_gate(file, state),
                Action::Publish(brick) if file == FileIndex::BASE => self.publish(brick),
                Action::Publish(_) => {}
                Action::Mark(bricks) => self.mark(file, bricks),
                Action::WatchLocal => self.watch_local(file),
                Action::StartQuorumTimer => self.start_quorum_timer(),
                Action::StopQuorumTimer => {
                    let waits = |file: &FileReplica| file.machine.phase() == &Phase::Stalled;
                    if !self.files.iter().any(waits) {
                        self.quorum_deadline = None;
                    }
                }
                Action::Stop(reason) => self.stop(reason),
            }
        }
    }

    fn start_quorum_timer(&mut self) {
        if self.quorum_deadline.is_none() {
            let timeout = self.quorum_timeout;
            log::warn!(
                "no quorum to store the marks: the guest's writes wait, and fail after {}",
                humantime::format_duration(timeout)
            );
            self.quorum_deadline = Some(self.threads.now() + timeout);
        }
    }

    /// What ends the session for one file ends it for all.
    fn stop(&mut self, reason: StopReason) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        log::error!("{}", stop_message(reason, &self.names));
        (self.on_stop)(reason);
        self.take_all(Event::StoppedElsewhere(reason));
        self.let_go("the session has stopped");
    }

    fn set_gate(&self, file: FileIndex, state: GateState) {
        match state {
            GateState::Open if !self.layout.is_whole() => {
                log::debug!("shard {}: marks are stored on a quorum", file.0)
            }
            GateState::Open => log::info!("marks are stored on a quorum: the guest's writes go on"),
            GateState::Hold => {
                log::debug!("the guest's writes wait; the next one stores the marks")
            }
            GateState::FailWrites => {
                log::error!("still no quorum: the guest's writes fail until it is back")
            }
            GateState::FailAll if self.stopped => {}
            GateState::FailAll => log::error!("every request of the guest fails from now on"),
        }
        self.gate.load().set_file(file, state);
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
        self.lost(brick);
        if let Some(worker) = self.workers.get(brick) {
            worker.drop_connection(format!("{what} failed: {error}"));
        }
    }

    fn note_copies(&mut self, file: FileIndex, copies: Vec<(usize, CopyState)>, unsure: BrickSet) {
        for (brick, copy) in copies {
            let pending = (!unsure.contains(brick)).then_some(copy.pending);
            self.saw(file, brick, pending);
        }
    }

    /// A file's counters on a brick were just read, or a change of them was not answered.
    fn saw(&mut self, file: FileIndex, brick: usize, pending: Option<Vec<i32>>) {
        self.know(file, brick, pending);
        self.show(brick);
    }

    fn know(&mut self, file: FileIndex, brick: usize, pending: Option<Vec<i32>>) {
        if let Some(known) = self.file_mut(file).known.get_mut(brick) {
            *known = pending;
        }
    }

    /// What a brick says, for the status.
    fn show(&self, brick: usize) {
        let rows = self.files.iter().filter_map(|file| file.known.get(brick));
        let rows = rows.map(|row| row.as_deref());
        let known = rows.collect::<Option<Vec<_>>>();
        let merged = known.map(|rows| merged(rows.into_iter()));
        self.note(brick, |copy| copy.saw(merged));
    }

    fn note(&self, brick: usize, change: impl FnOnce(&mut CopySnapshot)) {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(copy) = snapshot.copies.get_mut(brick) {
            change(copy);
        }
    }

    /// Of the local copy as it is left.
    fn fingerprint(&self) -> Option<Fingerprint> {
        let each = self.files.iter().map(|file| file.local.fingerprint());
        each.collect::<Option<Vec<_>>>().map(Fingerprint::combined)
    }

    fn files_snapshot(&self) -> FilesSnapshot {
        let marked = |file: &FileIndex| {
            let file = self.file(*file);
            file.machine.phase() != &Phase::Unmarked || file.is_accused()
        };
        FilesSnapshot {
            count: self.files.len(),
            piece: self.layout.piece(),
            marked: self.layout.files().filter(marked).collect(),
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
        let phases = self.files.iter().map(|file| file.machine.phase());
        let phase = phases.max_by_key(|phase| weight(phase)).cloned();
        let files = (!self.layout.is_whole()).then(|| self.files_snapshot());
        let mut snapshot = self.snapshot.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(phase) = phase {
            snapshot.phase = phase;
        }
        snapshot.files = files;
        drop(snapshot);
        self.bell.ring();
    }

    /// Gives everything back and joins no brick again: the fence first, so that
    /// it never outlives its lock. Whoever has the image now must find it free.
    fn let_go(&mut self, why: &str) {
        self.given_back = true;
        if self.fence == Fence::Mandatory {
            fencing::lift(&self.workers, self.held());
        }
        let asked: Vec<_> = self.workers.iter().map(Worker::retire).collect();
        for (brick, answer) in asked.into_iter().enumerate() {
            self.note(brick, |copy| {
                copy.locked = false;
                copy.why_away = Some(why.to_owned());
            });
            if self.held().contains(brick) {
                // Only the waiting matters; a worker that is gone holds nothing.
                let _ = answer.wait();
            }
        }
    }
}

/// Of several files that stand in different places the status tells the one that matters most.
fn weight(phase: &Phase) -> u8 {
    match phase {
        Phase::Unmarked => 0,
        Phase::Unmarking { was_dirty: false } => 1,
        Phase::Unmarking { was_dirty: true } => 2,
        Phase::Dirty => 3,
        Phase::Marking => 4,
        Phase::Stalled => 5,
        Phase::Failed => 6,
        Phase::Stopped(_) => 7,
    }
}

#[cfg(test)]
mod tests;
