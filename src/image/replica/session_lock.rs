//! Taking a session's locks on one brick, in the only right order: the session
//! lock first, then those that keep Gluster's own heals and rebalances away.
//!
//! Called at open, brick by brick ([`crate::image::session::open`]), and by a worker whose brick
//! came back. It waits for nothing: a lock is had or it is not.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::image::layout::FileIndex;

use super::brick_port::{BrickPort, CopyState, Lock, PortError};
use super::holder::Holder;

/// Who we are, for taking the locks again.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Our session's id, to recognise locks of our own dead connection.
    pub session: Uuid,
    /// Read-only sessions share the session lock and keep no heal away.
    pub read_only: bool,
    /// How many files the image is made of.
    pub files: u32,
}

/// Why a brick could not be locked.
#[derive(Debug)]
pub enum Blocked {
    /// Not reachable, or without the image.
    Port(PortError),
    /// Another session has the session lock; its record if it is established.
    Session(Option<Holder>),
    /// A lock of Gluster's own is held: a heal or a rebalance is at work.
    Busy(Lock),
}

impl From<PortError> for Blocked {
    fn from(error: PortError) -> Self {
        Self::Port(error)
    }
}

/// Takes the session lock, or tells who has it. Nothing is kept when it is refused.
///
/// A healer may still be copying to this brick for a session that is over already:
/// it looks for that session's record after it took its own lock
/// ([`super::copy_lock`]). So first the session lock, then its record must be gone,
/// then no healer's lock may be left: whatever the order, one sees the other.
///
/// # Errors
/// [`Blocked::Session`], [`Blocked::Busy`] or [`Blocked::Port`].
pub fn lock_session(port: &mut dyn BrickPort, claim: &Claim) -> Result<(), Blocked> {
    let shared = claim.read_only;
    if !port.try_lock(Lock::Session { shared })? {
        return Err(Blocked::Session(port.holder()?));
    }
    if claim.read_only {
        return Ok(());
    }
    let blocked = match port.holder()? {
        Some(holder) if holder.session != claim.session => Blocked::Session(Some(holder)),
        _ if port.is_copied_to_for_others(claim.session)? => Blocked::Busy(Lock::Copy),
        _ => return Ok(()),
    };
    port.unlock(Lock::Session { shared })?;
    Err(blocked)
}

/// Keeps heals and rebalance away. Nothing is kept when one of them is refused.
/// A read-only session leaves the copies alone, so both may go on.
///
/// # Errors
/// [`Blocked::Busy`] or [`Blocked::Port`].
pub fn lock_background(port: &mut dyn BrickPort, claim: &Claim) -> Result<(), Blocked> {
    if claim.read_only {
        return Ok(());
    }
    if !port.try_lock(Lock::Heal)? {
        return Err(Blocked::Busy(Lock::Heal));
    }
    if !port.try_lock(Lock::Rebalance)? {
        port.unlock(Lock::Heal)?;
        return Err(Blocked::Busy(Lock::Rebalance));
    }
    Ok(())
}

/// Reads a copy that was just locked, as a power cut would leave it. Who removed marks
/// may have died before that was durable: they came back with the next power cut, and
/// accused whatever copy is written from now on. Not again where our locks have stood
/// since it was done: a guest stands still, and what a healer sent may take long.
///
/// # Errors
/// As the connection fails.
pub fn read_copy(port: &mut dyn BrickPort, claim: &Claim) -> Result<CopyState, PortError> {
    if !claim.read_only && !port.stood() {
        port.fsync()?;
    }
    port.probe()
}

/// [`read_copy`] of every file of an image, those that were locked being `guarded`, the first
/// among them. Those that seem to have no mark are made durable, too: the session may end
/// without having written to one, and says then that all copies are equal for good.
///
/// # Errors
/// As the connection fails.
pub fn read_copies(
    port: &mut dyn BrickPort,
    claim: &Claim,
    guarded: &BTreeSet<FileIndex>,
) -> Result<Vec<CopyState>, PortError> {
    let mut copies = match claim.files {
        0 | 1 => vec![None],
        files => {
            port.select(FileIndex::BASE);
            if !claim.read_only && !port.stood() {
                port.fsync_all(files)?;
            }
            port.look_at_all(files)?.into_iter().map(Some).collect()
        }
    };
    for file in guarded {
        port.select(*file);
        if let Some(copy) = copies.get_mut(file.at()) {
            *copy = Some(read_copy(port, claim)?);
        }
    }
    port.select(FileIndex::BASE);
    Ok(copies.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::replica::recording_port::{Change, Journal, RecordingPort};

    /// Whoever removed marks may have been killed before that was durable.
    #[test]
    fn every_file_of_an_image_is_made_durable_before_it_is_read_unless_only_to_read_it() {
        for (read_only, synced) in [(false, 3), (true, 0)] {
            let journal = Journal::default();
            let mut port = RecordingPort {
                journal: journal.clone(),
                ..RecordingPort::default()
            };
            let claim = Claim {
                session: Uuid::nil(),
                read_only,
                files: 3,
            };
            let read = read_copies(&mut port, &claim, &BTreeSet::from([FileIndex::BASE]));
            assert!(read.is_err(), "this port tells nothing of its copy");
            let expected = vec![(0, Change::Durable); synced];
            assert_eq!(*journal.lock().unwrap(), expected);
        }
    }
}
