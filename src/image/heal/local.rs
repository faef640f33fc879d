//! The local copy: read for the healer, summed as bricks do it, made durable.
//!
//! Never written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use md5::Md5;
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::gluster::StrongChecksum;

/// What direct I/O must be aligned to, on any disk.
const PAGE: usize = 4096;

/// A page, for its alignment.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// The file and a buffer for its bytes.
pub struct LocalCopy {
    file: File,
    buffer: Vec<Page>,
}

impl LocalCopy {
    /// Reads `file`, which may be open for direct I/O, in pieces of at most `max`
    /// bytes.
    pub fn new(file: File, max: usize) -> Self {
        let page = Page::new_zeroed();
        Self {
            file,
            buffer: vec![page; max.div_ceil(PAGE)],
        }
    }

    /// Its size in bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The bytes of `range`, which begins at a multiple of 4096.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` behind the file's end, `InvalidInput` for
    /// more than the buffer takes.
    pub fn read(&mut self, range: &Range<u64>) -> io::Result<&[u8]> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let buffer = self.buffer.as_mut_bytes();
        // Direct I/O reads whole blocks, also of the last one of a file.
        let buffer = length
            .checked_next_multiple_of(PAGE)
            .and_then(|whole| buffer.get_mut(..whole))
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut have = 0;
        while have < length {
            let space = buffer.get_mut(have..).unwrap_or_default();
            match self.file.read_at(space, range.start + have as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer
            .get(..length)
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Makes its data durable.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Are all bytes zero?
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; PAGE] = [0; PAGE];
    let mut pieces = bytes.chunks(PAGE);
    pieces.all(|piece| ZEROS.get(..piece.len()) == Some(piece))
}

/// Have `bytes` this checksum?
pub fn has_sum(bytes: &[u8], sum: &StrongChecksum) -> bool {
    match sum {
        StrongChecksum::Sha256(sum) => Sha256::digest(bytes).as_slice() == sum,
        StrongChecksum::Md5(sum) => Md5::digest(bytes).as_slice() == sum,
    }
}
