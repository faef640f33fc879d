//! The local copy: read for the healer, summed as bricks do it.
//!
//! Never written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use md5::Md5;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::ring::{PAGE, Piece, Ring};
use crate::gluster::{MAX_BATCH, StrongChecksum};

/// The file and a buffer for its bytes.
pub struct LocalCopy {
    file: Arc<File>,
    ring: Ring,
}

/// Why bytes of the local copy could not be read, and which.
#[derive(Debug)]
pub struct ReadFailed {
    /// In bytes.
    pub range: Range<u64>,
    /// The system's reason.
    pub source: io::Error,
}

impl LocalCopy {
    /// Reads `file`, which may be open for direct I/O, at most `max` bytes at one time.
    pub fn new(file: Arc<File>, max: usize) -> Self {
        Self {
            file,
            ring: Ring::new(MAX_BATCH as u32, max),
        }
    }

    /// Its size in bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Where data may begin at or after a byte; what is before it reads as zeros. `None`:
    /// nowhere up to the end.
    pub fn data_from(&self, offset: u64) -> Option<u64> {
        match rustix::fs::seek(&*self.file, SeekFrom::Data(offset)) {
            Ok(data) => Some(data),
            Err(Errno::NXIO) => None,
            // A file system that does not know its holes.
            Err(_) => Some(offset),
        }
    }

    /// The bytes of each of `ranges`, which begin at multiples of 4096. All are read at
    /// the same time, as far as there are at most [`MAX_BATCH`].
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` behind the file's end, `InvalidInput` for
    /// more than the buffer takes.
    pub fn read(&mut self, ranges: &[Range<u64>]) -> Result<Vec<&[u8]>, ReadFailed> {
        let pieces = pieces(ranges, self.ring.bytes().len())?;
        let came = match pieces.as_slice() {
            // The plain way is as fast.
            [_] => vec![0],
            several => self.ring.read(&self.file, several),
        };
        for ((range, piece), came) in ranges.iter().zip(&pieces).zip(came) {
            let read = self.read_rest(range, *piece, came);
            read.map_err(|source| failed(range, source))?;
        }
        let bytes = self.ring.bytes();
        let lengths = ranges
            .iter()
            .map(|range| (range.end - range.start) as usize);
        let parts = pieces.iter().zip(lengths);
        Ok(parts
            .map(|(piece, length)| bytes.get(piece.start..piece.start + length))
            .map(Option::unwrap_or_default)
            .collect())
    }

    /// Reads what is missing of a range of which `have` bytes are there.
    fn read_rest(&mut self, range: &Range<u64>, piece: Piece, mut have: usize) -> io::Result<()> {
        let length = (range.end - range.start) as usize;
        while have < length {
            let space = piece.start + have..piece.start + piece.length;
            let space = self.ring.bytes_mut().get_mut(space).unwrap_or_default();
            match self.file.read_at(space, piece.offset + have as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One behind the other in a buffer of `room` bytes. Direct I/O reads whole blocks,
/// also of the last one of a file.
fn pieces(ranges: &[Range<u64>], room: usize) -> Result<Vec<Piece>, ReadFailed> {
    let mut start = 0;
    let mut pieces = Vec::with_capacity(ranges.len());
    for range in ranges {
        let length = usize::try_from(range.end.saturating_sub(range.start)).ok();
        let length = length.and_then(|length| length.checked_next_multiple_of(PAGE));
        let Some(length) = length.filter(|length| *length <= room - start) else {
            return Err(failed(range, io::ErrorKind::InvalidInput.into()));
        };
        let offset = range.start;
        pieces.push(Piece {
            offset,
            start,
            length,
        });
        start += length;
    }
    Ok(pieces)
}

fn failed(range: &Range<u64>, source: io::Error) -> ReadFailed {
    ReadFailed {
        range: range.clone(),
        source,
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

    fn some_bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i / 7) as u8).collect()
    }

    #[test]
    fn direct_reads_reach_the_end_of_an_odd_image_and_no_further() {
        let bytes = some_bytes(3 * PAGE + 512);
        let mut local = copy_of(&bytes, 4 * PAGE);
        let (start, end) = (2 * PAGE as u64, bytes.len() as u64);
        let read = local.read(&[0..PAGE as u64, start..end]).unwrap();
        assert!(read == [&bytes[..PAGE], &bytes[2 * PAGE..]]);
        for ranges in [&[start..end + 512][..], &[0..512, start..end + 512]] {
            let behind = local.read(ranges).unwrap_err();
            assert_eq!(behind.range, start..end + 512);
            assert_eq!(behind.source.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn a_hole_ends_where_data_begins_or_with_the_file() {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        file.as_file().write_all_at(&[1], 4 << 20).unwrap();
        let local = LocalCopy::new(Arc::new(file.reopen().unwrap()), PAGE);
        assert_eq!(local.data_from(0), Some(4 << 20));
        assert_eq!(local.data_from((4 << 20) + 7), Some((4 << 20) + 7));
        assert_eq!(local.data_from(5 << 20), None);
    }

    #[test]
    fn scattered_ranges_are_read_with_and_without_a_ring() {
        let bytes = some_bytes(200 * PAGE);
        let start = |i: u64| (i * 37 % 199) * PAGE as u64;
        // More of them than the ring takes, too.
        for count in [1, 2, MAX_BATCH as u64, 100] {
            let mut ranges: Vec<_> = (0..count).map(|i| start(i)..start(i) + 4096).collect();
            ranges.push(0..8192);
            let wanted = |range: &Range<u64>| &bytes[range.start as usize..range.end as usize];
            let wanted: Vec<_> = ranges.iter().map(wanted).collect();
            let mut local = copy_of(&bytes, 102 * PAGE);
            assert!(local.read(&ranges).unwrap() == wanted);
            local.ring = Ring::without_io_uring(102 * PAGE);
            assert!(local.read(&ranges).unwrap() == wanted);
        }
    }

    #[test]
    fn more_than_the_buffer_takes_is_refused() {
        let mut local = copy_of(&[1; 2 * PAGE], PAGE);
        let page = 0..PAGE as u64;
        for ranges in [
            &[0..2 * PAGE as u64][..],
            &[0..u64::MAX],
            &[page.clone(), page],
        ] {
            let error = local.read(ranges).unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
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
