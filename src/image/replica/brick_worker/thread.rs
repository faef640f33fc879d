//! The brick's own thread: carries out what the session sends it, and joins the brick again.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::image::layout::FileIndex;
use crate::image::replica::brick_port::{BrickPort, CopyState, Lock, PortError};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::session_lock::{
    Blocked, Claim, lock_background, lock_session, read_copies,
};
use crate::image::scheduler::Scheduler;

use super::{BrickReport, Command};

/// The pause before the first attempt to join a lost brick again; doubled after
/// each failure up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

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

pub(super) struct WorkerState {
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
    pub(super) fn new(
        port: Box<dyn BrickPort>,
        claim: Claim,
        inbox: Receiver<Command>,
        own_inbox: Sender<Command>,
        report: Box<dyn Fn(BrickReport) + Send>,
    ) -> Self {
        Self {
            port,
            claim,
            inbox,
            own_inbox,
            connection: 0,
            lost: None,
            keep: Keep::Off,
            guarded: BTreeSet::from([FileIndex::BASE]),
            told: None,
            report,
        }
    }

    pub(super) fn run(mut self, threads: &Scheduler) {
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
                Ok(Command::Extend(layout)) => {
                    self.claim.files = layout.len() as u32;
                    self.port.extend(&layout);
                }
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
