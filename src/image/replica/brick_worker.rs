//! One thread per brick: it owns the brick's port, does what the session asks,
//! and on its own joins the brick again after a loss.
//!
//! It takes the locks of a returned brick before anything else is asked of it,
//! and reports; what that means for the session is the machine's to say. It joins no
//! brick again before the session's thread has heard of the loss: so what is asked of a
//! brick in between fails, and nothing begun with one connection goes on with another.

use std::collections::BTreeSet;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::image::layout::FileIndex;
use crate::image::scheduler::Scheduler;

use super::brick_port::{BrickPort, CopyState, Lock, PortError};
use super::brick_set::BrickSet;
use super::holder::Holder;
use super::session_lock::{Blocked, Claim, lock_background, lock_session, read_copies};

/// The pause before the first attempt to join a lost brick again; doubled after
/// each failure up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// What a worker reports on its own.
#[derive(Debug)]
pub enum BrickReport {
    /// The connection, and our locks with it, is gone. To be answered by
    /// [`Worker::loss_heard`].
    Lost(String),
    /// The brick is back and locked.
    Rejoined {
        /// What it says of each file of the image, in order.
        copies: Vec<CopyState>,
        /// The files from which heals are kept there.
        guarded: BTreeSet<FileIndex>,
    },
    /// The brick is back, but another session is established there.
    TakenByOther {
        /// Which.
        holder: Holder,
        /// Whom the brick accuses; absent if it did not say.
        accuses: Option<BrickSet>,
    },
    /// The brick cannot be joined yet, for this reason (told once per reason).
    Waiting(String),
    /// A heal of Gluster's own has the brick (told each time).
    HealInTheWay,
    /// Somebody wants a lock of ours there; told once until the brick is probed.
    Contended,
}

type WorkerJob = Box<dyn FnOnce(&mut dyn BrickPort) + Send>;

enum Command {
    Do(FileIndex, WorkerJob),
    /// Whether heals are to be kept from this file, here as on any other brick.
    Guard(FileIndex, bool),
    Connect(Sender<Result<(), PortError>>),
    /// The connection with this number is gone.
    Lost(u64, String),
    /// The brick says that a lock of ours is wanted.
    Contended,
    /// From now on keep the brick joined; it is joined already, or away.
    Watch {
        joined: bool,
    },
    /// The session's thread knows of the loss.
    LossHeard,
    /// Give the connection up, and join again later.
    Drop(String),
    /// Give the connection up for good.
    Retire(Sender<()>),
    Exit,
}

/// The workers of all bricks, asked about one file of the image.
#[derive(Clone, Copy)]
pub struct Team<'a> {
    workers: &'a [Worker],
    file: FileIndex,
}

impl<'a> Team<'a> {
    /// `workers[i]` is child `i`'s.
    pub fn new(workers: &'a [Worker], file: FileIndex) -> Self {
        Self { workers, file }
    }

    /// A child's.
    pub fn get(self, brick: usize) -> Option<TeamWorker<'a>> {
        let (worker, file) = (self.workers.get(brick)?, self.file);
        Some(TeamWorker { worker, file })
    }
}

/// One of a [`Team`].
#[derive(Clone, Copy)]
pub struct TeamWorker<'a> {
    worker: &'a Worker,
    file: FileIndex,
}

impl TeamWorker<'_> {
    /// As [`Worker::ask`], about the team's file.
    pub fn ask<T: Send + 'static>(
        self,
        job: impl FnOnce(&mut dyn BrickPort) -> T + Send + 'static,
    ) -> WorkerAnswer<T> {
        self.worker.ask_about(self.file, job)
    }

    /// Where the worker's thread is from.
    pub fn threads(&self) -> &Scheduler {
        self.worker.threads()
    }
}

/// The handle of one worker; dropping it disconnects the brick soon.
pub struct Worker {
    commands: Sender<Command>,
    threads: Scheduler,
}

/// What a worker will have to say to something that it was asked.
#[must_use]
pub struct WorkerAnswer<T> {
    receiver: Receiver<T>,
    threads: Scheduler,
}

impl<T> WorkerAnswer<T> {
    /// Waits for it; `None` from a worker that is gone. Every call of a port has its
    /// own time limit, so this ends.
    pub fn wait(self) -> Option<T> {
        self.threads.receive(&self.receiver, None).ok()
    }
}

