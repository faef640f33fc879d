//! The syncs that make everything written so far durable, for one request: each file of the disk
//! that has changes which may not be. A disk of one whole file has one sync, whatever was written.
//!
//! Either one after the other ([`next`](Syncs::next), [`succeeded`](Syncs::succeeded)), or several at a
//! time, which [`begin`](Syncs::begin) and [`ended`](Syncs::ended) count.

use crate::device::io::disk::Disk;
use crate::device::io::engine::Operation;
use crate::device::io::unsynced::Covered;

/// A sync under way: of which file, and what it covers.
#[derive(Clone, Copy, Debug)]
pub struct FileSync {
    /// Index of the file.
    pub file: u32,
    covered: Covered,
}

/// How far they are.
#[derive(Debug, Default)]
pub struct Syncs {
    /// Files before this one are done with, or under way.
    from: u32,
    /// The one of those that come one after the other.
    now: Option<FileSync>,
    /// The one file is synced.
    whole: bool,
    /// Those of several at a time that are under way.
    running: usize,
    /// The first error number of those.
    failed: Option<i32>,
}

impl Syncs {
    /// The next operation; `None`: everything is durable. After one that was not begun, the
    /// same again.
    pub fn next(&mut self, disk: &Disk) -> Option<Operation> {
        if disk.is_whole() {
            return (!self.whole).then_some(Operation::Sync { file: 0 });
        }
        if self.now.is_none() {
            self.now = self.find(disk);
        }
        self.now
            .map(|FileSync { file, .. }| Operation::Sync { file })
    }

    /// The operation last given has succeeded.
    pub fn succeeded(&mut self, disk: &Disk) {
        self.whole = true;
        if let Some(FileSync { file, covered }) = self.now.take() {
            disk.files().synced(file, covered);
        }
    }

    /// One more, beside those under way; `None`: there is none, or one has failed already.
    pub fn begin(&mut self, disk: &Disk) -> Option<FileSync> {
        let found = match self.failed {
            None => self.find(disk),
            Some(_) => None,
        };
        self.running += usize::from(found.is_some());
        found
    }

    /// One of them has ended, with this error number if it failed.
    pub fn ended(&mut self, disk: &Disk, sync: FileSync, failed: Option<i32>) {
        self.running = self.running.saturating_sub(1);
        match failed {
            None => disk.files().synced(sync.file, sync.covered),
            Some(errno) => self.failed = self.failed.or(Some(errno)),
        }
    }

    /// How many are under way.
    pub fn running(&self) -> usize {
        self.running
    }

    /// The error number of the first that failed.
    pub fn failed(&self) -> Option<i32> {
        self.failed
    }

    fn find(&mut self, disk: &Disk) -> Option<FileSync> {
        let (file, covered) = disk.files().unsynced(self.from)?;
        self.from = file + 1;
        Some(FileSync { file, covered })
    }
}
