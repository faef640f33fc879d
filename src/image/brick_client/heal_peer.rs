//! [`HealPeer`] over Gluster's brick protocol: one brick, by a connection of the
//! healer's own.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::gluster::fops::InFlight;
use crate::gluster::{
    BrickError, Errno, LkOwner, LockKind, LockOp, LockRange, Locked, OpenMode, RemoteFd,
    StrongChecksum, Timeouts,
};
use crate::image::heal::peer::{Answer, HealPeer, PeerError};
use crate::image::locate::Located;
use crate::image::replica::copy_lock;

use super::brick_copy::BrickCopy;
use super::failure::peer_error;
use super::session_record::holder_of;

/// The image's file on one brick.
pub struct GlusterPeer {
    copy: BrickCopy,
    /// The file, open as long as the connection lasts: a brick opens and closes it for
    /// each write without. An FSYNC through it is told of everything that went wrong
    /// with the writes.
    fd: RemoteFd,
    /// The attribute with which bricks accuse this copy.
    pending_name: String,
}

impl GlusterPeer {
    /// Connects to brick `child` of the image's replica set, makes sure that it
    /// has the image's own file there, and takes the copy lock of `session`.
    ///
    /// # Errors
    /// [`PeerError::NoBrick`], [`PeerError::Away`], [`PeerError::Unusable`],
    /// [`PeerError::NoImage`], [`PeerError::CopyLocked`], [`PeerError::NotHeld`].
    pub fn connect(
        located: &Located,
        child: usize,
        session: Uuid,
        timeouts: &Timeouts,
    ) -> Result<Self, PeerError> {
        let set = &located.set;
        let known = set.bricks.get(child).zip(set.pending_names.get(child));
        let (spec, pending_name) = known.ok_or_else(|| PeerError::NoBrick {
            volume: located.volume.clone(),
            child,
        })?;
        let copy = BrickCopy::connect(located, spec, "bypass-blk-heal", lock_owner(), timeouts)?;
        let fd = copy.brick.open(copy.gfid, OpenMode::ReadWrite);
        let peer = Self {
            fd: fd.map_err(|error| copy.failed(error))?,
            copy,
            pending_name: pending_name.clone(),
        };
        peer.lock_copies(session)?;
        Ok(peer)
    }

    /// First the lock, then the look at the record. The other way round, a session
    /// could take this brick in between, find nobody copying, and be written over.
    fn lock_copies(&self, session: Uuid) -> Result<(), PeerError> {
        let peer = self.name().to_owned();
        let range = copy_lock::own(session);
        let BrickCopy { brick, gfid, .. } = &self.copy;
        let taken = brick.inodelk(
            *gfid,
            copy_lock::DOMAIN,
            LockOp::Try,
            LockKind::Write,
            range,
        );
        if taken.map_err(|error| self.failed(error))? == Locked::WouldBlock {
            return Err(PeerError::CopyLocked { peer });
        }
        let holder = holder_of(brick, self.fd).map_err(|error| self.failed(error))?;
        match holder {
            Some(holder) if holder.session == session => Ok(()),
            holder => Err(PeerError::NotHeld { peer, holder }),
        }
    }

    fn failed(&self, error: BrickError) -> PeerError {
        self.copy.failed(error)
    }
}

/// Waits for all of them, for the last first: it is mostly answered last, so the waiting
/// thread is woken once. The first error counts.
fn wait_all(sent: Vec<InFlight<()>>) -> Result<(), BrickError> {
    let mut outcome = Ok(());
    for write in sent.into_iter().rev() {
        outcome = write.wait().and(outcome);
    }
    outcome
}

fn lock_range(range: &Range<u64>) -> LockRange {
    LockRange {
        start: range.start,
        len: range.end - range.start,
    }
}

impl HealPeer for GlusterPeer {
    fn name(&self) -> &str {
        self.copy.brick.name()
    }

    fn is_connected(&self) -> bool {
        self.copy.brick.is_connected()
    }

    fn close(&self) {
        self.copy.brick.close();
    }

    fn size(&self) -> Result<u64, PeerError> {
        let entry = self.copy.brick.lookup_gfid(self.copy.gfid, &[]);
        Ok(entry.map_err(|error| self.failed(error))?.iatt.size)
    }

    fn own_mark(&self) -> Result<i32, PeerError> {
        let name = self.pending_name.as_str();
        let entry = self.copy.brick.lookup_gfid(self.copy.gfid, &[name]);
        let entry = entry.map_err(|error| self.failed(error))?;
        entry
            .pending_data(name)
            .map_err(|error| PeerError::Refused {
                peer: self.copy.brick.name().to_owned(),
                source: Box::new(error),
            })
    }

    fn truncate(&self, size: u64) -> Result<(), PeerError> {
        let done = self.copy.brick.ftruncate(self.copy.gfid, size);
        done.map_err(|error| self.failed(error))
    }

    fn start_writes(&self, writes: &[(u64, &[u8])]) -> Result<Answer<()>, PeerError> {
        let sent = self.copy.brick.start_writes(self.fd, writes);
        let sent = sent.map_err(|error| self.failed(error))?;
        let peer = self.copy.brick.name().to_owned();
        Ok(Answer::new(move || {
            wait_all(sent).map_err(|error| peer_error(&peer, error))
        }))
    }

    fn start_zero(&self, range: Range<u64>) -> Result<Answer<()>, PeerError> {
        let length = range.end - range.start;
        let done = match self.copy.brick.discard(self.copy.gfid, range.start, length) {
            // A file system without holes.
            Err(error) if error.errno() == Some(Errno(libc::EOPNOTSUPP)) => self
                .copy
                .brick
                .zerofill(self.copy.gfid, range.start, length),
            done => done,
        };
        done.map_err(|error| self.failed(error))?;
        Ok(Answer::new(|| Ok(())))
    }

    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        self.copy.data_from(offset)
    }

    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        self.copy.start_checksum(range)
    }

    fn fsync(&self) -> Result<(), PeerError> {
        let done = self.copy.brick.fsync(self.fd, false);
        done.map_err(|error| self.failed(error))
    }

    fn lock(
        &self,
        range: Range<u64>,
        limit: Duration,
        stop: &AtomicBool,
    ) -> Result<bool, PeerError> {
        let stopped = || stop.load(Ordering::Relaxed);
        let patient = self.copy.brick.with_timeout(limit);
        self.copy
            .queue_data_lock(&patient, lock_range(&range), stopped)
            .map_err(|error| self.failed(error))
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        let (op, kind) = (LockOp::Unlock, LockKind::Write);
        let copy = &self.copy;
        let done = copy.data_lock(&copy.brick, op, kind, lock_range(&range));
        done.map(|_| ()).map_err(|error| self.failed(error))
    }
}

/// A lock owner of this healer alone, so that its locks are never taken for the
/// session's.
fn lock_owner() -> LkOwner {
    let mut owner = b"bypass-blk.heal:".to_vec();
    owner.extend(Uuid::new_v4().into_bytes());
    LkOwner::new(owner).unwrap_or_else(|_| unreachable!("32 bytes are taken"))
}
