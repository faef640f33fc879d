//! The files of a local copy, as its guest and clients write to them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::Rng;
use crate::image::layout::{FileIndex, Layout, Pieces};

/// Behind the end of a file of several there are zeros.
#[derive(Clone)]
pub struct Disk {
    layout: Layout,
    files: Arc<Vec<File>>,
}

impl Disk {
    /// In the file at `path`; those of an image in several have a number after that.
    pub fn new(layout: Layout, path: &Path) -> Self {
        let open = |file: FileIndex| {
            let mut options = File::options();
            let options = options.read(true).write(true);
            options.open(path_of(path, file)).unwrap()
        };
        let files = layout.files().map(open).collect();
        Self {
            layout,
            files: Arc::new(files),
        }
    }

    /// The same bytes in files of `piece` bytes, which end anywhere where zeros follow: one
    /// in three as late as it can, one as early.
    pub fn cut(base: Uuid, path: &Path, piece: u64, rng: &mut Rng) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let size = bytes.len() as u64;
        let count = Layout::count(size, piece);
        let gfids = (1..count).map(|piece| Uuid::from_u128(700 + u128::from(piece)));
        let pieces = Pieces {
            size: piece,
            gfids: gfids.collect(),
        };
        let layout = Layout::new(base, size, Some(&pieces));
        for file in layout.files() {
            let range = layout.range(file);
            let bytes = &bytes[range.start as usize..range.end as usize];
            let data = bytes.iter().rposition(|byte| *byte != 0);
            let least = data.map_or(0, |last| (last as u64 + 1).next_multiple_of(512));
            let room = bytes.len() as u64 - least;
            let length = match rng.below(3) {
                0 => least,
                1 => least + room,
                _ => least + rng.below(room + 1),
            };
            std::fs::write(path_of(path, file), &bytes[..length as usize]).unwrap();
        }
        Self::new(layout, path)
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn files(&self) -> Vec<File> {
        let files = self.layout.files();
        files.map(|file| self.file(file.at())).collect()
    }

    pub fn file(&self, index: usize) -> File {
        self.files[index].try_clone().unwrap()
    }

    pub fn read(&self) -> Vec<u8> {
        let mut all = vec![0; self.layout.size() as usize];
        for index in self.layout.files() {
            let range = self.layout.range(index);
            let bytes = &mut all[range.start as usize..range.end as usize];
            let file = &self.files[index.at()];
            let length = file.metadata().unwrap().len().min(bytes.len() as u64);
            let bytes = &mut bytes[..length as usize];
            file.read_exact_at(bytes, 0).unwrap();
        }
        all
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        for part in self.layout.cut(offset..offset + data.len() as u64) {
            let (file, at) = self.layout.place(part.start);
            let data = &data[(part.start - offset) as usize..(part.end - offset) as usize];
            self.files[file.at()].write_all_at(data, at).unwrap();
        }
    }
}

fn path_of(path: &Path, file: FileIndex) -> PathBuf {
    match file {
        FileIndex::BASE => path.to_owned(),
        FileIndex(number) => path.with_extension(number.to_string()),
    }
}
