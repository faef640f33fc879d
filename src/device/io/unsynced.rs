//! Whether a file of the disk has changes that may not be durable yet, as all queues see it.
//!
//! Two counters. A change counts itself in `written` when it has completed and before the guest is told; a
//! flush reads `written`, has the file synced, and if that succeeded raises `synced` to what it read.
//! So a flush may pass a file over only when a sync that *began* after every change it has to cover has
//! *ended*; a sync that another queue has under way counts for nothing. The guest's own order makes this
//! enough: it asks for the flush after it has seen the answers of what the flush is to cover, so this
//! thread sees their counts.
//!
//! Compiled twice: here, and with loom's atomics by `tests/loom_unsynced.rs`.

use super::sync::{AtomicU64, Ordering};

/// The changes of one file.
#[derive(Debug)]
pub struct Changes {
    /// Changes that have completed.
    written: AtomicU64,
    /// So many of them are durable.
    synced: AtomicU64,
}

/// How many of a file's changes the sync that begins now makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered(u64);

impl Changes {
    /// Of a file of which nothing is known but whether it `may_be_unsynced`.
    pub fn new(may_be_unsynced: bool) -> Self {
        Self {
            written: AtomicU64::new(may_be_unsynced.into()),
            synced: AtomicU64::new(0),
        }
    }

    /// A change has completed. To be called before the guest is told.
    pub fn completed(&self) {
        // A release: who reads the count and has the file synced, syncs the change.
        self.written.fetch_add(1, Ordering::AcqRel);
    }

    /// What a sync that begins now will cover; `None` if everything is durable already.
    pub fn unsynced(&self) -> Option<Covered> {
        // An acquire: what is passed over was durable before it was counted so.
        let synced = self.synced.load(Ordering::Acquire);
        let written = self.written.load(Ordering::Acquire);
        (written > synced).then_some(Covered(written))
    }

    /// The sync that covers this much has succeeded.
    pub fn synced(&self, covered: Covered) {
        self.synced.fetch_max(covered.0, Ordering::AcqRel);
    }
}
