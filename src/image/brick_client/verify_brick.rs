//! [`VerifyBrick`] over Gluster's brick protocol: one brick, by a connection of its
//! own, which may also hold the shared session lock.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::gluster::{
    Brick, BrickError, BrickSpec, LkOwner, LockKind, LockOp, LockRange, Locked, OpenMode,
    StrongChecksum, Timeouts,
};
use crate::image::heal::{Answer, PeerError};
use crate::image::locate::Located;
use crate::image::replica::brick_port::CopyState;
use crate::image::verify::brick::VerifyBrick;
use crate::image::verify::error::VerifyError;

use super::brick_copy::BrickCopy;
use super::session_record::{RECORD, SESSION_DOMAIN, holder_of};

/// The image's file on one brick.
pub struct GlusterBrick {
    copy: BrickCopy,
    pending_names: Vec<String>,
}

impl GlusterBrick {
    /// Connects to `spec`, a brick of the image's replica set, and makes sure that it
    /// has the image's own file there. `owner` goes with every lock.
    ///
    /// # Errors
    /// [`PeerError::Away`], [`PeerError::Unusable`], [`PeerError::NoImage`].
    pub fn connect(
        located: &Located,
        spec: &BrickSpec,
        owner: LkOwner,
        timeouts: &Timeouts,
    ) -> Result<Self, PeerError> {
        let (process, layout) = ("bypass-blk-verify", Arc::new(located.layout()));
        Ok(Self {
            copy: BrickCopy::connect(located, spec, &layout, process, owner, timeouts)?,
            pending_names: located.set.pending_names.clone(),
        })
    }

    /// Takes the session lock as read-only sessions do, for as long as the connection
    /// lasts, so that no session begins to write. The record tells whom it keeps out
    /// who has it, if `owner` was a [`Holder`]'s.
    ///
    /// # Errors
    /// [`Unheld::By`] when a session has the image; [`Unheld::Failed`].
    pub fn hold(&self) -> Result<(), Unheld> {
        let session = self.copy.brick.inodelk(
            self.copy.base(),
            SESSION_DOMAIN,
            LockOp::Try,
            LockKind::Read,
            LockRange::WHOLE,
        );
        let taken = session.map_err(|error| self.failed(error))?;
        // Locks of open files go with the connection, like all others.
        let fd = self.copy.brick.open(self.copy.base(), OpenMode::Read);
        let fd = fd.map_err(|error| self.failed(error))?;
        if taken == Locked::Granted {
            // Where it is not free nothing is lost but a name in a message.
            let record = self
                .copy
                .brick
                .lk(fd, LockOp::Try, LockKind::Read, RECORD, false);
            return match record.map_err(|error| self.failed(error))? {
                Locked::Granted | Locked::WouldBlock => Ok(()),
            };
        }
        let holder = holder_of(&self.copy.brick, fd);
        Err(Unheld::By(VerifyError::Held {
            brick: self.copy.name().to_owned(),
            holder: holder.map_err(|error| self.failed(error))?,
        }))
    }

    fn failed(&self, error: BrickError) -> PeerError {
        self.copy.failed(error)
    }

    fn data_lock(
        &self,
        brick: &Brick,
        op: LockOp,
        range: &Range<u64>,
    ) -> Result<Locked, BrickError> {
        self.copy.data_lock(brick, op, LockKind::Read, range)
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
        let entry = self.copy.brick.lookup_gfid(self.copy.base(), &want);
        let entry = entry.map_err(|error| self.failed(error))?;
        let counter = |name: &String| {
            let counter = entry.pending_data(name);
            counter.map_err(|error| PeerError::Refused {
                peer: self.copy.brick.name().to_owned(),
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
        self.copy.start_checksum(range)
    }

    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        self.copy.data_from(offset)
    }

    fn try_lock(&self, range: Range<u64>) -> Result<bool, PeerError> {
        match self.data_lock(&self.copy.brick, LockOp::Try, &range) {
            Ok(locked) => Ok(locked == Locked::Granted),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn wait_lock(&self, range: Range<u64>, limit: Duration) -> Result<bool, PeerError> {
        let patient = self.copy.brick.with_timeout(limit);
        match self.data_lock(&patient, LockOp::Wait, &range) {
            Ok(locked) => Ok(locked == Locked::Granted),
            // Granted later, it is given back.
            Err(BrickError::Timeout { .. }) => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        match self.data_lock(&self.copy.brick, LockOp::Unlock, &range) {
            Ok(Locked::Granted | Locked::WouldBlock) => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn close(&self) {
        self.copy.brick.close();
    }
}
