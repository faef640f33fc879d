//! The local copy: read for the healer, summed as bricks do it.
//!
//! The disk as a whole: which of the copy's files a byte lies in is settled here. Never
//! written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use md5::Md5;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use uuid::Uuid;

use super::ring::{PAGE, Piece, Ring};
use crate::gluster::{MAX_BATCH, StrongChecksum};
use crate::image::layout::{FileIndex, Layout};

/// The files of the local copy, open for reading (direct I/O or not).
pub struct LocalFiles {
    layout: Arc<Layout>,
    files: Vec<File>,
}

impl LocalFiles {
    /// Those of `layout`, in its order.
    pub fn new(layout: Layout, files: Vec<File>) -> Self {
        Self {
            layout: Arc::new(layout),
            files,
        }
    }

    /// A disk of `size` bytes in one file, `gfid`.
    pub fn whole(gfid: Uuid, size: u64, file: File) -> Self {
        Self::new(Layout::new(gfid, size, None), vec![file])
    }

    /// What lies where in them.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    fn file(&self, index: FileIndex) -> io::Result<&File> {
        let missing = || io::Error::other(format!("file {} of the image is not open", index.0));
        self.files.get(index.at()).ok_or_else(missing)
    }
}

/// The files and a buffer for their bytes.
pub struct LocalCopy {
    files: Arc<LocalFiles>,
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
    /// Reads `files`, at most `max` bytes at one time.
    pub fn new(files: Arc<LocalFiles>, max: usize) -> Self {
        Self {
            files,
            ring: Ring::new(MAX_BATCH as u32, max),
        }
    }

