//! One thread per brick: it owns the brick's port, does what the session asks,
//! and on its own joins the brick again after a loss.
//!
//! It takes the locks of a returned brick before anything else is asked of it,
//! and reports; what that means for the session is the machine's to say. It joins no
//! brick again before the session's thread has heard of the loss: so what is asked of a
//! brick in between fails, and nothing begun with one connection goes on with another.

mod thread;

use std::collections::BTreeSet;
use std::sync::mpsc::{self, Receiver, Sender};

use crate::image::layout::{FileIndex, Layout};
use crate::image::scheduler::Scheduler;

use super::brick_port::{BrickPort, CopyState, PortError};
use super::brick_set::BrickSet;
use super::holder::Holder;
use super::session_lock::Claim;

use thread::WorkerState;

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
    /// The image has these files from now on.
    Extend(Layout),
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
        let own = commands.clone();
        let state = WorkerState::new(port, claim, inbox, own, Box::new(report));
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

    /// The image has these files from now on, the ones that it had and more: all of them are
    /// told about whenever the brick is joined.
    pub fn extend(&self, layout: Layout) {
        self.send(Command::Extend(layout));
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
