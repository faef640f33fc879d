//! Carries out what [`crate::image::session::ownership`] decides: opens a session when the rings
//! start, gives the image away when they have stopped, keeps the gate in between.
//!
//! One thread, which owns the session; `serve` starts it, the control socket asks it,
//! the queues tell it what the rings do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::image::error_chain::chain;
use crate::image::local::error::LocalError;
use crate::image::local::{Fingerprint, LocalFile};
use crate::image::replica::brick_port::{CopyState, Fence, KeptBrick};
use crate::image::session::life::Session;
use crate::image::session::ownership::{
    Ownership, OwnershipAction, OwnershipEvent, OwnershipMachine,
};
use crate::image::session::state_machine::StopReason;
use crate::image::session::terms::FenceWish;
use crate::image::state_dir::StateDir;

use super::failure::Failure;
use super::served_image::{HandOver, Input, Resting, ServedImage};
use super::session_setup::{self, Place, SessionSetup};
use super::shutdown::Stop;
use super::switchable_gate::SwitchableGate;

mod resizing;

/// How often it is tried to give the image away.
const LEAVE_PAUSE: Duration = Duration::from_millis(5);
/// How often it is said what that waits for.
const TELL: Duration = Duration::from_secs(5);

/// The session of the process before; who had it says the place in [`Terms`].
pub struct KeptBricks {
    /// Per brick, those that were held.
    pub bricks: Vec<Option<KeptBrick>>,
    /// The fence that stands.
    pub fence: Fence,
}

/// What is fixed for the daemon's life.
pub struct Terms {
    /// The image.
    pub place: Place,
    /// How to open it.
    pub setup: SessionSetup,
    /// What to do about it that lasts.
    pub state: StateDir,
    /// Where healers of this host are found.
    pub run_dir: std::path::PathBuf,
    /// The wish to end.
    pub stop: Arc<Stop>,
}

/// See the module. However the daemon ends, by an error or a panic of the thread that
/// has this: when it is dropped the session has ended, and the image is given back.
pub struct OwnershipWorker {
    served: Arc<ServedImage>,
    gate: Arc<SwitchableGate>,
    /// Taken when it is over.
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

impl OwnershipWorker {
    /// Of an image whose local file was opened (and claimed, if it is held): opens a
    /// session at once, or waits for the rings. With `kept` it goes on with that of the
    /// process before.
    ///
    /// # Errors
    /// What forbids a session.
    pub fn start(
        terms: Terms,
        local: &LocalFile,
        incoming: bool,
        kept: Option<KeptBricks>,
    ) -> Result<Self, Failure> {
        let (sender, inbox) = mpsc::channel();
        let served = Arc::new(ServedImage::new(local.size, sender));
        let told = served.clone();
        let gate = Arc::new(SwitchableGate::new(move |rings| told.rings(rings)));
        let mut worker = Worker {
            terms,
            local: local.try_clone().map_err(open_failed)?,
            machine: OwnershipMachine::new(!incoming),
            served: served.clone(),
            gate: gate.clone(),
            session: None,
            failure: None,
            to: None,
            guest_here: false,
            given_away: None,
            told: Instant::now(),
        };
        if !incoming {
            worker.open_session(kept)?;
            worker.gate.set(true);
        }
        worker.publish();
        let thread = std::thread::Builder::new()
            .name("ownership".to_owned())
            .spawn(move || worker.run(&inbox))
            .map_err(|source| Failure::System {
                what: "start the thread of the ownership",
                source,
            })?;
        Ok(Self {
            served,
            gate,
            thread: Some(thread),
        })
    }

    /// The gate for the device.
    pub fn gate(&self) -> Arc<SwitchableGate> {
        self.gate.clone()
    }

    /// The image's state, and the way to ask for changes.
    pub fn served(&self) -> Arc<ServedImage> {
        self.served.clone()
    }

    /// Ends the session, if there is one. The device must be drained.
    ///
    /// # Errors
    /// Why the image could not be had, if that ended the daemon.
    pub fn close(mut self) -> Result<(), Failure> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Failure> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.served.send(Input::Close);
        let panicked = |_| Err(Failure::Panicked("the ownership's thread"));
        thread.join().unwrap_or_else(panicked)
    }
}

impl Drop for OwnershipWorker {
    fn drop(&mut self) {
        if let Err(why) = self.end() {
            log::error!("{}", chain(&why));
        }
    }
}

