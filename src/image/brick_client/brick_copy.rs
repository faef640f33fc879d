//! The image's file on one brick, over a connection of its own: what a healer and a comparison
//! have in common. The session, which connects anew and goes on with the connections of another
//! process, has [`super::session_port`].

use std::ops::Range;

use crate::gluster::locks::domain;
use crate::gluster::{
    Brick, BrickError, BrickSpec, Gfid, INTERNAL_PID, Identity, LkOwner, LockKind, LockOp,
    LockRange, Locked, SeekTo, StrongChecksum, Timeouts,
};
use crate::image::heal::{Answer, PeerError};
use crate::image::locate::Located;

use super::failure::peer_error;

/// The image's file on one brick. The connection ends with it.
pub(super) struct BrickCopy {
    pub brick: Brick,
    pub gfid: Gfid,
    /// The domain of AFR's data locks.
    data_domain: String,
}

impl BrickCopy {
    /// Connects to `spec`, a brick of the image's replica set, and makes sure that it has the
    /// image's own file, whatever it is called there. To the brick this program is `process`,
    /// and `owner` goes with every lock.
    ///
    /// # Errors
    /// [`PeerError::Away`], [`PeerError::Unusable`], [`PeerError::Refused`],
    /// [`PeerError::NoImage`].
    pub fn connect(
        located: &Located,
        spec: &BrickSpec,
        process: &str,
        owner: LkOwner,
        timeouts: &Timeouts,
    ) -> Result<Self, PeerError> {
        let identity = Identity {
            process_name: process.to_owned(),
            pid: INTERNAL_PID,
            lk_owner: owner,
        };
        let brick = Brick::connect(spec, located.volume_id, &identity, timeouts);
        let copy = Self {
            brick: brick.map_err(|error| peer_error(&spec.to_string(), error))?,
            gfid: Gfid(located.gfid),
            data_domain: domain::data(&located.set),
        };
        match copy.brick.lookup_gfid(copy.gfid, &[]) {
            Ok(_) => Ok(copy),
            Err(error) if error.is_no_file() => Err(PeerError::NoImage {
                peer: spec.to_string(),
            }),
            Err(error) => Err(copy.failed(error)),
        }
    }

    /// `host:path`.
    pub fn name(&self) -> &str {
        self.brick.name()
    }

    pub fn failed(&self, error: BrickError) -> PeerError {
        peer_error(self.name(), error)
    }

    /// AFR's data lock, asked for over `brick`: this copy's, or its with another time limit.
    pub fn data_lock(
        &self,
        brick: &Brick,
        op: LockOp,
        kind: LockKind,
        range: LockRange,
    ) -> Result<Locked, BrickError> {
        brick.inodelk(self.gfid, &self.data_domain, op, kind, range)
    }

    /// Queues for AFR's data lock as a writer; see [`Brick::queue_inodelk`].
    pub fn queue_data_lock(
        &self,
        brick: &Brick,
        range: LockRange,
        stopped: impl Fn() -> bool,
    ) -> Result<bool, BrickError> {
        brick.queue_inodelk(
            self.gfid,
            &self.data_domain,
            LockKind::Write,
            range,
            stopped,
        )
    }

    /// Where data may begin at or after a byte; `None`: nowhere up to the end.
    pub fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        match self.brick.seek(self.gfid, offset, SeekTo::Data) {
            // A file system that does not know its holes.
            Err(BrickError::Refused { .. }) => Ok(Some(offset)),
            found => found.map_err(|error| self.failed(error)),
        }
    }

    /// The strong checksum of a range of at most [`crate::gluster::MAX_IO`] bytes.
    pub fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let sent = self.brick.start_rchecksum(self.gfid, range.start, length);
        let sent = sent.map_err(|error| self.failed(error))?;
        let peer = self.name().to_owned();
        Ok(Answer::new(move || {
            let sum = sent.wait().map_err(|error| peer_error(&peer, error))?;
            Ok(sum.strong)
        }))
    }
}

impl Drop for BrickCopy {
    fn drop(&mut self) {
        self.brick.close();
    }
}
