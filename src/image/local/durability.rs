//! Whether the local copy can be vouched for: what was told to be durable is.
//!
//! The kernel tells each failure of an fsync once, to whoever asks next: a later fsync of
//! the same file succeeds, though the data is gone (fsync(2), "Errors"; what a disk's
//! refused flush had in its cache is told by nobody at all). So the first failure is kept
//! here, for as long as the file is open. From then on every flush of the guest fails, no
//! mark goes and the dirty map is not closed clean, until another process has opened the
//! image anew and compared the copies.
//!
//! One per opened file, shared by the guest's flushes (through the gate) and the session's
//! thread. It syncs nothing itself.
//!
//! Not closed: a flush that succeeds in the kernel just after another queue's one has
//! failed there, and whose thread is the faster one, is still answered as done.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;
use std::{fmt, io};

/// The first sync that failed.
#[derive(Clone, Debug)]
pub struct SyncFailure {
    /// What was tried: `the guest's flush`, …
    pub what: &'static str,
    /// The system's reason.
    pub why: String,
    /// When.
    pub at: SystemTime,
}

impl fmt::Display for SyncFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}", self.what, self.why)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Durability {
    failed: OnceLock<SyncFailure>,
    under_way: AtomicUsize,
}

impl Durability {
    /// A sync is about to begin; [`Durability::end`] is owed. `false`: it need not, for its
    /// answer would be worth nothing, and nothing is owed.
    #[must_use]
    pub fn begin(&self) -> bool {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let believed = self.failed.get().is_none();
        if !believed {
            self.end();
        }
        believed
    }

    /// A sync that began is over, and its failure, if it failed, is noted.
    pub fn end(&self) {
        self.under_way.fetch_sub(1, Ordering::SeqCst);
    }

    /// No sync of the guest's is under way whose failure may not be noted yet.
    pub fn is_settled(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) == 0
    }

    /// Notes a failure. Returns whether it is the first one, which is logged.
    pub fn fail(&self, what: &'static str, why: &dyn fmt::Display) -> bool {
        let failure = SyncFailure {
            what,
            why: why.to_string(),
            at: SystemTime::now(),
        };
        let first = self.failed.set(failure).is_ok();
        if first {
            log::error!(
                "{what} failed: {why}. Data that was written may not be on the disk, so every flush of the guest fails from \
                 now on, and the marks stay. Shut the guest down, look at the disk and its file system, then serve the image \
                 again: all copies are compared"
            );
        }
        first
    }

    /// [`Durability::fail`] with an error number of the system.
    pub fn fail_with(&self, what: &'static str, errno: i32) -> bool {
        self.fail(what, &io::Error::from_raw_os_error(errno))
    }

    /// What failed first, if anything did.
    pub fn failure(&self) -> Option<&SyncFailure> {
        self.failed.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_no_sync_is_believed_and_the_first_reason_stays() {
        let durability = Durability::default();
        assert!(durability.begin());
        assert!(!durability.is_settled());
        assert!(durability.fail_with("the guest's flush", libc::EIO));
        durability.end();
        assert!(!durability.fail_with("another", libc::ENOSPC));
        assert!(!durability.begin());
        assert!(durability.is_settled());
        let told = durability.failure().map(SyncFailure::to_string);
        let eio = io::Error::from_raw_os_error(libc::EIO);
        assert_eq!(told, Some(format!("the guest's flush failed: {eio}")));
    }
}
