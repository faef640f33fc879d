//! Which files an image is made of: one, or, in a volume with `features.shard`, many of one
//! size.
//!
//! AFR knows files only: marks, locks and the index of what to heal are of files. Whoever
//! deals with them asks here which files a part of the disk lies in; nobody else knows of
//! shards. A layout is fixed while a session lasts: all files are there from the beginning,
//! so the data path makes none.
//!
//! * This file: arithmetic over the disk. [`shards`]: what Gluster's shard translator calls
//!   things. [`found`]: what the bricks have of an image's pieces, and what follows. All of it
//!   pure; looked up and made they are by [`crate::image::brick_client::shards`].

pub mod error;
pub mod found;
pub mod shards;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A file of a layout, by its place in the order of the disk; 0 is the file at the image's
/// path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIndex(pub u32);

impl FileIndex {
    /// The file at the image's path: by it the image as a whole is owned.
    pub const BASE: Self = Self(0);

    /// For looking into a list.
    pub fn at(self) -> usize {
        self.0 as usize
    }
}

/// How an image that is not one file is cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pieces {
    /// Bytes of the disk in each file but the last.
    pub size: u64,
    /// The files but the first, in order.
    pub gfids: Vec<Uuid>,
}

/// The files of an image. See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    size: u64,
    piece: u64,
    gfids: Vec<Uuid>,
}

impl Layout {
    /// A disk of `size` bytes in the file `base`, or with `pieces` in several.
    pub fn new(base: Uuid, size: u64, pieces: Option<&Pieces>) -> Self {
        let more = pieces.map_or(&[][..], |pieces| &pieces.gfids);
        Self {
            size,
            piece: pieces.map_or(u64::MAX, |pieces| pieces.size.max(1)),
            gfids: [base].into_iter().chain(more.iter().copied()).collect(),
        }
    }

    /// The same, if it is one file: that of this identity and size.
    pub fn as_opened(&self, gfid: Uuid, size: u64) -> Self {
        match self.is_whole() {
            true => Self::new(gfid, size, None),
            false => self.clone(),
        }
    }

    /// How many files a disk takes that is cut into pieces of `piece` bytes.
    pub fn count(size: u64, piece: u64) -> u64 {
        size.div_ceil(piece.max(1)).max(1)
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many files.
    pub fn len(&self) -> usize {
        self.gfids.len()
    }

    /// Never; there is the one at the image's path.
    pub fn is_empty(&self) -> bool {
        self.gfids.is_empty()
    }

    /// Is the image one file?
    pub fn is_whole(&self) -> bool {
        self.piece == u64::MAX
    }

    /// Bytes of the disk in each file but the last; of an image that is one file, more than
    /// it has.
    pub fn piece(&self) -> u64 {
        self.piece
    }

    /// Every file, in the disk's order.
    pub fn files(&self) -> impl Iterator<Item = FileIndex> + use<> {
        (0..self.gfids.len() as u32).map(FileIndex)
    }

    /// Gluster's identity of a file.
    pub fn gfid(&self, file: FileIndex) -> Uuid {
        self.gfids.get(file.at()).copied().unwrap_or_default()
    }

    /// All of them, in order.
    pub fn gfids(&self) -> &[Uuid] {
        &self.gfids
    }

    /// The file that a byte of the disk lies in, and where there.
    pub fn place(&self, offset: u64) -> (FileIndex, u64) {
        let file = u32::try_from(offset / self.piece).unwrap_or(u32::MAX);
        (FileIndex(file), offset % self.piece)
    }

    /// The part of the disk that lies in a file.
    pub fn range(&self, file: FileIndex) -> Range<u64> {
        let start = u64::from(file.0).saturating_mul(self.piece);
        let end = start.saturating_add(self.piece);
        start.min(self.size)..end.min(self.size)
    }

    /// Where the file ends, on the disk, that this byte lies in.
    pub fn border(&self, offset: u64) -> u64 {
        self.range(self.place(offset).0).end
    }

    /// Cuts a range of the disk where files meet.
    pub fn cut(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut from = range.start;
        std::iter::from_fn(move || {
            if from >= range.end {
                return None;
            }
            // Behind the disk's end there is no border.
            let border = Some(self.border(from)).filter(|&border| border > from);
            let end = border.unwrap_or(range.end).min(range.end);
            let piece = from..end;
            from = end;
            Some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut_in(size: u64, piece: u64) -> Layout {
        let count = Layout::count(size, piece);
        let gfids = (1..count).map(|i| Uuid::from_u128(i.into())).collect();
        let pieces = Pieces { size: piece, gfids };
        Layout::new(Uuid::nil(), size, Some(&pieces))
    }

    #[test]
    fn a_whole_image_is_one_file_from_its_first_byte_to_its_last() {
        let layout = Layout::new(Uuid::nil(), 1 << 40, None);
        assert!(layout.is_whole());
        assert_eq!(layout.files().collect::<Vec<_>>(), [FileIndex::BASE]);
        assert_eq!(layout.range(FileIndex::BASE), 0..1 << 40);
        assert_eq!(
            layout.place((1 << 40) - 1),
            (FileIndex::BASE, (1 << 40) - 1)
        );
        assert_eq!(layout.cut(5..1 << 40).collect::<Vec<_>>(), [5..1 << 40]);
    }

    #[test]
    fn the_last_piece_is_what_is_left() {
        let layout = cut_in(10, 4);
        let ranges: Vec<_> = layout.files().map(|file| layout.range(file)).collect();
        assert_eq!(ranges, [0..4, 4..8, 8..10]);
        assert_eq!(cut_in(8, 4).len(), 2);
        assert_eq!(cut_in(1, 4).len(), 1);
    }

    proptest! {
        #[test]
        fn a_range_is_cut_into_parts_that_lie_each_in_one_file_and_leave_nothing_out(
            size in 1u64..5000, piece in 1u64..600, from in 0u64..5000, length in 0u64..5000,
        ) {
            let layout = cut_in(size, piece);
            let range = from.min(size)..from.saturating_add(length).min(size);
            let mut end = range.start;
            for part in layout.cut(range.clone()) {
                prop_assert_eq!(part.start, end);
                prop_assert!(part.start < part.end);
                let (first, at) = layout.place(part.start);
                let (last, _) = layout.place(part.end - 1);
                prop_assert_eq!(first, last);
                prop_assert_eq!(layout.range(first).start + at, part.start);
                end = part.end;
            }
            prop_assert_eq!(end, range.end.max(range.start));
        }

        #[test]
        fn every_byte_has_one_file_that_is_there(size in 1u64..5000, piece in 1u64..600) {
            let layout = cut_in(size, piece);
            for byte in 0..size {
                let (file, _) = layout.place(byte);
                prop_assert!(file.at() < layout.len());
                prop_assert!(layout.range(file).contains(&byte));
            }
        }
    }
}