struct Worker {
    terms: Terms,
    /// The file that the device has open.
    local: LocalFile,
    machine: OwnershipMachine,
    served: Arc<ServedImage>,
    gate: Arc<SwitchableGate>,
    session: Option<(Session, Place)>,
    failure: Option<Failure>,
    /// The child to whose host the image goes, as far as known.
    to: Option<usize>,
    /// The front-end that is connected has started rings.
    guest_here: bool,
    /// The image as the front-end that is still there left it. Its guest must not go on
    /// with a disk that is newer than its memory.
    given_away: Option<Fingerprint>,
    /// When it was last said what giving the image away waits for.
    told: Instant,
}

impl Worker {
    /// Until the daemon ends; the device is drained then.
    fn run(mut self, inbox: &Receiver<Input>) -> Result<(), Failure> {
        // Of what may be half done only the session is used afterwards, to end it.
        let run = catch_unwind(AssertUnwindSafe(|| self.run_until_closed(inbox)));
        if run.is_err() {
            self.wait_for_close(inbox);
        }
        self.gate.set(false);
        if let Some((session, _)) = self.session.take() {
            session.close();
        }
        self.failure.map_or(Ok(()), Err)
    }

    /// After a panic: the guest's I/O goes on under the session's locks until the device is
    /// drained. Whoever asks for something hears that nobody is there.
    fn wait_for_close(&mut self, inbox: &Receiver<Input>) {
        log::error!("the thread of the ownership panicked: the daemon ends");
        self.failure = Some(Failure::Panicked("the ownership's thread"));
        self.terms.stop.request();
        while !matches!(inbox.recv(), Ok(Input::Close) | Err(_)) {}
    }

