//! The session thread's part in knowing whether the local copy is durable: it syncs it, and
//! remembers what failed, for itself, the guest and the next session.

use std::time::Duration;

use crate::image::error_chain::chain;
use crate::image::layout::FileIndex;
use crate::image::local::error::LocalError;
use crate::image::local::{CopyWatch, Durability};
use crate::image::replica::brick_port::PortError;
use crate::image::replica::missed_writes::MissedWrites;

use super::Runner;

/// How long the guest's flushes are waited for while its writes wait.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);
/// How often it is looked whether they are over.
const FLUSH_PAUSE: Duration = Duration::from_millis(1);

impl Runner {
    /// Makes a file of the local copy durable. An error, too, if an earlier sync failed.
    pub(super) fn sync_local(&self, file: FileIndex) -> Result<(), LocalError> {
        sync(&self.durability, &*self.file(file).local)
    }

    /// The same of every file that may have been written to since its marks were stored.
    pub(super) fn sync_all(&self) -> Result<(), LocalError> {
        self.hot_files()
            .into_iter()
            .try_for_each(|file| self.sync_local(file))
    }

    /// Is nothing known to be lost?
    pub(super) fn vouch(&self) -> Result<(), String> {
        match self.durability.failure() {
            None => Ok(()),
            Some(failure) => Err(format!("the local copy cannot be vouched for: {failure}")),
        }
    }

    /// What one of the guest's flushes finds out, a later sync does not. So those that are
    /// under way after one has succeeded must be over, and must not have failed.
    pub(super) fn guest_syncs_over(&self) -> Result<(), String> {
        let end = self.threads.now() + FLUSH_LIMIT;
        while !self.durability.is_settled() {
            if self.threads.now() >= end {
                return Err("the guest's flushes take too long".to_owned());
            }
            self.threads.sleep(FLUSH_PAUSE);
        }
        self.vouch()
    }

    /// What the local brick's process could not make durable is this copy.
    pub(super) fn note_brick_sync(&self, brick: usize, error: &PortError) {
        if brick == self.shape.local && matches!(error, PortError::Unsynced(_)) {
            self.durability.fail("a sync by the local brick", error);
        }
    }

    /// The next session must know of a failure, even if this one is killed.
    pub(super) fn note_sync_failure(&mut self) {
        if self.durability.failure().is_none() || self.sync_failure_noted {
            return;
        }
        self.sync_failure_noted = true;
        if let Some(Err(error)) = self.debt.as_ref().map(MissedWrites::note_sync_failed) {
            log::error!("{}", chain(&error));
        }
    }
}

/// As [`Runner::sync_local`].
pub(super) fn sync(durability: &Durability, local: &dyn CopyWatch) -> Result<(), LocalError> {
    noted(durability, local.sync())?;
    match durability.failure() {
        None => Ok(()),
        Some(failure) => Err(LocalError::Unsure {
            failure: failure.clone(),
        }),
    }
}

/// What was done to the local file; a sync that failed in it is remembered.
pub(super) fn noted(
    durability: &Durability,
    done: Result<(), LocalError>,
) -> Result<(), LocalError> {
    done.inspect_err(|error| {
        if let LocalError::Sync { source, .. } = error {
            durability.fail("a sync of the local copy", source);
        }
    })
}
