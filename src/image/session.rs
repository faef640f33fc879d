//! A session: one image, opened by one daemon, until it is closed or stops.
//!
//! [`Session::open`] brings it up; from then on its thread is the only owner of
//! the [`Machine`], and turns what workers and queues report into events, and
//! the machine's actions into work. It serves no I/O: the guest's requests meet
//! only the [`WriteGate`].

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::bricks::Shape;
use super::error::{Names, OpenError, stop_message};
use super::gate::WriteGate;
use super::holder::Holder;
use super::local::{Fingerprint, LocalFile};
use super::locking::Claim;
use super::machine::{Action, Event, GateState, Machine, Phase, StopReason};
use super::marking::{self, wait};
use super::open::{self, Opened, Terms};
use super::port::{BrickPort, CopyState, Fence, Publication};
use super::snapshot::{CopySnapshot, Snapshot};
use super::worker::{Report, Worker};

/// What a session needs to begin.
pub struct Setup {
    /// The replica set.
    pub shape: Shape,
    /// Its bricks' names, in child order.
    pub names: Names,
    /// Its bricks, in child order.
    pub ports: Vec<Box<dyn BrickPort>>,
    /// Who we are.
    pub me: Holder,
    /// How to open.
    pub terms: Terms,
    /// How long a first write waits for a quorum before it fails.
    pub quorum_timeout: Duration,
}

enum Input {
    Brick(usize, Report),
    WriteWanted,
    Close,
}

/// A running session.
pub struct Session {
    inbox: Sender<Input>,
    gate: Arc<WriteGate>,
    snapshot: Arc<Mutex<Snapshot>>,
    thread: Option<JoinHandle<()>>,
}

impl Session {
    /// Opens the image. `open_local` opens the local copy once it is known to be
    /// fresh; `on_stop` is called, from the session's thread, if the session
    /// later ends by itself.
    ///
    /// # Errors
    /// Whatever forbids it; every lock is then given back.
    pub fn open(
        setup: Setup,
        cancelled: &AtomicBool,
        open_local: impl FnOnce(&CopyState) -> Result<LocalFile, super::error::LocalError>,
        on_stop: impl Fn(StopReason) + Send + 'static,
    ) -> Result<(Self, LocalFile), OpenError> {
        let Setup {
            shape,
            names,
            ports,
            me,
            terms,
            quorum_timeout,
        } = setup;
        let claim = Claim {
            session: me.session,
            read_only: terms.read_only,
        };
        let (inbox, events) = mpsc::channel();
        let workers = start_workers(&names, ports, claim, &inbox)?;
        let opened = open::open(&shape, &names, &workers, claim, &terms, cancelled)?;
        let local = open_local(&opened.local)?;
        let watched = local
            .file
            .try_clone()
            .and_then(|file| Ok((Fingerprint::of(&file)?, file)));
        let (baseline, file) = watched.map_err(|source| super::error::LocalError::Io {
            what: "stat",
            path: local.path.clone(),
            source,
        })?;

        let wanted = inbox.clone();
        let gate = Arc::new(WriteGate::new(move || {
            let _ = wanted.send(Input::WriteWanted);
        }));
        for (brick, worker) in workers.iter().enumerate() {
            worker.watch(opened.held.contains(brick));
        }
        let snapshot = Arc::new(Mutex::new(first_snapshot(
            &names,
            &opened,
            &me,
            terms.read_only,
        )));
        let runner = Runner {
            machine: Machine::new(shape, opened.held),
            shape,
            names,
            workers,
            gate: gate.clone(),
            fence: opened.fence,
            read_only: terms.read_only,
            untouched: Box::new(move || Fingerprint::of(&file).is_ok_and(|now| now == baseline)),
            quorum_timeout,
            quorum_deadline: None,
            snapshot: snapshot.clone(),
            on_stop: Box::new(on_stop),
        };
        let thread = std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || runner.run(&events))
            .map_err(|source| OpenError::Thread {
                brick: "session".to_owned(),
                source,
            })?;
        Ok((
            Self {
                inbox,
                gate,
                snapshot,
                thread: Some(thread),
            },
            local,
        ))
    }

    /// The gate to give to the device.
    pub fn gate(&self) -> Arc<WriteGate> {
        self.gate.clone()
    }

    /// A way to see the session's state from another thread.
    pub fn watch(&self) -> SessionWatch {
        SessionWatch {
            snapshot: self.snapshot.clone(),
            gate: self.gate.clone(),
        }
    }

    /// Ends the session: lifts the fence and gives the locks back. The device
    /// must be drained before.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.inbox.send(Input::Close);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the session's thread panicked");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

