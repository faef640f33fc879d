//! [`VerifyBrick`] over Gluster's brick protocol: one brick, by a connection of its
//! own, which may also hold the shared session lock.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::gluster::{
    Brick, BrickError, BrickSpec, Gfid, LkOwner, LockKind, LockOp, LockRange, Locked, OpenMode,
    StrongChecksum, Timeouts,
};
use crate::image::heal::{Answer, PeerError};
use crate::image::layout::FileIndex;
use crate::image::locate::Located;
use crate::image::verify::brick::{CopyMarks, VerifyBrick};
use crate::image::verify::error::VerifyError;

use super::brick_copy::BrickCopy;
use super::session_record::{RECORD, SESSION_DOMAIN, holder_of};

/// The image's files on one brick.
pub struct GlusterBrick {
    copy: BrickCopy,
    pending_names: Vec<String>,
}

impl GlusterBrick {
    /// Connects to `spec`, a brick of the image's replica set, and makes sure that it
    /// has the file at the image's path there. `owner` goes with every lock.
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

    /// The files that a part of the disk lies in, as far as there are any.
    fn files(&self, part: &Range<u64>) -> Vec<FileIndex> {
        let layout = &self.copy.layout;
        if layout.is_whole() {
            return vec![FileIndex::BASE];
        }
        let last = part.end.min(layout.size()).saturating_sub(1);
        let (first, last) = (layout.place(part.start).0, layout.place(last).0);
        let within = layout.files().filter(|file| (first..=last).contains(file));
        within
            .filter(|file| self.copy.gfid(*file) != Gfid::NONE)
            .collect()
    }

    fn missing(&self, file: FileIndex) -> PeerError {
        let peer = self.copy.name().to_owned();
        match file {
            FileIndex::BASE => PeerError::NoImage { peer },
            FileIndex(shard) => PeerError::NoShard { peer, shard },
        }
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
    fn state(&self, part: &Range<u64>) -> Result<CopyMarks, PeerError> {
        let want: Vec<&str> = self.pending_names.iter().map(String::as_str).collect();
        let files = self.files(part);
        let gfids: Vec<_> = files.iter().map(|file| self.copy.gfid(*file)).collect();
        let entries = self.copy.brick.lookup_gfids(&gfids, &want);
        let entries = entries.map_err(|error| self.failed(error))?;
        let mut marks = CopyMarks {
            size: self.copy.layout.size(),
            accused: BTreeMap::new(),
        };
        for (file, entry) in files.into_iter().zip(entries) {
            let entry = entry.ok_or_else(|| self.missing(file))?;
            for (child, name) in self.pending_names.iter().enumerate() {
                let counter = entry.pending_data(name);
                let counter = counter.map_err(|error| PeerError::Refused {
                    peer: self.copy.name().to_owned(),
                    source: format!("{name}: {error}").into(),
                });
                if counter? != 0 {
                    marks.accused.entry(child).or_insert(file);
                }
            }
            if self.copy.layout.is_whole() {
                marks.size = entry.iatt.size;
            }
        }
        Ok(marks)
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
            Err(error) => Err(self.copy.failed_at(range.start)(error)),
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