impl Worker {
    /// Starts the thread. `report` is called from it.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(
        name: &str,
        mut port: Box<dyn BrickPort>,
        claim: Claim,
        threads: &Scheduler,
        report: impl Fn(BrickReport) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let wanted = commands.clone();
        port.on_contention(Box::new(move || {
            // A worker that is gone holds nothing.
            let _ = wanted.send(Command::Contended);
        }));
        let state = WorkerState {
            port,
            claim,
            inbox,
            own_inbox: commands.clone(),
            connection: 0,
            lost: None,
            keep: Keep::Off,
            guarded: BTreeSet::from([FileIndex::BASE]),
            told: None,
            report: Box::new(report),
        };
        let own = threads.clone();
        threads.spawn(name, move || state.run(&own))?;
        Ok(Self {
            commands,
            threads: threads.clone(),
        })
    }

    /// Where the worker's thread is from.
    pub fn threads(&self) -> &Scheduler {
        &self.threads
    }

    /// Connects the brick to the image.
    pub fn connect(&self) -> WorkerAnswer<Result<(), PortError>> {
        let (answer, receiver) = mpsc::channel();
        self.send(Command::Connect(answer));
        self.answer(receiver)
    }

    /// Runs `job` on the worker's thread with the brick's port, after everything
    /// asked before. It is about the first file of the image.
    pub fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn BrickPort) -> T + Send + 'static,
    ) -> WorkerAnswer<T> {
        self.ask_about(FileIndex::BASE, job)
    }

    /// The same about another file.
    pub fn ask_about<T: Send + 'static>(
        &self,
        file: FileIndex,
        job: impl FnOnce(&mut dyn BrickPort) -> T + Send + 'static,
    ) -> WorkerAnswer<T> {
        let (answer, receiver) = mpsc::channel();
        let job = Box::new(move |port: &mut dyn BrickPort| {
            // The asker may have given up waiting: then nobody wants the answer.
            let _ = answer.send(job(port));
        });
        self.send(Command::Do(file, job));
        self.answer(receiver)
    }

    /// Are heals to be kept from this file, whenever the brick is joined? From the first
    /// file they always are.
    pub fn guard(&self, file: FileIndex, guarded: bool) {
        self.send(Command::Guard(file, guarded));
    }

    /// From now on the worker keeps the brick joined and reports. `joined` says
    /// whether the session's locks are held on it now.
    pub fn watch(&self, joined: bool) {
        self.send(Command::Watch { joined });
    }

    /// [`BrickReport::Lost`] was heard: from now on the worker may join the brick again.
    pub fn loss_heard(&self) {
        self.send(Command::LossHeard);
    }

    /// Gives the connection up; a watched brick is joined again later.
    pub fn drop_connection(&self, why: String) {
        self.send(Command::Drop(why));
    }

    /// Gives the connection up for good; the answer says that this is done.
    pub fn retire(&self) -> WorkerAnswer<()> {
        let (answer, receiver) = mpsc::channel();
        self.send(Command::Retire(answer));
        self.answer(receiver)
    }

    fn answer<T>(&self, receiver: Receiver<T>) -> WorkerAnswer<T> {
        let threads = self.threads.clone();
        WorkerAnswer { receiver, threads }
    }

    fn send(&self, command: Command) {
        // The inbox closes only when the thread is gone, and then the answer's
        // channel is closed too, which the asker sees.
        let _ = self.commands.send(command);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Not joined: a worker may be in the middle of connecting to a brick that
        // does not answer. It disconnects and ends as soon as that is over.
        self.send(Command::Exit);
    }
}

/// Whether the worker joins the brick by itself.
enum Keep {
    /// Not before the session is open.
    Off,
    /// The locks are held.
    Joined,
    /// Not held any more, which the session has not heard yet.
    Lost,
    /// Not held; the next attempt is due after this pause.
    Away { pause: Duration },
}

struct WorkerState {
    port: Box<dyn BrickPort>,
    claim: Claim,
    inbox: Receiver<Command>,
    own_inbox: Sender<Command>,
    /// Number of the latest connection, so that late news of an older one is ignored.
    connection: u64,
    /// Why the latest connection is gone, if it is.
    lost: Option<String>,
    keep: Keep,
    /// The files from which heals are to be kept.
    guarded: BTreeSet<FileIndex>,
    /// The reason last reported by [`BrickReport::Waiting`].
    told: Option<String>,
    report: Box<dyn Fn(BrickReport) + Send>,
}

impl Drop for WorkerState {
    /// A brick whose thread panics is lost, with our locks there, and is not joined again.
    fn drop(&mut self) {
        if std::thread::panicking() && matches!(self.keep, Keep::Joined) {
            let why = "a fault of bypass-blk: the thread of this brick panicked".to_owned();
            (self.report)(BrickReport::Lost(why));
        }
    }
}