/// See [`Session::watch`].
#[derive(Clone)]
pub struct SessionWatch {
    snapshot: Arc<Mutex<Snapshot>>,
    gate: Arc<WriteGate>,
}

impl SessionWatch {
    /// The state as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = self
            .snapshot
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .clone();
        snapshot.write_waiting = self.gate.is_wanted();
        snapshot
    }
}

fn start_workers(
    names: &Names,
    ports: Vec<Box<dyn BrickPort>>,
    claim: Claim,
    inbox: &Sender<Input>,
) -> Result<Vec<Worker>, OpenError> {
    let start = |(brick, port)| {
        let inbox = inbox.clone();
        let report = move |report| {
            // A session that is over wants no reports.
            let _ = inbox.send(Input::Brick(brick, report));
        };
        Worker::start(&format!("brick-{brick}"), port, claim, report).map_err(|source| {
            OpenError::Thread {
                brick: names.one(brick),
                source,
            }
        })
    };
    ports.into_iter().enumerate().map(start).collect()
}

fn first_snapshot(names: &Names, opened: &Opened, me: &Holder, read_only: bool) -> Snapshot {
    let copy = |(brick, name): (usize, &String)| CopySnapshot {
        brick: name.clone(),
        locked: opened.held.contains(brick),
        why_away: opened
            .away
            .iter()
            .find(|(b, _)| *b == brick)
            .map(|(_, why)| why.clone()),
        pending: opened
            .copies
            .get(brick)
            .cloned()
            .flatten()
            .map(|copy| copy.pending),
    };
    Snapshot {
        phase: Phase::Unmarked,
        read_only,
        fence: opened.fence,
        holder: me.clone(),
        copies: names.0.iter().enumerate().map(copy).collect(),
        write_waiting: false,
    }
}

struct Runner {
    machine: Machine,
    shape: Shape,
    names: Names,
    workers: Vec<Worker>,
    gate: Arc<WriteGate>,
    fence: Fence,
    read_only: bool,
    /// Is the local file as it was at open?
    untouched: Box<dyn Fn() -> bool + Send>,
    quorum_timeout: Duration,
    quorum_deadline: Option<Instant>,
    snapshot: Arc<Mutex<Snapshot>>,
    on_stop: Box<dyn Fn(StopReason) + Send>,
}

impl Runner {
    fn run(mut self, events: &Receiver<Input>) {
        loop {
            let input = match self.quorum_deadline {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(end) => events.recv_timeout(end.saturating_duration_since(Instant::now())),
            };
            match input {
                Ok(Input::Brick(brick, report)) => self.heard(brick, report),
                Ok(Input::WriteWanted) => self.take(Event::WriteWanted),
                Err(RecvTimeoutError::Timeout) => {
                    self.quorum_deadline = None;
                    self.take(Event::QuorumTimeout);
                }
                Ok(Input::Close) | Err(RecvTimeoutError::Disconnected) => break,
            }
            self.update_snapshot();
        }
        self.release();
    }

    fn heard(&mut self, brick: usize, report: Report) {
        let name = self.names.one(brick);
        match report {
            Report::Lost(why) => {
                log::warn!("brick {name} lost: {why}");
                self.note(brick, |copy| {
                    copy.locked = false;
                    copy.why_away = Some(why);
                });
                self.take(Event::Lost(brick));
            }
            Report::Waiting(why) => {
                log::info!("brick {name} not joined yet: {why}");
                self.note(brick, |copy| copy.why_away = Some(why));
            }
            Report::TakenByOther(holder) => {
                log::warn!("brick {name} is back, but locked by another session: {holder}");
                self.note(brick, |copy| {
                    copy.why_away = Some(format!("locked by {holder}"))
                });
                self.take(Event::TakenByOther(brick));
            }
            Report::Rejoined(copy) => self.rejoined(brick, copy),
        }
    }

