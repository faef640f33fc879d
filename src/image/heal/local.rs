//! The local copy: read for the healer, summed as bricks do it.
//!
//! Never written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

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
    file: Arc<File>,
    buffer: Vec<Page>,
}

impl LocalCopy {
    /// Reads `file`, which may be open for direct I/O, in pieces of at most `max`
    /// bytes.
    pub fn new(file: Arc<File>, max: usize) -> Self {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    /// Open for direct I/O, on a disk that has it.
    fn copy_of(bytes: &[u8], max: usize) -> LocalCopy {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        file.as_file().write_all_at(bytes, 0).unwrap();
        let mut direct = File::options();
        direct.read(true).custom_flags(libc::O_DIRECT);
        LocalCopy::new(Arc::new(direct.open(file.path()).unwrap()), max)
    }

    #[test]
    fn direct_reads_reach_the_end_of_an_odd_image_and_no_further() {
        let bytes: Vec<u8> = (0..3 * PAGE + 512).map(|i| (i / 7) as u8).collect();
        let mut local = copy_of(&bytes, 4 * PAGE);
        let (start, end) = (2 * PAGE, bytes.len());
        let read = local.read(&(start as u64..end as u64)).unwrap();
        assert!(read == &bytes[start..]);
        let behind = local.read(&(start as u64..end as u64 + 512));
        assert_eq!(behind.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn more_than_the_buffer_takes_is_refused() {
        let mut local = copy_of(&[1; 2 * PAGE], PAGE);
        for end in [2 * PAGE as u64, u64::MAX] {
            let error = local.read(&(0..end)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn one_byte_makes_the_difference_to_zero() {
        for length in [512, PAGE, PAGE + 512] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            bytes[length - 1] = 1;
            assert!(!is_zero(&bytes));
        }
    }

    #[test]
    fn sums_are_those_of_the_standards() {
        // FIPS 180-2 appendix B.1 and RFC 1321 appendix A.5: "abc".
        let sha256 = [
            0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae,
            0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61,
            0xf2, 0x00, 0x15, 0xad,
        ];
        let md5 = 0x9001_5098_3cd2_4fb0_d696_3f7d_28e1_7f72_u128.to_be_bytes();
        for sum in [StrongChecksum::Sha256(sha256), StrongChecksum::Md5(md5)] {
            assert!(has_sum(b"abc", &sum));
            assert!(!has_sum(b"abd", &sum));
        }
    }
}
