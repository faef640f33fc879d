//! The question the device asks before it changes the disk.
//!
//! The device does not know why a write may have to wait; whoever owns the
//! disk's contents answers through [`Gate`]. Called from every queue thread,
//! once per request, so an implementation answers from memory: no system call,
//! no lock.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// The owner's answer to a request that the device is about to submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Submit it now. For a write, [`Gate::end_write`] is owed once the request
    /// has completed, successfully or not.
    Go,
    /// Not yet: keep the request, and ask again when the event fd given to
    /// [`Gate::subscribe`] fires. Nothing is owed.
    Wait,
    /// Not yet, and only this request: as [`Wait`](Self::Wait), but others go on meanwhile, on
    /// the same queue too, and may be answered first. For what is over soon: a ring that stops may
    /// have to wait for it, and gives up after a few seconds.
    WaitAlone,
    /// Never: complete the request with an I/O error. Nothing is owed.
    Refuse,
}

/// Decides, request by request, whether the device may touch the disk.
pub trait Gate: Send + Sync + 'static {
    /// May requests be taken from the rings now? If not, they stay there; ask again when
    /// the event fd given to [`Gate::subscribe`] fires. Asked whenever a queue looks at
    /// its ring; a request that was taken before is not affected.
    fn may_take(&self) -> bool {
        true
    }

    /// A ring was started: a front-end's driver is at work on it.
    fn ring_started(&self) {}

    /// A ring that had been started has stopped, and nothing that was taken from it is
    /// under way.
    fn ring_stopped(&self) {}

    /// Must all that was taken from a ring be answered when it stops, because nobody is
    /// going to start it here again? Asked when a ring stops.
    fn must_answer(&self) -> bool {
        false
    }

    /// May the device read now? Never answers that it waits.
    fn admit_read(&self) -> Admission;

    /// May the device change `len` bytes at byte `offset` of the disk (a write, discard or
    /// write-zeroes), in however many files they are?
    fn begin_write(&self, offset: u64, len: u64) -> Admission;

    /// The change admitted with the same arguments has completed.
    fn end_write(&self, offset: u64, len: u64);

    /// May the device make durable what was written, for a flush or for a change that must
    /// be durable when it is answered? Never answers that it waits. If
    /// [`Admission::Go`], [`Gate::end_sync`] is owed.
    fn begin_sync(&self) -> Admission {
        Admission::Go
    }

    /// Making it durable has failed with this error number; [`Gate::end_sync`] is still owed.
    fn sync_failed(&self, errno: i32) {
        let _ = errno;
    }

    /// The sync that was admitted is over. Returns whether the guest may be told so: not when
    /// one failed, whichever.
    #[must_use]
    fn end_sync(&self) -> bool {
        true
    }

    /// `wake` is written to whenever an answer of [`Admission::Wait`] or
    /// [`Admission::WaitAlone`] may have become another one. One event fd per queue thread; a spurious wake-up is
    /// harmless.
    fn subscribe(&self, wake: Arc<EventFd>);
}

/// A gate that is always open: a disk with a single copy.
#[derive(Debug, Default)]
pub struct AlwaysOpen;

impl Gate for AlwaysOpen {
    fn admit_read(&self) -> Admission {
        Admission::Go
    }

    fn begin_write(&self, _offset: u64, _len: u64) -> Admission {
        Admission::Go
    }

    fn end_write(&self, _offset: u64, _len: u64) {}

    fn subscribe(&self, _wake: Arc<EventFd>) {}
}
