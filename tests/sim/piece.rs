//! One file of the image on a brick: AFR's counters, times, and its bytes for who reads
//! them. Which versions its sectors have, and may have, is the brick's to know.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bypass_blk::image::layout::{FileIndex, Layout, Pieces};
use uuid::Uuid;

use super::brick::{BRICKS, EXTENT, SECTOR, SIZE, Syncs, Version, bytes_of};

pub const GFID: Uuid = Uuid::from_u128(7);
/// Bytes of the disk in each file but the last, of an image in shards.
pub const PIECE: u64 = 2 * EXTENT;

/// AFR's data counters on one brick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub pending: [i32; BRICKS],
    pub dirty: i32,
}

/// The image as one file, or as several.
pub fn layout(in_shards: bool) -> Layout {
    let gfids = (1..Layout::count(SIZE, PIECE)).map(|n| Uuid::from_u128(u128::from(7 + n)));
    let pieces = in_shards.then(|| Pieces {
        size: PIECE,
        gfids: gfids.collect(),
    });
    Layout::new(GFID, SIZE, pieces.as_ref())
}

/// The sectors of the disk that lie in a file.
pub fn sectors_of(layout: &Layout, file: usize) -> Range<usize> {
    let bytes = layout.range(FileIndex(file as u32));
    (bytes.start / SECTOR) as usize..(bytes.end / SECTOR) as usize
}

/// The file that a sector of the disk lies in.
pub fn file_of(layout: &Layout, sector: usize) -> usize {
    layout.place(sector as u64 * SECTOR).0.at()
}

pub struct Piece {
    /// Those of the disk that lie in it.
    pub sectors: Range<usize>,
    pub row: Row,
    /// What a crash leaves at least, and what it may leave, in order.
    pub rows: Vec<Row>,
    /// Who has not been told yet that a sync has failed. Linux tells each that has the file
    /// open for itself, once (errseq), and after that a sync fails no more.
    pub untold: Vec<Syncs>,
    /// Changes of the file's data, as its times tell.
    pub changes: u64,
    /// What somebody set them to.
    pub times: Duration,
    /// In bytes: a whole image's is the disk's, a shard is as long as it was written.
    pub size: u64,
    /// What is read, for who reads a file.
    pub file: File,
}

impl Piece {
    pub fn new(layout: &Layout, file: usize) -> Self {
        let memory = rustix::fs::memfd_create("bypass-sim", rustix::fs::MemfdFlags::CLOEXEC);
        let mut piece = Self {
            sectors: sectors_of(layout, file),
            row: Row::default(),
            rows: vec![Row::default()],
            untold: Vec::new(),
            changes: 0,
            times: Duration::ZERO,
            size: 0,
            file: File::from(memory.unwrap()),
        };
        if layout.is_whole() {
            piece.set_size(SIZE);
        }
        piece
    }

    pub fn set_size(&mut self, size: u64) {
        self.size = size;
        self.file.set_len(size).unwrap();
    }

    /// Zeros are punched: they make no file longer.
    pub fn set(&mut self, sector: usize, version: Version) {
        let at = (sector - self.sectors.start) as u64 * SECTOR;
        if version != 0 {
            self.size = self.size.max(at + SECTOR);
        }
        if at < self.size {
            self.file.write_all_at(&bytes_of(version), at).unwrap();
        }
    }

    pub fn change_row(&mut self, change: impl FnOnce(&mut Row)) {
        change(&mut self.row);
        self.rows.push(self.row);
    }

    /// The counters that a crash cannot take away.
    pub fn durable_rows(&self) -> &[Row] {
        &self.rows
    }
}
