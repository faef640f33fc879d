//! The part of a flush that syncs several files at once: what the queue's lanes ask of its slot.

use crate::device::io::disk::Disk;
use crate::device::request::decode::Status;
use crate::device::request::outcome::{Outcome, Step, io_error};
use crate::device::request::syncs::FileSync;

use super::{Slot, Work};

impl Slot {
    /// One more file that this flush has to sync now; `None`: all are under way, or one has
    /// failed.
    pub fn begin_sync(&mut self, disk: &Disk) -> Option<FileSync> {
        match &mut self.work {
            Work::Flush(syncs) => syncs.begin(disk),
            _ => None,
        }
    }

    /// Takes the result of one of its syncs. Returns whether that is to be asked for again, as
    /// the kernel did not begin it.
    pub fn sync_ended(&mut self, result: Result<usize, i32>, sync: FileSync, disk: &Disk) -> bool {
        let failed = match self.outcome(result) {
            Outcome::Retry => return true,
            Outcome::Bytes(_) => None,
            Outcome::Failed(errno) => Some(errno),
        };
        if let Work::Flush(syncs) = &mut self.work {
            syncs.ended(disk, sync, failed);
        }
        false
    }

    /// The answer to a flush that has begun all of its syncs; `None`: some are under way.
    pub fn synced(&self) -> Option<Step> {
        let Work::Flush(syncs) = &self.work else {
            return None;
        };
        match (syncs.running(), syncs.failed()) {
            (0, None) => Some(Step::Done(Status::Ok)),
            (0, Some(errno)) => {
                let _ = io_error("flush", errno);
                Some(Step::Unsynced(errno))
            }
            _ => None,
        }
    }
}
