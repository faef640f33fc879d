//! A discard or write-zeroes: one operation per range, and per file that it is in, after the
//! other, with fallbacks for file systems that lack one.

use crate::device::io::disk::{Disk, FileSpot};
use crate::device::io::engine::{Buffer, MAX_ZEROES, Operation, Vectors};

use super::decode::{Extent, RangeKind, Status};
use super::outcome::{Outcome, Step, io_error};
use super::syncs::Syncs;

/// How a range becomes zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// Give the space back.
    Punch,
    /// Keep or allocate the space.
    ZeroRange,
    /// Write zeros: every file system can.
    Write,
}

/// One request, and how far it is.
pub struct Ranges {
    kind: RangeKind,
    method: Method,
    /// Ranges that are done.
    complete: usize,
    /// Bytes done of the next one.
    done: u64,
    /// Bytes that the operation under way does, if it is no write.
    under_way: u64,
    sync: Sync,
}

/// Whether the ranges are made durable at the end.
#[derive(Debug)]
enum Sync {
    No,
    Wanted,
    Running(Syncs),
}

impl Ranges {
    /// A request that has not begun.
    pub fn new(kind: RangeKind, durable: bool) -> Self {
        Self {
            kind,
            method: match kind {
                RangeKind::Discard | RangeKind::WriteZeroes { unmap: true } => Method::Punch,
                RangeKind::WriteZeroes { unmap: false } => Method::ZeroRange,
            },
            complete: 0,
            done: 0,
            under_way: 0,
            sync: if durable { Sync::Wanted } else { Sync::No },
        }
    }

    /// The byte of the disk where the next operation begins, or the one under way did; the
    /// ranges are `extents`.
    pub fn position(&self, extents: &[Extent]) -> Option<u64> {
        let extent = extents.get(self.complete)?;
        Some(extent.offset + self.done)
    }

    /// The next operation on the ranges, which are `extents`.
    pub fn next(&mut self, extents: &[Extent], vectors: &mut Vectors, disk: &Disk) -> Step {
        let (Some(extent), Some(at)) = (extents.get(self.complete), self.position(extents)) else {
            return self.next_sync(disk);
        };
        let FileSpot { file, offset, left } = disk.spot(at);
        let len = left.min(extent.len - self.done);
        self.under_way = len;
        Step::Submit(match self.method {
            Method::Punch => Operation::PunchHole { file, offset, len },
            Method::ZeroRange => Operation::ZeroRange { file, offset, len },
            Method::Write => Operation::Write {
                file,
                offset,
                buffer: Buffer::zeroes(len.min(MAX_ZEROES), std::mem::take(vectors)),
                durable: false,
            },
        })
    }

    fn next_sync(&mut self, disk: &Disk) -> Step {
        if matches!(self.sync, Sync::Wanted) {
            self.sync = Sync::Running(Syncs::default());
        }
        let operation = match &mut self.sync {
            Sync::Running(syncs) => syncs.next(disk),
            Sync::No | Sync::Wanted => None,
        };
        operation.map_or(Step::Done(Status::Ok), Step::Submit)
    }

    /// Takes an operation's outcome. Gives the answer if the request is over;
    /// otherwise [`next`](Self::next) goes on.
    pub fn completed(
        &mut self,
        outcome: Outcome,
        extents: &[Extent],
        disk: &Disk,
    ) -> Option<Status> {
        match (outcome, &mut self.sync) {
            (Outcome::Retry, _) => None,
            (Outcome::Bytes(_), Sync::Running(syncs)) => {
                syncs.succeeded(disk);
                None
            }
            (Outcome::Failed(libc::EOPNOTSUPP), Sync::No | Sync::Wanted) => self.fall_back(),
            (Outcome::Failed(errno), _) => Some(io_error(self.name(), errno)),
            (Outcome::Bytes(bytes), _) => self.progress(bytes as u64, extents),
        }
    }

    /// Whether the operation under way makes the ranges durable.
    pub fn is_syncing(&self) -> bool {
        matches!(self.sync, Sync::Running(_))
    }

    fn progress(&mut self, bytes: u64, extents: &[Extent]) -> Option<Status> {
        self.done += match self.method {
            Method::Write if bytes == 0 => return Some(io_error(self.name(), libc::EIO)),
            Method::Write => bytes,
            Method::Punch | Method::ZeroRange => self.under_way,
        };
        let len = extents.get(self.complete).map_or(0, |extent| extent.len);
        if self.done >= len {
            self.done = 0;
            self.complete += 1;
        }
        None
    }

    /// A discard is a hint and has no fallback; zeros must come about somehow.
    fn fall_back(&mut self) -> Option<Status> {
        self.method = match (self.kind, self.method) {
            (RangeKind::Discard, _) => return Some(Status::Unsupported),
            (_, Method::Punch) => Method::ZeroRange,
            (_, Method::ZeroRange) => Method::Write,
            (_, Method::Write) => return Some(io_error(self.name(), libc::EOPNOTSUPP)),
        };
        None
    }

