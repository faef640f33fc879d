//! [`HealPeer`] over Gluster's brick protocol: one brick, by a connection of the
//! healer's own.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::gluster::fops::InFlight;
use crate::gluster::locks::domain;
use crate::gluster::{
    Brick, BrickError, Errno, Gfid, INTERNAL_PID, Identity, LkOwner, LockKind, LockOp, LockRange,
    Locked, OpenMode, RemoteFd, SeekTo, StrongChecksum, Timeouts,
};
use crate::image::heal::peer::{Answer, HealPeer, PeerError};
use crate::image::locate::Located;
use crate::image::replica::copy_lock;
use crate::image::replica::holder::Holder;

use super::session_port::RECORD;

/// The image's file on one brick.
pub struct GlusterPeer {
    brick: Brick,
    gfid: Gfid,
    /// The file, open as long as the connection lasts: a brick opens and closes it for
    /// each write without. An FSYNC through it is told of everything that went wrong
    /// with the writes.
    fd: RemoteFd,
    /// The domain of AFR's data locks.
    data_domain: String,
    /// The attribute with which bricks accuse this copy.
    pending_name: String,
}

impl GlusterPeer {
    /// Connects to brick `child` of the image's replica set, makes sure that it
    /// has the image's own file there, and takes the copy lock of `session`.
    ///
    /// # Errors
    /// [`PeerError::NoBrick`], [`PeerError::Away`], [`PeerError::NoImage`],
    /// [`PeerError::CopyLocked`], [`PeerError::NotHeld`].
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
        let name = spec.to_string();
        let failed = |error| failed(&name, error);
        let gfid = Gfid(located.gfid);
        // The connection ends with its last handle, whatever happens.
        let brick = Brick::connect(spec, located.volume_id, &identity(), timeouts);
        let brick = brick.map_err(failed)?;
        check_file(&brick, gfid)?;
        let fd = brick.open(gfid, OpenMode::ReadWrite).map_err(failed)?;
        let peer = Self {
            brick,
            gfid,
            fd,
            data_domain: domain::data(&located.set),
            pending_name: pending_name.clone(),
        };
        peer.lock_copies(session)?;
        Ok(peer)
    }

    /// First the lock, then the look at the record. The other way round, a session
    /// could take this brick in between, find nobody copying, and be written over.
    fn lock_copies(&self, session: Uuid) -> Result<(), PeerError> {
        let peer = self.brick.name().to_owned();
        let range = copy_lock::own(session);
        let domain = copy_lock::DOMAIN;
        let taken = self
            .brick
            .inodelk(self.gfid, domain, LockOp::Try, LockKind::Write, range);
        if taken.map_err(|error| self.failed(error))? == Locked::WouldBlock {
            return Err(PeerError::CopyLocked { peer });
        }
        let record = self.brick.lk_conflict(self.fd, LockKind::Write, RECORD);
        let record = record.map_err(|error| self.failed(error))?;
        let holder = record.and_then(|lock| Holder::decode(&lock.lk_owner));
        match holder {
            Some(holder) if holder.session == session => Ok(()),
            holder => Err(PeerError::NotHeld { peer, holder }),
        }
    }

    fn failed(&self, error: BrickError) -> PeerError {
        failed(self.brick.name(), error)
    }

    fn answer<T: 'static>(
        &self,
        sent: Result<InFlight<T>, BrickError>,
    ) -> Result<Answer<T>, PeerError> {
        let sent = sent.map_err(|error| self.failed(error))?;
        let peer = self.brick.name().to_owned();
        Ok(Answer::new(move || {
            sent.wait().map_err(|error| failed(&peer, error))
        }))
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

/// Has the brick the image's file, whatever it is called now?
fn check_file(brick: &Brick, gfid: Gfid) -> Result<(), PeerError> {
    let peer = brick.name().to_owned();
    match brick.lookup_gfid(gfid, &[]) {
        Ok(_) => Ok(()),
        Err(error) if error.is_no_file() => Err(PeerError::NoImage { peer }),
        Err(error) => Err(failed(&peer, error)),
    }
}

fn lock_range(range: &Range<u64>) -> LockRange {
    LockRange {
        start: range.start,
        len: range.end - range.start,
    }
}

impl HealPeer for GlusterPeer {
    fn name(&self) -> &str {
        self.brick.name()
    }

    fn is_connected(&self) -> bool {
        self.brick.is_connected()
    }

    fn close(&self) {
        self.brick.close();
    }

    fn size(&self) -> Result<u64, PeerError> {
        let entry = self.brick.lookup_gfid(self.gfid, &[]);
        Ok(entry.map_err(|error| self.failed(error))?.iatt.size)
    }

    fn own_mark(&self) -> Result<i32, PeerError> {
        let name = self.pending_name.as_str();
        let entry = self.brick.lookup_gfid(self.gfid, &[name]);
        let entry = entry.map_err(|error| self.failed(error))?;
        entry
            .pending_data(name)
            .map_err(|error| PeerError::Refused {
                peer: self.brick.name().to_owned(),
                source: Box::new(error),
            })
    }

    fn truncate(&self, size: u64) -> Result<(), PeerError> {
        let done = self.brick.ftruncate(self.gfid, size);
        done.map_err(|error| self.failed(error))
    }

    fn start_writes(&self, writes: &[(u64, &[u8])]) -> Result<Answer<()>, PeerError> {
        let sent = self.brick.start_writes(self.fd, writes);
        let sent = sent.map_err(|error| self.failed(error))?;
        let peer = self.brick.name().to_owned();
        Ok(Answer::new(move || {
            wait_all(sent).map_err(|error| failed(&peer, error))
        }))
    }

    fn start_zero(&self, range: Range<u64>) -> Result<Answer<()>, PeerError> {
        let length = range.end - range.start;
        let done = match self.brick.discard(self.gfid, range.start, length) {
            // A file system without holes.
            Err(error) if error.errno() == Some(Errno(libc::EOPNOTSUPP)) => {
                self.brick.zerofill(self.gfid, range.start, length)
            }
            done => done,
        };
        done.map_err(|error| self.failed(error))?;
        Ok(Answer::new(|| Ok(())))
    }

    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        match self.brick.seek(self.gfid, offset, SeekTo::Data) {
            // A file system that does not know its holes.
            Err(BrickError::Refused { .. }) => Ok(Some(offset)),
            found => found.map_err(|error| self.failed(error)),
        }
    }

    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let sent = self.brick.start_rchecksum(self.gfid, range.start, length);
        let answer = self.answer(sent)?;
        Ok(Answer::new(move || answer.wait().map(|sum| sum.strong)))
    }

    fn fsync(&self) -> Result<(), PeerError> {
        let done = self.brick.fsync(self.fd, false);
        done.map_err(|error| self.failed(error))
    }

    fn lock(
        &self,
        range: Range<u64>,
        limit: Duration,
        stop: &AtomicBool,
    ) -> Result<bool, PeerError> {
        let (domain, range) = (&self.data_domain, lock_range(&range));
        let stopped = || stop.load(Ordering::Relaxed);
        self.brick
            .with_timeout(limit)
            .queue_inodelk(self.gfid, domain, LockKind::Write, range, stopped)
            .map_err(|error| self.failed(error))
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        let (domain, range) = (&self.data_domain, lock_range(&range));
        let (op, kind) = (LockOp::Unlock, LockKind::Write);
        let done = self.brick.inodelk(self.gfid, domain, op, kind, range);
        done.map(|_| ()).map_err(|error| self.failed(error))
    }
}

impl Drop for GlusterPeer {
    fn drop(&mut self) {
        self.brick.close();
    }
}

/// A lock owner of this healer alone, so that its locks are never taken for the
/// session's.
fn identity() -> Identity {
    let mut owner = b"bypass-blk.heal:".to_vec();
    owner.extend(Uuid::new_v4().into_bytes());
    Identity {
        process_name: "bypass-blk-heal".to_owned(),
        pid: INTERNAL_PID,
        lk_owner: LkOwner::new(owner).unwrap_or_else(|_| unreachable!("32 bytes are taken")),
    }
}

/// An answer that says no keeps the connection; after anything else it is unknown
/// what the brick did.
fn failed(peer: &str, error: BrickError) -> PeerError {
    let peer = peer.to_owned();
    match error {
        BrickError::Refused { .. } | BrickError::Path { .. } | BrickError::TooLong { .. } => {
            PeerError::Refused {
                peer,
                source: Box::new(error),
            }
        }
        _ => PeerError::Away {
            peer,
            source: Box::new(error),
        },
    }
}
