//! The syncs that make everything written so far durable, for one request: each file of the disk
//! that has changes which may not be, one after the other. A disk of one whole file has one sync,
//! whatever was written.

use crate::device::io::disk::Disk;
use crate::device::io::engine::Operation;
use crate::device::io::unsynced::Covered;

/// How far they are.
#[derive(Debug, Default)]
pub struct Syncs {
    /// Files before this one are done with.
    from: u32,
    /// The file that is synced now, and what that covers.
    now: Option<(u32, Covered)>,
    /// The one file is synced.
    whole: bool,
}

impl Syncs {
    /// The next operation; `None`: everything is durable. After one that was not begun, the
    /// same again.
    pub fn next(&mut self, disk: &Disk) -> Option<Operation> {
        if disk.is_whole() {
            return (!self.whole).then_some(Operation::Sync { file: 0 });
        }
        if self.now.is_none() {
            self.now = disk.files().unsynced(self.from);
        }
        self.now.map(|(file, _)| Operation::Sync { file })
    }

    /// The operation last given has succeeded.
    pub fn succeeded(&mut self, disk: &Disk) {
        self.whole = true;
        if let Some((file, covered)) = self.now.take() {
            disk.files().synced(file, covered);
            self.from = file + 1;
        }
    }
}