impl WorkerState {
    fn run(mut self, threads: &Scheduler) {
        loop {
            let limit = match self.keep {
                Keep::Off | Keep::Joined | Keep::Lost => None,
                Keep::Away { pause } => Some(pause),
            };
            match threads.receive(&self.inbox, limit) {
                Ok(Command::Do(file, job)) => {
                    self.port.select(file);
                    job(&mut *self.port);
                }
                Ok(Command::Guard(file, true)) => drop(self.guarded.insert(file)),
                Ok(Command::Guard(file, false)) => drop(self.guarded.remove(&file)),
                Ok(Command::Connect(answer)) => {
                    let _ = answer.send(self.connect());
                }
                Ok(Command::Lost(connection, why)) if connection == self.connection => {
                    self.lose(why)
                }
                Ok(Command::Lost(..)) => {}
                Ok(Command::Contended) => {
                    if matches!(self.keep, Keep::Joined) {
                        (self.report)(BrickReport::Contended);
                    }
                }
                Ok(Command::Watch { joined }) => self.start_watching(joined),
                Ok(Command::LossHeard) => {
                    if matches!(self.keep, Keep::Lost) {
                        self.keep = Keep::Away { pause: FIRST_PAUSE };
                    }
                }
                Ok(Command::Drop(why)) => self.lose(why),
                Ok(Command::Retire(answer)) => {
                    self.keep = Keep::Off;
                    self.port.disconnect();
                    let _ = answer.send(());
                }
                Err(RecvTimeoutError::Timeout) => self.rejoin(),
                Ok(Command::Exit) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.port.disconnect();
    }

    fn connect(&mut self) -> Result<(), PortError> {
        self.connection += 1;
        self.lost = None;
        let (connection, own_inbox) = (self.connection, self.own_inbox.clone());
        self.port.connect(Box::new(move |why| {
            let _ = own_inbox.send(Command::Lost(connection, why));
        }))
    }

    fn lose(&mut self, why: String) {
        self.port.disconnect();
        if matches!(self.keep, Keep::Joined) {
            self.keep = Keep::Lost;
            (self.report)(BrickReport::Lost(why.clone()));
        }
        self.lost = Some(why);
    }

    fn start_watching(&mut self, joined: bool) {
        self.keep = if joined {
            Keep::Joined
        } else {
            Keep::Away { pause: FIRST_PAUSE }
        };
        if let Some(why) = self.lost.take() {
            self.lose(why);
        }
    }

    fn rejoin(&mut self) {
        match self.try_rejoin() {
            Ok(copies) => {
                self.told = None;
                self.keep = Keep::Joined;
                let guarded = self.guarded.clone();
                (self.report)(BrickReport::Rejoined { copies, guarded });
            }
            Err(blocked) => {
                let healed = matches!(blocked, Blocked::Busy(Lock::Heal));
                self.tell(blocked);
                self.port.disconnect();
                if healed {
                    (self.report)(BrickReport::HealInTheWay);
                }
                let pause = match self.keep {
                    Keep::Away { pause } if !healed => (pause * 2).min(LONGEST_PAUSE),
                    _ => FIRST_PAUSE,
                };
                self.keep = Keep::Away { pause };
            }
        }
    }

    fn try_rejoin(&mut self) -> Result<Vec<CopyState>, Blocked> {
        self.connect()?;
        self.port.select(FileIndex::BASE);
        lock_session(&mut *self.port, &self.claim)?;
        for file in &self.guarded {
            self.port.select(*file);
            lock_background(&mut *self.port, &self.claim)?;
        }
        Ok(read_copies(&mut *self.port, &self.claim, &self.guarded)?)
    }

    /// Whom the brick accuses, on any file of the image.
    fn accuses_now(&mut self) -> Result<BrickSet, PortError> {
        self.port.select(FileIndex::BASE);
        let copies = match self.claim.files {
            0 | 1 => vec![self.port.look()?],
            files => self.port.look_at_all(files)?,
        };
        let accused = copies.iter().map(|copy| copy.accuses());
        Ok(accused
            .flat_map(|accused| accused.iter().collect::<Vec<_>>())
            .collect())
    }

    fn tell(&mut self, blocked: Blocked) {
        let why = match blocked {
            Blocked::Session(Some(holder)) if holder.session != self.claim.session => {
                let accuses = self.accuses_now().ok();
                return (self.report)(BrickReport::TakenByOther { holder, accuses });
            }
            // A lock of our own dead connection: the brick lets it go in time.
            Blocked::Session(Some(_)) => {
                "the brick still holds our old connection's lock".to_owned()
            }
            // Somebody is opening: established only once its record stands.
            Blocked::Session(None) => {
                "another session is trying to open the image there".to_owned()
            }
            Blocked::Busy(lock) => format!("the {lock} lock is held there"),
            Blocked::Port(error) => error.to_string(),
        };
        if self.told.as_ref() != Some(&why) {
            self.told = Some(why.clone());
            (self.report)(BrickReport::Waiting(why));
        }
    }
}