    /// The size in bytes of the file at the image's path: the image's, if that is one file.
    ///
    /// # Errors
    /// The system's.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.files.file(FileIndex::BASE)?.metadata()?.len())
    }

    /// Where data may begin at or after a byte; what is before it reads as zeros. `None`:
    /// nowhere up to the end of the file that the byte lies in.
    pub fn data_from(&self, offset: u64) -> Option<u64> {
        let (index, at) = self.files.layout.place(offset);
        let Ok(file) = self.files.file(index) else {
            return Some(offset);
        };
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => Some(offset + data.saturating_sub(at)),
            Err(Errno::NXIO) => None,
            // A file system that does not know its holes.
            Err(_) => Some(offset),
        }
    }

    /// The bytes of each of `ranges`, which begin at multiples of 4096 and lie each in one
    /// file. All are read at the same time, as far as there are at most [`MAX_BATCH`].
    /// Behind the end of a file of several there are zeros: they are as long as they were
    /// written.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` behind the end of an image that is one file,
    /// `InvalidInput` for more than the buffer takes, or than one file has.
    pub fn read(&mut self, ranges: &[Range<u64>]) -> Result<Vec<&[u8]>, ReadFailed> {
        let pieces = pieces(ranges, &self.files.layout, self.ring.bytes().len())?;
        let came = match pieces.as_slice() {
            // The plain way is as fast.
            [_] => vec![0],
            several => self.ring.read(&self.files.files, several),
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
        let file = self.files.file(FileIndex(piece.file as u32))?;
        let length = (range.end - range.start) as usize;
        let bytes = self.ring.bytes_mut();
        let space = bytes.get_mut(piece.start..piece.start + piece.length);
        let space = space.unwrap_or_default();
        while have < length {
            // Direct I/O begins with a whole block, also where a file ends within one.
            let from = have / PAGE * PAGE;
            let room = space.get_mut(from..).unwrap_or_default();
            match file.read_at(room, piece.offset + from as u64) {
                Ok(count) if from + count > have => have = from + count,
                Ok(_) if self.files.layout.is_whole() => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(_) => {
                    space.get_mut(have..).unwrap_or_default().fill(0);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One behind the other in a buffer of `room` bytes. Direct I/O reads whole blocks,
/// also of the last one of a file.
fn pieces(ranges: &[Range<u64>], layout: &Layout, room: usize) -> Result<Vec<Piece>, ReadFailed> {
    let mut start = 0;
    let mut pieces = Vec::with_capacity(ranges.len());
    for range in ranges {
        let length = usize::try_from(range.end.saturating_sub(range.start)).ok();
        let length = length.and_then(|length| length.checked_next_multiple_of(PAGE));
        let (file, offset) = layout.place(range.start);
        let fits = |length: &usize| {
            *length <= room - start
                && offset + range.end.saturating_sub(range.start) <= layout.piece()
        };
        let Some(length) = length.filter(fits) else {
            return Err(failed(range, io::ErrorKind::InvalidInput.into()));
        };
        pieces.push(Piece {
            file: file.at(),
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
    use crate::image::layout::Pieces;

    /// Open for direct I/O, on a disk that has it.
    fn copy_of(bytes: &[u8], max: usize) -> LocalCopy {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        file.as_file().write_all_at(bytes, 0).unwrap();
        let mut direct = File::options();
        direct.read(true).custom_flags(libc::O_DIRECT);
        let direct = direct.open(file.path()).unwrap();
        whole(direct, bytes.len() as u64, max)
    }

    fn whole(file: File, size: u64, max: usize) -> LocalCopy {
        LocalCopy::new(Arc::new(LocalFiles::whole(Uuid::nil(), size, file)), max)
    }

    /// A disk of `pieces`, of which these bytes were written each, with direct I/O.
    fn cut(pieces: &[Vec<u8>], piece: usize) -> LocalCopy {
        let open = |bytes: &Vec<u8>| {
            let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
            file.as_file().write_all_at(bytes, 0).unwrap();
            let mut direct = File::options();
            direct.read(true).custom_flags(libc::O_DIRECT);
            direct.open(file.path()).unwrap()
        };
        let layout = Pieces {
            size: piece as u64,
            gfids: vec![Uuid::nil(); pieces.len() - 1],
        };
        let size = (pieces.len() * piece) as u64;
        let layout = Layout::new(Uuid::nil(), size, Some(&layout));
        let files = LocalFiles::new(layout, pieces.iter().map(open).collect());
        LocalCopy::new(Arc::new(files), 64 * PAGE)
    }

    #[test]
    fn what_is_behind_the_end_of_a_file_of_several_is_zero_and_the_next_begins_at_its_place() {
        let piece = 4 * PAGE;
        let lengths = [2 * PAGE, 0, PAGE + 700, 3, 4 * PAGE, 512];
        let pieces = lengths.map(|length| vec![7; length]).to_vec();
        let mut disk = Vec::new();
        for bytes in &pieces {
            disk.extend(bytes);
            disk.resize(disk.len().next_multiple_of(piece), 0);
            if bytes.is_empty() {
                disk.resize(disk.len() + piece, 0);
            }
        }
        let mut local = cut(&pieces, piece);
        for count in [1, 3] {
            for ring in [true, false] {
                if !ring {
                    local.ring = Ring::without_io_uring(64 * PAGE);
                }
                // What was read before is not taken for zeros.
                local.ring.bytes_mut().fill(9);
                let starts: Vec<_> = (0..disk.len()).step_by(PAGE).collect();
                for starts in starts.chunks(count) {
                    let range = |start: &usize| *start as u64..(start + PAGE) as u64;
                    let ranges: Vec<_> = starts.iter().map(range).collect();
                    let wanted: Vec<_> = starts.iter().map(|s| &disk[*s..s + PAGE]).collect();
                    assert!(local.read(&ranges).unwrap() == wanted, "{ranges:?}");
                }
            }
        }
        let crossing = 3 * PAGE as u64..5 * PAGE as u64;
        let error = local.read(&[crossing]).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_hole_of_a_file_of_several_reaches_to_its_end_and_no_further() {
        let pieces = [vec![], vec![1; 10], vec![]];
        let local = cut(&pieces, 4 * PAGE);
        let at = |page: usize| (page * PAGE) as u64;
        assert_eq!(local.data_from(at(1)), None);
        assert_eq!(local.data_from(at(4)), Some(at(4)));
        assert_eq!(local.data_from(at(5)), None);
        assert_eq!(local.data_from(at(9)), None);
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
        let local = whole(file.reopen().unwrap(), 8 << 20, PAGE);
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
