//! The image as the other threads of this process see it: who has it now, and the way to
//! ask its [`super::ownership_worker`] for changes.

use std::fs::File;
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, MutexGuard};

use crate::device::DeviceError;
use crate::image::heal::Job;
use crate::image::session::ending::KeptSession;
use crate::image::session::handle::SessionHandle;
use crate::image::session::ownership::{Ownership, OwnershipEvent};
use crate::image::session::resize::{Insist, NewSize, ResizeError, Resized};
use crate::image::session::state_machine::StopReason;

use super::session_setup::Place;
use super::switchable_gate::Rings;

/// The image as others of this process see it.
pub struct ServedImage {
    now: Mutex<Now>,
    front: Mutex<Option<Front>>,
    inbox: Mutex<Sender<Input>>,
}

/// At this moment.
#[derive(Clone)]
pub struct Now {
    /// Whose the image is.
    pub ownership: Ownership,
    /// The session, while there is one, and what a healer needs to know of it.
    pub session: Option<(SessionHandle, Job)>,
    /// Why the session ended by itself.
    pub stopped: Option<StopReason>,
    /// Bytes of the image.
    pub size: u64,
}

/// Everything at rest for the next process; when this is dropped instead, it goes on.
pub struct Resting {
    /// The session.
    pub session: KeptSession,
    /// Whose it is.
    pub place: Place,
    pub(super) _ownership_worker: Sender<()>,
}

/// What the ownership worker is asked and told.
pub(super) enum Input {
    /// By the rings and by operators.
    OwnershipEvent(OwnershipEvent),
    /// Give it away, or not.
    HandOver(HandOver),
    /// By the session: it has ended by itself.
    Stopped(StopReason),
    /// Rest, for another process to go on.
    Rest(Sender<Result<Resting, String>>),
    /// The front-end's connection has ended.
    FrontEndGone,
    /// Make the image larger.
    Resize(Resize),
    /// The daemon ends.
    Close,
}

/// The wish to give the image away, or to keep it.
pub(super) struct HandOver {
    /// [`OwnershipEvent::Arm`], [`OwnershipEvent::GiveAway`] or [`OwnershipEvent::Disarm`].
    pub wish: OwnershipEvent,
    /// To the host of this child, if one is named.
    pub to: Option<usize>,
    /// Whose the image is then.
    pub answer: Sender<Ownership>,
}

/// The wish for a larger image.
pub(super) struct Resize {
    /// How large.
    pub size: NewSize,
    /// In spite of what.
    pub insist: Insist,
    /// What came of it; was the front-end told?
    pub answer: Sender<Result<(Resized, bool), ResizeError>>,
}

/// The device in front of the image, as far as a new size concerns it.
pub struct Front {
    /// Bytes of its blocks.
    pub block: u64,
    /// Offers a disk of so many bytes, with these files besides; was the front-end told?
    pub grow: Box<dyn Fn(Vec<File>, u64) -> Result<bool, DeviceError> + Send>,
}

impl ServedImage {
    /// Of an image of `size` bytes that nobody holds; what is asked goes to `inbox`.
    pub(super) fn new(size: u64, inbox: Sender<Input>) -> Self {
        Self {
            now: Mutex::new(Now {
                ownership: Ownership::Vacant,
                session: None,
                stopped: None,
                size,
            }),
            front: Mutex::default(),
            inbox: Mutex::new(inbox),
        }
    }

    /// What is the case now.
    pub fn now(&self) -> Now {
        self.locked().clone()
    }

    /// Gives the image away, as the event `wish` says, and not before the copy of child
    /// `to` is there and equal; or not after all. Whose is it then? Waits for whatever the
    /// ownership worker is at; `None`: the daemon ends.
    pub fn hand_over(&self, wish: OwnershipEvent, to: Option<usize>) -> Option<Ownership> {
        let (answer, answered) = mpsc::channel();
        self.send(Input::HandOver(HandOver { wish, to, answer }));
        answered.recv().ok()
    }

    /// The connection has ended: rings that start later are those of another guest, or
    /// of one that came back.
    pub fn front_end_gone(&self) {
        self.send(Input::FrontEndGone);
    }

    /// What is in front of the image from now on.
    pub fn set_front(&self, front: Front) {
        *self.front() = Some(front);
    }

    /// Makes the image larger; was the front-end told? Waits for whatever the ownership worker
    /// is at.
    ///
    /// # Errors
    /// Why not.
    pub fn resize(&self, size: NewSize, insist: Insist) -> Result<(Resized, bool), ResizeError> {
        let (answer, answered) = mpsc::channel();
        let wish = Resize {
            size,
            insist,
            answer,
        };
        self.send(Input::Resize(wish));
        let gone = |_| Err(ResizeError::Over("the daemon ends".to_owned()));
        answered.recv().unwrap_or_else(gone)
    }

    /// Lets session and ownership worker rest. The device must be drained before.
    ///
    /// # Errors
    /// Why not; all goes on.
    pub fn rest(&self) -> Result<Resting, String> {
        let (answer, receiver) = mpsc::channel();
        self.send(Input::Rest(answer));
        let over = |_| Err("the daemon ends".to_owned());
        receiver.recv().unwrap_or_else(over)
    }

    /// What is in front of the image.
    pub(super) fn front(&self) -> MutexGuard<'_, Option<Front>> {
        self.front.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The rings have started or stopped.
    pub(super) fn rings(&self, rings: Rings) {
        self.send(Input::OwnershipEvent(match rings {
            Rings::Started => OwnershipEvent::RingsStarted,
            Rings::Stopped => OwnershipEvent::RingsStopped,
        }));
    }

    /// Asks the ownership worker.
    pub(super) fn send(&self, input: Input) {
        let inbox = self.inbox.lock().unwrap_or_else(|e| e.into_inner());
        // A daemon that ends listens no more.
        let _ = inbox.send(input);
    }

    /// What the ownership worker says is the case.
    pub(super) fn locked(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(|e| e.into_inner())
    }
}