    fn name(&self) -> &'static str {
        match self.kind {
            RangeKind::Discard => "discard",
            RangeKind::WriteZeroes { .. } => "write-zeroes",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENTS: [Extent; 2] = [
        Extent {
            offset: 4096,
            len: 4096,
        },
        Extent {
            offset: 1 << 20,
            len: MAX_ZEROES + 4096,
        },
    ];

    fn files(count: usize) -> Vec<std::fs::File> {
        let file = |_| tempfile::tempfile().unwrap();
        (0..count).map(file).collect()
    }

    /// Runs a request on a file system that lacks some methods, and lists what it asked for.
    fn run(kind: RangeKind, durable: bool, has: &[Method]) -> (Vec<(&'static str, u64)>, Status) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        run_on(&Disk::new(file, "").unwrap(), kind, durable, has)
    }

    fn run_on(
        disk: &Disk,
        kind: RangeKind,
        durable: bool,
        has: &[Method],
    ) -> (Vec<(&'static str, u64)>, Status) {
        let mut ranges = Ranges::new(kind, durable);
        let mut asked = Vec::new();
        let mut vectors = Vectors::default();
        loop {
            let operation = match ranges.next(&EXTENTS, &mut vectors, disk) {
                Step::Done(status) => return (asked, status),
                Step::Submit(operation) => operation,
                Step::Full(_) | Step::Unsynced(_) | Step::SyncFiles => {
                    unreachable!("no range decides that")
                }
            };
            let (name, offset, method, bytes) = match operation {
                Operation::PunchHole { offset, .. } => ("punch", offset, Some(Method::Punch), 0),
                Operation::ZeroRange { offset, .. } => ("zero", offset, Some(Method::ZeroRange), 0),
                Operation::Write { offset, .. } => ("write", offset, Some(Method::Write), 4096),
                Operation::Sync { file } => ("sync", file.into(), None, 0),
                Operation::Read { .. } => unreachable!("nothing is read"),
            };
            if let (Some(at), false) = (ranges.position(&EXTENTS), ranges.is_syncing()) {
                disk.files().changed(disk.spot(at).file);
            }
            let outcome = if method.is_none_or(|method| has.contains(&method)) {
                asked.push((name, offset));
                Outcome::Bytes(bytes)
            } else {
                Outcome::Failed(libc::EOPNOTSUPP)
            };
            if let Some(status) = ranges.completed(outcome, &EXTENTS, disk) {
                return (asked, status);
            }
        }
    }

    #[test]
    fn each_range_is_done_once_and_made_durable_if_asked() {
        let all = [Method::Punch, Method::ZeroRange];
        let unmap = RangeKind::WriteZeroes { unmap: true };
        let done = vec![("punch", 4096), ("punch", 1 << 20), ("sync", 0)];
        assert_eq!(run(unmap, true, &all), (done, Status::Ok));
        let keep = RangeKind::WriteZeroes { unmap: false };
        let done = vec![("zero", 4096), ("zero", 1 << 20)];
        assert_eq!(run(keep, false, &all), (done, Status::Ok));
    }

    #[test]
    fn zeros_are_written_where_the_file_system_knows_no_better() {
        let unmap = RangeKind::WriteZeroes { unmap: true };
        let (asked, status) = run(unmap, false, &[Method::Write]);
        assert_eq!(status, Status::Ok);
        assert_eq!(asked.first(), Some(&("write", 4096)));
        assert_eq!(asked.last(), Some(&("write", (1 << 20) + MAX_ZEROES)));
        assert_eq!(asked.len() as u64, 1 + MAX_ZEROES / 4096 + 1);
    }

    #[test]
    fn a_discard_that_the_file_system_lacks_is_not_supported() {
        let (asked, status) = run(RangeKind::Discard, true, &[Method::Write]);
        assert_eq!((asked.len(), status), (0, Status::Unsupported));
    }

    #[test]
    fn a_range_in_several_files_is_done_in_each_and_those_alone_are_synced() {
        let piece = 768 << 10;
        let disk = Disk::over_files(files(6), piece, 4 << 20, "").unwrap();
        let disk = disk.all_synced();
        let unmap = RangeKind::WriteZeroes { unmap: true };
        let (asked, status) = run_on(&disk, unmap, true, &[Method::Punch]);
        assert_eq!(status, Status::Ok);
        let done = [("punch", 4096), ("punch", 256 << 10), ("punch", 0)];
        let synced = [("sync", 0), ("sync", 1), ("sync", 2)];
        assert_eq!(asked, [&done[..], &synced[..]].concat());
        // Nothing is left for a flush.
        assert!(Syncs::default().next(&disk).is_none());
    }
}