    fn rejoined(&mut self, brick: usize, copy: CopyState) {
        log::info!("brick {} is back and locked", self.names.one(brick));
        let accuses = copy.accuses();
        self.note(brick, |known| {
            known.locked = true;
            known.why_away = None;
            known.pending = Some(copy.pending);
        });
        let local_accused_by = match accuses.contains(self.shape.local) {
            true => Some(brick),
            false => self.accuser_among_held(),
        };
        let local_untouched = (self.untouched)();
        self.take(Event::Rejoined {
            brick,
            accuses,
            local_accused_by,
            local_untouched,
        });
    }

    /// Marks can change on a brick that never went away, while another one did.
    fn accuser_among_held(&mut self) -> Option<usize> {
        let held = self.machine.held();
        let asked: Vec<_> = held
            .iter()
            .filter_map(|brick| Some((brick, self.workers.get(brick)?.ask(|port| port.probe()))))
            .collect();
        let mut accuser = None;
        for (brick, answer) in asked {
            // A brick that fails now is reported lost by its own worker.
            let Ok(copy) = wait(answer) else { continue };
            if copy.accuses().contains(self.shape.local) {
                accuser = Some(brick);
            }
            self.note(brick, |known| known.pending = Some(copy.pending));
        }
        accuser
    }

    fn take(&mut self, event: Event) {
        let mut actions: VecDeque<Action> = self.machine.step(event).into();
        while let Some(action) = actions.pop_front() {
            match action {
                Action::SetGate(state) => self.set_gate(state),
                Action::Publish(brick) => self.publish(brick),
                Action::Mark(bricks) => {
                    let round = marking::mark(&self.shape, &self.workers, bricks);
                    actions.extend(self.conclude(round));
                }
                Action::StartQuorumTimer => {
                    let timeout = self.quorum_timeout;
                    log::warn!(
                        "no quorum to store the marks: the guest's writes wait, and fail after {}",
                        humantime::format_duration(timeout)
                    );
                    self.quorum_deadline.get_or_insert(Instant::now() + timeout);
                }
                Action::StopQuorumTimer => self.quorum_deadline = None,
                Action::Stop(reason) => {
                    log::error!("{}", stop_message(reason, &self.names));
                    (self.on_stop)(reason);
                }
            }
        }
    }

    fn set_gate(&self, state: GateState) {
        match state {
            GateState::Open => log::info!("marks are stored on a quorum: the guest's writes go on"),
            GateState::Hold => log::info!("quorum is back: the next write will store the marks"),
            GateState::FailWrites => {
                log::error!("still no quorum: the guest's writes fail until it is back")
            }
            GateState::FailAll => log::error!("every request of the guest fails from now on"),
        }
        self.gate.set(state);
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

    fn conclude(&mut self, round: marking::Round) -> Vec<Action> {
        for (brick, error) in &round.failed {
            log::warn!(
                "marking failed on brick {}: {error}",
                self.names.one(*brick)
            );
            self.machine.step(Event::Lost(*brick));
            if let Some(worker) = self.workers.get(*brick) {
                worker.drop_connection(format!("marking failed: {error}"));
            }
        }
        for (brick, copy) in round.copies {
            self.note(brick, |known| known.pending = Some(copy.pending));
        }
        if let Some(by) = round.local_accused_by {
            return self.machine.step(Event::LocalAccused { by });
        }
        for brick in round.marked.iter() {
            self.machine.marked(brick);
        }
        self.machine.step(Event::MarkRoundOver)
    }

    fn note(&self, brick: usize, change: impl FnOnce(&mut CopySnapshot)) {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(copy) = snapshot.copies.get_mut(brick) {
            change(copy);
        }
    }

    fn update_snapshot(&self) {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(|e| e.into_inner());
        snapshot.phase = self.machine.phase().clone();
    }

    /// The clean end: the fence first, so that it never outlives its lock there.
    fn release(self) {
        let fence = self.fence;
        let release = move |port: &mut dyn BrickPort| {
            if fence == Fence::Mandatory
                && let Err(error) = port.lift_fence()
            {
                log::warn!(
                    "a fence could not be lifted: {error}. `bypass-blk release` does it later"
                );
            }
            port.disconnect();
        };
        let asked: Vec<_> = self
            .machine
            .held()
            .iter()
            .filter_map(|brick| Some(self.workers.get(brick)?.ask(release)))
            .collect();
        for answer in asked {
            // Only the waiting matters here.
            let _ = answer.recv();
        }
    }
}
