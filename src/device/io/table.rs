//! The open files of a disk, in the order of its bytes.
//!
//! Files are only ever appended, when the disk grows; what is in the table stays open as long as the
//! disk. It knows nothing of sizes or borders, which are [`super::disk`]'s.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::unsynced::{Changes, Covered};

/// One file.
#[derive(Debug)]
struct Entry {
    file: File,
    changes: Changes,
}

/// See the module. One part for what it was made of, and one for each growth.
#[derive(Debug)]
pub struct Table(ArcSwap<Vec<Arc<[Entry]>>>);

impl Table {
    /// A table of `files`, whose contents may be unsynced.
    pub fn new(files: Vec<File>, may_be_unsynced: bool) -> Self {
        let table = Self(ArcSwap::default());
        table.append(files, may_be_unsynced);
        table
    }

    /// Adds `files` at the end. One call at a time.
    pub fn append(&self, files: Vec<File>, may_be_unsynced: bool) {
        let entry = |file| Entry {
            file,
            changes: Changes::new(may_be_unsynced),
        };
        let part: Arc<[Entry]> = files.into_iter().map(entry).collect();
        self.0.rcu(|parts| {
            let mut parts = Vec::clone(parts);
            parts.push(Arc::clone(&part));
            parts
        });
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.0.load().iter().map(|part| part.len()).sum()
    }

    /// The descriptors of all of them.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let parts = self.0.load();
        let entries = parts.iter().flat_map(|part| part.iter());
        entries.map(|entry| entry.file.as_raw_fd()).collect()
    }

    /// The descriptor of a file; `None` if there is no such file.
    pub fn descriptor(&self, file: u32) -> Option<RawFd> {
        self.with(file, |entry| entry.file.as_raw_fd())
    }

    /// Calls `use_it` with a file.
    pub fn with_file<R>(&self, file: u32, use_it: impl FnOnce(&File) -> R) -> Option<R> {
        self.with(file, |entry| use_it(&entry.file))
    }

    /// A change of this file has completed, and the guest is not told yet.
    pub fn changed(&self, file: u32) {
        self.with(file, |entry| entry.changes.completed());
    }

    /// The first file from `from` on with changes that may not be durable, and what a sync
    /// that begins now will cover.
    pub fn unsynced(&self, from: u32) -> Option<(u32, Covered)> {
        let parts = self.0.load();
        let entries = parts.iter().flat_map(|part| part.iter());
        // The number of files fits, see `Disk`.
        let mut entries = (0u32..).zip(entries).skip(from as usize);
        entries.find_map(|(file, entry)| Some((file, entry.changes.unsynced()?)))
    }

    /// The sync of this file that covers this much has succeeded.
    pub fn synced(&self, file: u32, covered: Covered) {
        self.with(file, |entry| entry.changes.synced(covered));
    }

    fn with<R>(&self, file: u32, use_it: impl FnOnce(&Entry) -> R) -> Option<R> {
        let mut index = file as usize;
        for part in self.0.load().iter() {
            match part.get(index) {
                Some(entry) => return Some(use_it(entry)),
                None => index -= part.len(),
            }
        }
        None
    }
}
