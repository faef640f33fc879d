//! [`HealPeer`] over Gluster's brick protocol: one brick, by a connection of the
//! healer's own.

use std::ops::Range;

use uuid::Uuid;

use super::peer::{Answer, HealPeer, PeerError};
use crate::gluster::fops::InFlight;
use crate::gluster::locks::domain;
use crate::gluster::{
    Brick, BrickError, BrickSpec, Errno, FileType, Gfid, INTERNAL_PID, Identity, LkOwner, LockKind,
    LockOp, LockRange, Locked, StrongChecksum, Timeouts,
};
use crate::image::locate::Located;

/// The image's file on one brick.
pub struct GlusterPeer {
    brick: Brick,
    gfid: Gfid,
    /// The domain of AFR's data locks.
    data_domain: String,
}

impl GlusterPeer {
    /// Connects to `spec`, a brick of the image's replica set, and makes sure
    /// that it has the image's own file there.
    ///
    /// # Errors
    /// [`PeerError::Away`], [`PeerError::NoImage`], [`PeerError::OtherFile`].
    pub fn connect(
        located: &Located,
        spec: &BrickSpec,
        timeouts: &Timeouts,
    ) -> Result<Self, PeerError> {
        let peer = spec.to_string();
        let failed = |error| failed(&peer, error);
        let brick = Brick::connect(spec, located.volume_id, &identity(), timeouts);
        let brick = brick.map_err(failed)?;
        let entry = match brick.resolve(&located.image, &[]) {
            Err(error) if error.errno() == Some(Errno::NOENT) => {
                return Err(PeerError::NoImage { peer });
            }
            found => found.map_err(failed)?,
        };
        let found = match entry.iatt.file_type() {
            FileType::Regular if entry.gfid().0 == located.gfid => None,
            FileType::Regular => Some(entry.gfid().to_string()),
            kind => Some(format!("{kind:?}")),
        };
        match found {
            None => Ok(Self {
                brick,
                gfid: entry.gfid(),
                data_domain: domain::data(&located.set),
            }),
            Some(found) => Err(PeerError::OtherFile {
                peer,
                found,
                expected: located.gfid.to_string(),
            }),
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

    fn data_lock(&self, op: LockOp, range: &Range<u64>) -> Result<Locked, PeerError> {
        let range = LockRange {
            start: range.start,
            len: range.end - range.start,
        };
        let domain = &self.data_domain;
        self.brick
            .inodelk(self.gfid, domain, op, LockKind::Write, range)
            .map_err(|error| self.failed(error))
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

    fn truncate(&self, size: u64) -> Result<(), PeerError> {
        let done = self.brick.ftruncate(self.gfid, size);
        done.map_err(|error| self.failed(error))
    }

    fn start_write(&self, offset: u64, data: &[u8]) -> Result<Answer<()>, PeerError> {
        self.answer(self.brick.start_write(self.gfid, offset, data))
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

    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let sent = self.brick.start_rchecksum(self.gfid, range.start, length);
        let answer = self.answer(sent)?;
        Ok(Answer::new(move || answer.wait().map(|sum| sum.strong)))
    }

    fn fsync(&self) -> Result<(), PeerError> {
        let done = self.brick.fsync(self.gfid, false);
        done.map_err(|error| self.failed(error))
    }

    fn try_lock(&self, range: Range<u64>) -> Result<bool, PeerError> {
        Ok(self.data_lock(LockOp::Try, &range)? == Locked::Granted)
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        let _ = self.data_lock(LockOp::Unlock, &range)?;
        Ok(())
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
