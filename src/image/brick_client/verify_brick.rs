//! [`VerifyBrick`] over Gluster's brick protocol: one brick, by a connection of its
//! own, which may also hold the shared session lock.

use std::ops::Range;
use std::time::Duration;

use crate::gluster::locks::domain;
use crate::gluster::{
    Brick, BrickError, BrickSpec, Gfid, INTERNAL_PID, Identity, LkOwner, LockKind, LockOp,
    LockRange, Locked, OpenMode, SeekTo, StrongChecksum, Timeouts,
};
use crate::image::heal::{Answer, PeerError};
use crate::image::locate::Located;
use crate::image::replica::brick_port::CopyState;
use crate::image::replica::holder::Holder;
use crate::image::verify::brick::{VerifyBrick, WHOLE};
use crate::image::verify::error::VerifyError;

use super::session_port::{RECORD, SESSION_DOMAIN};

/// The image's file on one brick.
pub struct GlusterBrick {
    brick: Brick,
    gfid: Gfid,
    /// The domain of AFR's data locks.
    data_domain: String,
    pending_names: Vec<String>,
}

impl GlusterBrick {
    /// Connects to `spec`, a brick of the image's replica set, and makes sure that it
    /// has the image's own file there. `owner` goes with every lock.
    ///
    /// # Errors
    /// [`PeerError::Away`], [`PeerError::NoImage`].
    pub fn connect(
        located: &Located,
        spec: &BrickSpec,
        owner: LkOwner,
        timeouts: &Timeouts,
    ) -> Result<Self, PeerError> {
        let identity = Identity {
            process_name: "bypass-blk-verify".to_owned(),
            pid: INTERNAL_PID,
            lk_owner: owner,
        };
        let brick = Brick::connect(spec, located.volume_id, &identity, timeouts);
        // From here on the connection ends with this, whatever happens.
        let image = Self {
            brick: brick.map_err(|error| failed(&spec.to_string(), error))?,
            gfid: Gfid(located.gfid),
            data_domain: domain::data(&located.set),
            pending_names: located.set.pending_names.clone(),
        };
        image.check_file()?;
        Ok(image)
    }

    /// Has the brick the image's file, whatever it is called there?
    fn check_file(&self) -> Result<(), PeerError> {
        let peer = self.brick.name().to_owned();
        match self.brick.lookup_gfid(self.gfid, &[]) {
            Ok(_) => Ok(()),
            Err(error) if error.is_no_file() => Err(PeerError::NoImage { peer }),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Takes the session lock as read-only sessions do, for as long as the connection
    /// lasts, so that no session begins to write. The record tells whom it keeps out
    /// who has it, if `owner` was a [`Holder`]'s.
    ///
    /// # Errors
    /// [`Unheld::By`] when a session has the image; [`Unheld::Failed`].
    pub fn hold(&self) -> Result<(), Unheld> {
        let session = self.brick.inodelk(
            self.gfid,
            SESSION_DOMAIN,
            LockOp::Try,
            LockKind::Read,
            LockRange::WHOLE,
        );
        let taken = session.map_err(|error| self.failed(error))?;
        // Locks of open files go with the connection, like all others.
        let fd = self.brick.open(self.gfid, OpenMode::Read);
        let fd = fd.map_err(|error| self.failed(error))?;
        if taken == Locked::Granted {
            // Where it is not free nothing is lost but a name in a message.
            let record = self
                .brick
                .lk(fd, LockOp::Try, LockKind::Read, RECORD, false);
            return match record.map_err(|error| self.failed(error))? {
                Locked::Granted | Locked::WouldBlock => Ok(()),
            };
        }
        let record = self.brick.lk_conflict(fd, LockKind::Write, RECORD);
        let record = record.map_err(|error| self.failed(error))?;
        Err(Unheld::By(VerifyError::Held {
            brick: self.brick.name().to_owned(),
            holder: record.and_then(|lock| Holder::decode(&lock.lk_owner)),
        }))
    }

    fn failed(&self, error: BrickError) -> PeerError {
        failed(self.brick.name(), error)
    }

    fn data_lock(
        &self,
        brick: &Brick,
        op: LockOp,
        range: &Range<u64>,
    ) -> Result<Locked, BrickError> {
        let range = LockRange {
            start: range.start,
            len: if *range == WHOLE {
                0
            } else {
                range.end - range.start
            },
        };
        brick.inodelk(self.gfid, &self.data_domain, op, LockKind::Read, range)
    }
}

/// Why the session lock is not held.
#[derive(Debug)]
pub enum Unheld {
    /// A session has the image: [`VerifyError::Held`].
    By(VerifyError),
    /// The brick.
    Failed(PeerError),
}

impl From<PeerError> for Unheld {
    fn from(error: PeerError) -> Self {
        Self::Failed(error)
    }
}

impl VerifyBrick for GlusterBrick {
    fn state(&self) -> Result<CopyState, PeerError> {
        let want: Vec<&str> = self.pending_names.iter().map(String::as_str).collect();
        let entry = self.brick.lookup_gfid(self.gfid, &want);
        let entry = entry.map_err(|error| self.failed(error))?;
        let counter = |name: &String| {
            let counter = entry.pending_data(name);
            counter.map_err(|error| PeerError::Refused {
                peer: self.brick.name().to_owned(),
                source: format!("{name}: {error}").into(),
            })
        };
        let pending = self.pending_names.iter().map(counter);
        Ok(CopyState {
            gfid: entry.iatt.gfid.0,
            size: entry.iatt.size,
            pending: pending.collect::<Result<_, _>>()?,
            // Nobody here asks for these.
            dirty: 0,
            fenced: false,
        })
    }

    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let sent = self.brick.start_rchecksum(self.gfid, range.start, length);
        let sent = sent.map_err(|error| self.failed(error))?;
        let peer = self.brick.name().to_owned();
        Ok(Answer::new(move || {
            let sum = sent.wait().map_err(|error| failed(&peer, error))?;
            Ok(sum.strong)
        }))
    }

    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        match self.brick.seek(self.gfid, offset, SeekTo::Data) {
            // A file system that does not know its holes.
            Err(BrickError::Refused { .. }) => Ok(Some(offset)),
            found => found.map_err(|error| self.failed(error)),
        }
    }

    fn try_lock(&self, range: Range<u64>) -> Result<bool, PeerError> {
        match self.data_lock(&self.brick, LockOp::Try, &range) {
            Ok(locked) => Ok(locked == Locked::Granted),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn wait_lock(&self, range: Range<u64>, limit: Duration) -> Result<bool, PeerError> {
        let patient = self.brick.with_timeout(limit);
        match self.data_lock(&patient, LockOp::Wait, &range) {
            Ok(locked) => Ok(locked == Locked::Granted),
            // Granted later, it is given back.
            Err(BrickError::Timeout { .. }) => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        match self.data_lock(&self.brick, LockOp::Unlock, &range) {
            Ok(Locked::Granted | Locked::WouldBlock) => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn close(&self) {
        self.brick.close();
    }
}

impl Drop for GlusterBrick {
    fn drop(&mut self) {
        self.brick.close();
    }
}

/// An answer that says no keeps the connection.
fn failed(peer: &str, error: BrickError) -> PeerError {
    let peer = peer.to_owned();
    let refused = matches!(
        error,
        BrickError::Refused { .. } | BrickError::Path { .. } | BrickError::TooLong { .. }
    );
    let source = Box::new(error);
    if refused {
        PeerError::Refused { peer, source }
    } else {
        PeerError::Away { peer, source }
    }
}
