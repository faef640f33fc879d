//! What verifying asks of one brick.
//!
//! The seam to Gluster: [`crate::image::brick_client::verify_brick`] implements it over the brick
//! protocol, tests put simulated bricks here. It decides nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::gluster::StrongChecksum;
use crate::image::heal::{Answer, PeerError};
use crate::image::layout::FileIndex;

/// Every byte that an image can have.
pub const WHOLE: Range<u64> = 0..u64::MAX;

/// What a brick says of its copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyMarks {
    /// Bytes of the disk. Of an image in several files that is no brick's to say: they are
    /// as long as they were written.
    pub size: u64,
    /// The children that miss data, each with the first of the files whose mark says so.
    pub accused: BTreeMap<usize, FileIndex>,
}

/// One connection to one brick, for one image. Every call has a time limit of its
/// own. It is never renewed: once it broke, every call fails.
///
/// Offsets are those of the disk. What one call is about lies in one file of the image's
/// layout, but for [`VerifyBrick::state`] and for a lock of an image that is one file.
pub trait VerifyBrick: Send {
    /// Size and marks, as the brick tells them now: those of all files that `part` of the disk
    /// lies in.
    ///
    /// # Errors
    /// See [`PeerError`], here and below.
    fn state(&self, part: &Range<u64>) -> Result<CopyMarks, PeerError>;

    /// The strong checksum of a range of at most [`crate::gluster::MAX_IO`] bytes: of
    /// the part of it that is in the file. Behind the end of a file of several there are zeros.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError>;

    /// Where data may begin at or after a byte; what is before it reads as zeros. `None`:
    /// nowhere up to the end of the file that the byte lies in.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError>;

    /// Tries to take AFR's data lock on a range (or on [`WHOLE`]), shared with other
    /// readers, without waiting. `false`: a writer has it; the brick has then asked it
    /// to give way.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn try_lock(&self, range: Range<u64>) -> Result<bool, PeerError>;

    /// As [`VerifyBrick::try_lock`], but queues for the lock for at most `limit`.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn wait_lock(&self, range: Range<u64>, limit: Duration) -> Result<bool, PeerError>;

    /// Gives the lock on exactly that range back.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError>;

    /// Ends the connection; locks held through it go.
    fn close(&self);
}
