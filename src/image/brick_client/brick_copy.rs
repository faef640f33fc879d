//! An image's files on one brick, over a connection of its own: what a healer and a comparison
//! have in common. The session, which connects anew and goes on with the connections of another
//! process, has [`super::session_port`].
//!
//! Both ask in terms of the disk, for what lies in one file at a time; here it becomes that
//! file and an offset in it. Behind the end of a file of several there are zeros.

use std::ops::Range;
use std::sync::Arc;

use md5::Md5;
use sha2::{Digest, Sha256};

use crate::gluster::locks::domain;
use crate::gluster::{
    Brick, BrickError, BrickSpec, Gfid, INTERNAL_PID, Identity, LkOwner, LockKind, LockOp,
    LockRange, Locked, SeekTo, StrongChecksum, Timeouts,
};
use crate::image::heal::{Answer, PeerError};
use crate::image::layout::{FileIndex, Layout};
use crate::image::locate::Located;

use super::failure::peer_error;

/// The image's files on one brick. The connection ends with it.
pub(super) struct BrickCopy {
    pub brick: Brick,
    pub layout: Arc<Layout>,
    /// The domain of AFR's data locks.
    data_domain: String,
}

impl BrickCopy {
    /// Connects to `spec`, a brick of the image's replica set, and makes sure that it has the
    /// file at the image's path, whatever it is called there. To the brick this program is
    /// `process`, and `owner` goes with every lock.
    ///
    /// # Errors
    /// [`PeerError::Away`], [`PeerError::Unusable`], [`PeerError::Refused`],
    /// [`PeerError::NoImage`].
    pub fn connect(
        located: &Located,
        spec: &BrickSpec,
        layout: &Arc<Layout>,
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
            layout: Arc::clone(layout),
            data_domain: domain::data(&located.set),
        };
        match copy.brick.lookup_gfid(copy.base(), &[]) {
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

    /// [`BrickCopy::failed`] of a call about this file.
    pub fn failed_on(&self, file: FileIndex) -> impl Fn(BrickError) -> PeerError {
        move |error| match file {
            FileIndex(shard) if shard > 0 && error.is_no_file() => PeerError::NoShard {
                peer: self.name().to_owned(),
                shard,
            },
            _ => self.failed(error),
        }
    }

    /// [`BrickCopy::failed`] of a call about what lies at this byte of the disk.
    pub fn failed_at(&self, offset: u64) -> impl Fn(BrickError) -> PeerError {
        self.failed_on(self.layout.place(offset).0)
    }

    /// The file at the image's path: of it are the locks of the image.
    pub fn base(&self) -> Gfid {
        self.gfid(FileIndex::BASE)
    }

    pub fn gfid(&self, file: FileIndex) -> Gfid {
        Gfid(self.layout.gfid(file))
    }

    /// The file that a byte of the disk lies in, and where there.
    pub fn place(&self, offset: u64) -> (FileIndex, Gfid, u64) {
        let (file, at) = self.layout.place(offset);
        (file, self.gfid(file), at)
    }

    /// AFR's data lock, asked for over `brick`: this copy's, or its with another time limit.
    pub fn data_lock(
        &self,
        brick: &Brick,
        op: LockOp,
        kind: LockKind,
        range: &Range<u64>,
    ) -> Result<Locked, BrickError> {
        let (gfid, range) = self.in_file(range);
        if gfid == Gfid::NONE {
            return Ok(Locked::Granted);
        }
        brick.inodelk(gfid, &self.data_domain, op, kind, range)
    }

    /// Queues for AFR's data lock as a writer; see [`Brick::queue_inodelk`].
    pub fn queue_data_lock(
        &self,
        brick: &Brick,
        range: &Range<u64>,
        stopped: impl Fn() -> bool,
    ) -> Result<bool, BrickError> {
        let (gfid, range) = self.in_file(range);
        let (domain, kind) = (&self.data_domain, LockKind::Write);
        brick.queue_inodelk(gfid, domain, kind, range, stopped)
    }

    fn in_file(&self, range: &Range<u64>) -> (Gfid, LockRange) {
        let (_, gfid, start) = self.place(range.start);
        let len = match range.end {
            // To the end, wherever that is.
            u64::MAX => 0,
            end => end - range.start,
        };
        (gfid, LockRange { start, len })
    }

    /// Where data may begin at or after a byte; `None`: nowhere up to the end of the file that
    /// it lies in.
    pub fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        let (file, gfid, at) = self.place(offset);
        if gfid == Gfid::NONE {
            return Ok(None);
        }
        match self.brick.seek(gfid, at, SeekTo::Data) {
            Err(error) if error.is_no_file() => Err(self.failed_on(file)(error)),
            // A file system that does not know its holes.
            Err(BrickError::Refused { .. }) => Ok(Some(offset)),
            Ok(found) => Ok(found.map(|data| offset + data.saturating_sub(at))),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The strong checksum of a range of at most [`crate::gluster::MAX_IO`] bytes. Of an image
    /// that is one file a brick sums the part before its end.
    pub fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let (file, gfid, start) = self.place(range.start);
        if gfid == Gfid::NONE {
            let nothing = StrongChecksum::Sha256([0; 32]);
            return Ok(Answer::new(move || Ok(sum_of(&[], length, &nothing))));
        }
        let (brick, failed) = (self.brick.clone(), {
            let peer = self.name().to_owned();
            move |error| peer_error(&peer, error)
        });
        let sent = brick.start_rchecksum(gfid, start, length);
        let sent = sent.map_err(self.failed_on(file))?;
        if self.layout.is_whole() {
            return Ok(Answer::new(move || Ok(sent.wait().map_err(failed)?.strong)));
        }
        let looked = brick.start_lookup_gfid(gfid, &[]);
        let looked = looked.map_err(self.failed_on(file))?;
        Ok(Answer::new(move || {
            let sum = sent.wait().map_err(&failed)?.strong;
            let end = looked.wait().map_err(&failed)?.iatt.size;
            if end >= start + length as u64 {
                return Ok(sum);
            }
            let read = brick.read(gfid, start, length).map_err(failed)?;
            Ok(sum_of(&read, length, &sum))
        }))
    }
}

/// The sum, of the kind of another one, of `bytes` and of zeros up to `length`.
fn sum_of(bytes: &[u8], length: usize, like: &StrongChecksum) -> StrongChecksum {
    let mut all = bytes.to_vec();
    all.resize(length, 0);
    match like {
        StrongChecksum::Sha256(_) => StrongChecksum::Sha256(Sha256::digest(&all).into()),
        StrongChecksum::Md5(_) => StrongChecksum::Md5(Md5::digest(&all).into()),
    }
}

impl Drop for BrickCopy {
    fn drop(&mut self) {
        self.brick.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_file_has_the_sum_of_one_with_zeros_in_both_kinds() {
        let mut whole = vec![7; 700];
        whole.resize(4096, 0);
        let sha256 = StrongChecksum::Sha256(Sha256::digest(&whole).into());
        let md5 = StrongChecksum::Md5(Md5::digest(&whole).into());
        for sum in [sha256, md5] {
            assert_eq!(sum_of(&whole[..700], 4096, &sum), sum);
            assert_ne!(sum_of(&whole[..699], 4096, &sum), sum);
        }
    }
}
