//! A disk over several files, with short ones, in a folder of their own.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use bypass_blk::device::{DeviceError, Disk};

use super::SERIAL;

/// The files; gone when dropped.
pub struct Pieces {
    folder: tempfile::TempDir,
    /// Bytes of the disk in each.
    pub piece: u64,
    /// Of the disk.
    pub size: u64,
    count: usize,
}

impl Pieces {
    /// Files of these contents, not on tmpfs.
    pub fn new(piece: u64, size: u64, contents: &[Vec<u8>]) -> Self {
        let pieces = Self {
            folder: tempfile::tempdir_in("/var/tmp").unwrap(),
            piece,
            size,
            count: contents.len(),
        };
        for (index, bytes) in contents.iter().enumerate() {
            std::fs::write(pieces.path(index), bytes).unwrap();
            pieces.open(index, false).sync_all().unwrap();
        }
        pieces
    }

    /// Empty ones.
    pub fn empty(piece: u64, size: u64) -> Self {
        Self::new(piece, size, &vec![vec![]; size.div_ceil(piece) as usize])
    }

    fn path(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("piece.{index}"))
    }

    pub fn open(&self, index: usize, write: bool) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(write).custom_flags(libc::O_DIRECT);
        options.open(self.path(index)).unwrap()
    }

    pub fn files(&self, write: bool) -> Vec<File> {
        (0..self.count)
            .map(|index| self.open(index, write))
            .collect()
    }

    pub fn disk(&self) -> Disk {
        self.try_disk(self.files(true)).unwrap()
    }

    pub fn try_disk(&self, files: Vec<File>) -> Result<Disk, DeviceError> {
        Disk::over_files(files, self.piece, self.size, SERIAL)
    }

    /// Makes empty files besides, for a disk of `size` bytes; returns them, opened.
    pub fn grow(&mut self, size: u64) -> Vec<File> {
        let begin = self.count;
        self.count = size.div_ceil(self.piece) as usize;
        self.size = size;
        let made = begin..self.count;
        made.map(|index| {
            File::create(self.path(index)).unwrap();
            self.open(index, true)
        })
        .collect()
    }

    /// How long a file is.
    pub fn len(&self, index: usize) -> u64 {
        self.path(index).metadata().unwrap().len()
    }

    /// The whole disk as the files have it.
    pub fn contents(&self) -> Vec<u8> {
        let mut all = vec![0; self.size as usize];
        let pieces = all.chunks_mut(self.piece as usize);
        for (index, piece) in pieces.enumerate() {
            let len = self.len(index) as usize;
            assert!(len <= piece.len(), "file {index} is longer than its piece");
            let file = File::open(self.path(index)).unwrap();
            file.read_exact_at(&mut piece[..len], 0).unwrap();
        }
        all
    }
}
