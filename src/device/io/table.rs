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
        // How many files there are fits, see `Disk`.
        let mut first = 0u32;
        for part in self.0.load().iter() {
            let skip = from.saturating_sub(first);
            let files = (first.saturating_add(skip)..).zip(part.iter().skip(skip as usize));
            for (file, entry) in files {
                if let Some(covered) = entry.changes.unsynced() {
                    return Some((file, covered));
                }
            }
            first += part.len() as u32;
        }
        None
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

#[cfg(test)]
mod tests {
    use super::*;

    fn files(count: usize) -> Vec<File> {
        let file = |_| tempfile::tempfile().unwrap();
        (0..count).map(file).collect()
    }

    /// All that are unsynced, from `from` on.
    fn unsynced(table: &Table, from: u32) -> Vec<u32> {
        let next = |&file: &u32| table.unsynced(file + 1).map(|(file, _)| file);
        let first = table.unsynced(from).map(|(file, _)| file);
        std::iter::successors(first, next).collect()
    }

    #[test]
    fn files_are_found_by_their_index_whenever_they_were_added() {
        let table = Table::new(files(3), false);
        table.append(files(1), true);
        table.append(files(2), false);
        assert_eq!(table.len(), 6);
        let descriptors: Vec<_> = (0..6).map_while(|file| table.descriptor(file)).collect();
        assert_eq!(descriptors, table.descriptors());
        assert_eq!(table.descriptor(6), None);
        for file in [0, 2, 5] {
            table.changed(file);
        }
        assert_eq!(unsynced(&table, 0), [0, 2, 3, 5]);
        assert_eq!(unsynced(&table, 3), [3, 5]);
        assert_eq!(unsynced(&table, 6), [0; 0]);
        let (file, covered) = table.unsynced(1).unwrap();
        table.changed(2);
        table.synced(file, covered);
        assert_eq!(unsynced(&table, 0), [0, 2, 3, 5], "changed meanwhile");
        let (file, covered) = table.unsynced(1).unwrap();
        table.synced(file, covered);
        assert_eq!(unsynced(&table, 0), [0, 3, 5]);
    }
}
