//! The requests, and a front-end that always asks in the same way: a batch with one kick,
//! then nothing until the device has answered all of it and all its threads sleep.
//!
//! Then nothing depends on who is faster: the device finds all of a batch at once, and is
//! told of no answer taken before it has given the last.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::device::{Device, Kind};

/// Bytes of a request.
const BLOCK: usize = 4096;
/// Requests that fit into a batch.
const SLOTS: usize = 32;
/// The longest wait for a batch; step by step it takes a thousand times the time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at threads.
const PAUSE: Duration = Duration::from_micros(100);
/// Bytes of the device that the requests go to.
pub const AREA: u64 = 1 << 30;

/// A kind of request, so many at a time.
#[derive(Clone, Copy)]
pub struct Case {
    /// For the record.
    pub name: &'static str,
    /// For the reader.
    pub title: &'static str,
    kind: Kind,
    depth: usize,
    /// Requests that are enough to count.
    pub counted: usize,
}

const fn case(name: &'static str, title: &'static str, kind: Kind, depth: usize) -> Case {
    Case {
        name,
        title,
        kind,
        depth,
        counted: if depth == 1 { 16 } else { 2 * depth },
    }
}

/// All there are.
pub const CASES: [Case; 4] = [
    case("read-1", "4 KiB read, one at a time", Kind::Read, 1),
    case("write-1", "4 KiB write, one at a time", Kind::Write, 1),
    case("read-32", "4 KiB read, 32 at a time", Kind::Read, SLOTS),
    case("write-32", "4 KiB write, 32 at a time", Kind::Write, SLOTS),
];

/// A front-end of a device.
pub struct Trace {
    device: Device,
    /// The device's process.
    pid: u32,
    next: u64,
}

impl Trace {
    /// Connects to the device of process `pid`.
    pub fn connect(pid: u32, socket: &Path) -> Result<Trace, String> {
        let device = Device::connect(socket, SLOTS, BLOCK);
        Ok(Trace {
            device: device.map_err(|error| format!("cannot connect: {error}"))?,
            pid,
            next: 0,
        })
    }

    /// Makes `requests` requests of this kind, in whole batches.
    pub fn go(&mut self, case: Case, requests: usize) -> Result<(), String> {
        for _ in 0..requests / case.depth {
            for slot in 0..case.depth {
                let offset = self.next % AREA;
                self.next += BLOCK as u64;
                self.device.submit(slot, case.kind, offset, BLOCK);
            }
            // Hands it over, and takes nothing yet.
            self.device.answers(0, PATIENCE);
            self.take(case)?;
        }
        Ok(())
    }

    /// Waits until the device has nothing to do.
    pub fn settle(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !asleep(self.pid)? {
            if Instant::now() > deadline {
                return Err(format!("the device does not come to rest in {PATIENCE:?}"));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Takes the answers to a batch, once all are there.
    fn take(&mut self, case: Case) -> Result<(), String> {
        let mut left = case.depth;
        while left > 0 {
            self.settle()?;
            let answers = self.device.answers(left, PATIENCE);
            match answers.iter().find(|(_, result)| *result != 0) {
                Some((_, error)) => return Err(format!("{}: error {error}", case.name)),
                None if answers.is_empty() => return Err(format!("{}: no answer", case.name)),
                None => left -= answers.len(),
            }
        }
        Ok(())
    }
}

/// Whether all threads of a process sleep.
fn asleep(pid: u32) -> Result<bool, String> {
    let folder = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&folder).map_err(|error| format!("{folder}: {error}"))?;
    let mut stats = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    Ok(stats.all(|stat| is_asleep(&stat)))
}

/// From a thread's `stat`, proc(5): the state follows the name, which may hold anything.
fn is_asleep(stat: &str) -> bool {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.trim_start().starts_with('S')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_sleeps_by_its_state_and_not_by_its_name() {
        assert!(is_asleep("7 (vring) S 1 7"));
        assert!(!is_asleep("7 (a) S b) R 1 7"));
        assert!(!is_asleep(""));
    }

    #[test]
    fn what_counts_is_whole_batches() {
        for case in CASES {
            assert_eq!(crate::WARM_UP % case.depth, 0, "{}", case.name);
            assert_eq!(case.counted % case.depth, 0, "{}", case.name);
        }
    }
}