    fn run_until_closed(&mut self, inbox: &Receiver<Input>) {
        loop {
            let input = match self.machine.ownership() {
                Ownership::Leaving => inbox.recv_timeout(LEAVE_PAUSE),
                _ => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match input {
                Ok(Input::OwnershipEvent(event)) => {
                    self.guest_here |= event == OwnershipEvent::RingsStarted;
                    self.take(event);
                }
                Ok(Input::HandOver(HandOver { wish, to, answer })) => {
                    self.to = to;
                    self.take(wish);
                    // Whoever asked may have given up waiting.
                    let _ = answer.send(self.machine.ownership());
                }
                Ok(Input::FrontEndGone) => (self.guest_here, self.given_away) = (false, None),
                Ok(Input::Stopped(reason)) => {
                    self.served.locked().stopped = Some(reason);
                    // The guest goes on with the next daemon, as after a kill.
                    if reason == StopReason::Panicked {
                        self.failure = Some(Failure::Panicked("the session's thread"));
                        self.terms.stop.request();
                    }
                    self.take(OwnershipEvent::SessionStopped);
                }
                Ok(Input::Resize(wish)) => {
                    let resized = self.resize(wish.size, wish.insist);
                    if let Err(why) = &resized {
                        log::warn!("the image keeps its size: {}", chain(why));
                    }
                    // Whoever asked may have given up waiting.
                    let _ = wish.answer.send(resized);
                }
                Err(RecvTimeoutError::Timeout) => self.try_to_leave(),
                Ok(Input::Rest(answer)) => self.rest(&answer),
                Ok(Input::Close) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Takes no event before the others go on, too.
    fn rest(&self, answer: &Sender<Result<Resting, String>>) {
        let kept = match (self.machine.ownership(), &self.session) {
            (Ownership::Held, Some((session, place))) => self
                .can_be_opened_again()
                .and_then(|()| Ok((session.keep()?, place))),
            _ => Err("the image is not held, or is to be given away".to_owned()),
        };
        let (sender, over) = mpsc::channel();
        let resting = kept.map(|(session, place)| Resting {
            session,
            place: place.clone(),
            _ownership_worker: sender,
        });
        if answer.send(resting).is_ok() {
            // Nothing is sent: the other end is dropped, at once if it was refused.
            let _ = over.recv();
        }
    }

    /// The next process is given the first file, and opens those behind it by their paths.
    fn can_be_opened_again(&self) -> Result<(), String> {
        match self.local.whole {
            true => Ok(()),
            false => self.local.check_places().map_err(|error| chain(&error)),
        }
    }

    fn take(&mut self, event: OwnershipEvent) {
        let before = self.machine.ownership();
        let actions = self.machine.step(event);
        let now = self.machine.ownership();
        if before != now {
            log::info!("{}", told(now));
            self.told = Instant::now();
        }
        let leaving = matches!(now, Ownership::Armed | Ownership::Leaving);
        self.gate.set_leaving(leaving);
        self.publish();
        for action in actions {
            match action {
                OwnershipAction::Open => self.open(),
                OwnershipAction::Gate { open } => self.gate.set(open),
                OwnershipAction::Leave => self.try_to_leave(),
                OwnershipAction::End => self.terms.stop.request(),
            }
        }
    }

    fn open(&mut self) {
        match self.open_session(None) {
            Ok(()) => {
                self.given_away = None;
                self.take(OwnershipEvent::Opened);
            }
            Err(why) => {
                log::error!("{}", chain(&why));
                // A daemon that is started again would let this guest go on once the
                // image is free, whatever was written to it meanwhile.
                let why = match self.given_away {
                    Some(_) => Failure::Stopped(format!(
                        "the image was given away, and its guest here cannot have it back: {}",
                        chain(&why)
                    )),
                    None => why,
                };
                self.failure = Some(why);
                self.take(OwnershipEvent::OpenFailed);
            }
        }
    }

    fn open_session(&mut self, kept: Option<KeptBricks>) -> Result<(), Failure> {
        let Terms {
            setup,
            state,
            run_dir,
            stop,
            ..
        } = &self.terms;
        let (mut setup, mut place) = (*setup, self.terms.place.again());
        if let Some(kept) = &kept {
            setup.terms.fence = FenceWish::Exactly(kept.fence);
            place = self.terms.place.clone();
        } else if !setup.terms.read_only {
            session_setup::take_over(run_dir, place.located.gfid)?;
        }
        let gfid = place.located.gfid;
        let claim = |copy: &CopyState| match copy.gfid == gfid {
            true if setup.terms.read_only => self.local.try_clone(),
            true => self
                .local
                .claim_again()
                .and_then(|local| self.as_left(local)),
            false => Err(LocalError::Replaced {
                path: self.local.path.clone(),
            }),
        };
        let served = self.served.clone();
        let on_stop = move |reason| served.send(Input::Stopped(reason));
        let bricks = kept.map(|kept| kept.bricks);
        let (session, _) =
            session_setup::open_with(&place, &setup, state, stop.flag(), bricks, claim, on_stop)?;
        self.gate.put(Some(session.gate()));
        self.session = Some((session, place));
        Ok(())
    }

    /// The local file, if nobody wrote to it while it was given away.
    fn as_left(&self, local: LocalFile) -> Result<LocalFile, LocalError> {
        match self.given_away {
            Some(left) if local.fingerprint()? != left => {
                local.give_back();
                Err(LocalError::WrittenSince { path: local.path })
            }
            _ => Ok(local),
        }
    }

    fn try_to_leave(&mut self) {
        let left = match &mut self.session {
            Some((session, _)) => session.hand_over(self.to),
            None => return self.take(OwnershipEvent::Left),
        };
        match left {
            Ok(left) => {
                self.gate.put(None);
                self.local.give_back();
                self.session = None;
                // A front-end that has gone meanwhile does not come back with its guest.
                self.given_away = left.filter(|_| self.guest_here);
                self.take(OwnershipEvent::Left);
            }
            Err(why) => {
                if self.told.elapsed() >= TELL {
                    log::warn!("the image cannot be given away yet: {why}");
                    self.told = Instant::now();
                }
            }
        }
    }

    fn publish(&self) {
        let mut now = self.served.locked();
        now.ownership = self.machine.ownership();
        now.session = self.session.as_ref().map(|(session, place)| {
            let handle = session.handle();
            let job = place.job(&self.terms.state, handle.peer_children());
            (handle, job)
        });
    }
}

fn open_failed(error: LocalError) -> Failure {
    Failure::Open(error.into())
}

fn told(ownership: Ownership) -> &'static str {
    match ownership {
        Ownership::Vacant => {
            "the image is given away: it is opened again when a front-end's rings start"
        }
        Ownership::Opening => "a front-end's rings have started: opening the image",
        Ownership::Held => "the image is held",
        Ownership::Armed => "the image is given away when the front-end's rings stop",
        Ownership::Leaving => "the rings have stopped: sending what the other copies miss",
        Ownership::Ended => "the image is not served any more",
    }
}
