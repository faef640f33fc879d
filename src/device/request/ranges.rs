//! A discard or write-zeroes: one operation per range after the other, with
//! fallbacks for file systems that lack one.

use crate::device::io::engine::{Buffer, MAX_ZEROES, Operation, Vectors};

use super::decode::{Extent, RangeKind, Status};
use super::outcome::{Outcome, Step, io_error};

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
    /// Bytes written of the next one.
    written: u64,
    sync: Sync,
}

/// Whether the ranges are made durable at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    No,
    Wanted,
    Running,
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
            written: 0,
            sync: if durable { Sync::Wanted } else { Sync::No },
        }
    }

    /// The next operation on the ranges, which are `extents`.
    pub fn next(&mut self, extents: &[Extent], vectors: &mut Vectors) -> Step {
        let Some(&Extent { offset, len }) = extents.get(self.complete) else {
            if self.sync == Sync::No {
                return Step::Done(Status::Ok);
            }
            self.sync = Sync::Running;
            return Step::Submit(Operation::Sync);
        };
        Step::Submit(match self.method {
            Method::Punch => Operation::PunchHole { offset, len },
            Method::ZeroRange => Operation::ZeroRange { offset, len },
            Method::Write => Operation::Write {
                offset: offset + self.written,
                buffer: Buffer::zeroes(
                    (len - self.written).min(MAX_ZEROES),
                    std::mem::take(vectors),
                ),
                durable: false,
            },
        })
    }

    /// Takes an operation's outcome. Gives the answer if the request is over;
    /// otherwise [`next`](Self::next) goes on.
    pub fn completed(&mut self, outcome: Outcome, extents: &[Extent]) -> Option<Status> {
        match outcome {
            Outcome::Retry => None,
            Outcome::Failed(libc::EOPNOTSUPP) if self.sync != Sync::Running => self.fall_back(),
            Outcome::Failed(errno) => Some(io_error(self.name(), errno)),
            Outcome::Bytes(_) if self.sync == Sync::Running => {
                self.sync = Sync::No;
                None
            }
            Outcome::Bytes(bytes) => self.progress(bytes as u64, extents),
        }
    }

    /// Whether the operation under way makes the ranges durable.
    pub fn is_syncing(&self) -> bool {
        self.sync == Sync::Running
    }

    fn progress(&mut self, bytes: u64, extents: &[Extent]) -> Option<Status> {
        if self.method == Method::Write {
            if bytes == 0 {
                return Some(io_error(self.name(), libc::EIO));
            }
            self.written += bytes;
            let len = extents.get(self.complete).map_or(0, |extent| extent.len);
            if self.written < len {
                return None;
            }
            self.written = 0;
        }
        self.complete += 1;
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

    /// Runs a request on a file system that lacks some methods, and lists what it asked for.
    fn run(kind: RangeKind, durable: bool, has: &[Method]) -> (Vec<(&'static str, u64)>, Status) {
        let mut ranges = Ranges::new(kind, durable);
        let mut asked = Vec::new();
        let mut vectors = Vectors::default();
        loop {
            let operation = match ranges.next(&EXTENTS, &mut vectors) {
                Step::Done(status) => return (asked, status),
                Step::Submit(operation) => operation,
                Step::Full(_) | Step::Unsynced(_) => unreachable!("no range decides that"),
            };
            let (name, offset, method, bytes) = match operation {
                Operation::PunchHole { offset, .. } => ("punch", offset, Some(Method::Punch), 0),
                Operation::ZeroRange { offset, .. } => ("zero", offset, Some(Method::ZeroRange), 0),
                Operation::Write { offset, .. } => ("write", offset, Some(Method::Write), 4096),
                _ => ("sync", 0, None, 0),
            };
            let outcome = if method.is_none_or(|method| has.contains(&method)) {
                asked.push((name, offset));
                Outcome::Bytes(bytes)
            } else {
                Outcome::Failed(libc::EOPNOTSUPP)
            };
            if let Some(status) = ranges.completed(outcome, &EXTENTS) {
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
}
