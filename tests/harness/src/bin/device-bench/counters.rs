//! What processes used, as the kernel counts it for each of their threads: time on a
//! processor (`schedstat`, nanoseconds) and context switches (`status`), proc(5).
//!
//! The kernel's own threads, such as those that end a write, are not in it, for nobody.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Sub;
use std::time::{Duration, Instant};

/// A reading, or the difference of two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// On all processors together.
    pub cpu: Duration,
    /// Times that a thread went to sleep.
    pub voluntary: u64,
    /// Times that a thread was made to wait.
    pub involuntary: u64,
}

impl Counters {
    /// Of all threads that these processes have now. One that is gone counts nothing.
    pub fn of(pids: &[u32]) -> Counters {
        let tasks = pids
            .iter()
            .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
        tasks
            .flatten()
            .flatten()
            .fold(Counters::default(), |sum, task| {
                let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
                sum.plus(parse(&read("schedstat"), &read("status")).unwrap_or_default())
            })
    }

    /// The processor's time of the calling thread so far.
    pub fn cpu_of_this_thread() -> Duration {
        let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        cpu(&text).unwrap_or_default()
    }

    /// Of both kinds.
    pub fn switches(&self) -> u64 {
        self.voluntary + self.involuntary
    }

    fn plus(self, other: Counters) -> Counters {
        Counters {
            cpu: self.cpu + other.cpu,
            voluntary: self.voluntary + other.voluntary,
            involuntary: self.involuntary + other.involuntary,
        }
    }
}

/// Scheduler that ended meanwhile make it smaller, never negative.
impl Sub for Counters {
    type Output = Counters;

    fn sub(self, before: Counters) -> Counters {
        Counters {
            cpu: self.cpu.saturating_sub(before.cpu),
            voluntary: self.voluntary.saturating_sub(before.voluntary),
            involuntary: self.involuntary.saturating_sub(before.involuntary),
        }
    }
}

/// The processes whose use is counted for a cell.
pub struct Watched {
    /// The one that serves the I/O.
    pub serving: u32,
    /// All of Gluster, and a healer at work.
    pub gluster: Vec<u32>,
}

/// Their counters at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    serving: Counters,
    gluster: Counters,
    at: Instant,
}

impl Watched {
    /// Now.
    pub fn read(&self) -> Reading {
        Reading {
            serving: Counters::of(&[self.serving]),
            gluster: Counters::of(&self.gluster),
            at: Instant::now(),
        }
    }
}

/// What was used between two readings.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// By the serving process.
    pub serving: Counters,
    /// By all Gluster processes.
    pub gluster: Counters,
    /// In this time.
    pub time: Duration,
}

impl Sub for Reading {
    type Output = Used;

    fn sub(self, before: Reading) -> Used {
        Used {
            serving: self.serving - before.serving,
            gluster: self.gluster - before.gluster,
            time: self.at - before.at,
        }
    }
}

/// Times that each thread of a process went to sleep so far, by thread id, with its name.
pub fn sleeps(pid: u32) -> BTreeMap<String, (String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter();
    let of_task = |task: fs::DirEntry| {
        let read = |file| fs::read_to_string(task.path().join(file)).ok();
        let name = read("comm")?.trim().to_owned();
        let counters = parse(&read("schedstat")?, &read("status")?)?;
        Some((
            task.file_name().into_string().ok()?,
            (name, counters.voluntary),
        ))
    };
    tasks.flatten().flatten().filter_map(of_task).collect()
}

fn cpu(schedstat: &str) -> Option<Duration> {
    let nanoseconds = schedstat.split_whitespace().next()?;
    Some(Duration::from_nanos(nanoseconds.parse().ok()?))
}

fn parse(schedstat: &str, status: &str) -> Option<Counters> {
    let counter = |name: &str| {
        let value = |line: &str| {
            line.strip_prefix(name)?
                .strip_prefix(':')?
                .trim()
                .parse()
                .ok()
        };
        status.lines().find_map(value)
    };
    Some(Counters {
        cpu: cpu(schedstat)?,
        voluntary: counter("voluntary_ctxt_switches")?,
        involuntary: counter("nonvoluntary_ctxt_switches")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_counters_are_read_from_both_files() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t2\n";
        let counters = parse("1500000 12 3\n", status).unwrap();
        assert_eq!(counters.cpu, Duration::from_micros(1500));
        assert_eq!((counters.voluntary, counters.switches()), (7, 9));
        assert_eq!(parse("", status), None);
    }

    #[test]
    fn a_thread_that_ended_makes_no_difference_negative() {
        let before = Counters {
            voluntary: 5,
            ..Counters::default()
        };
        assert_eq!(Counters::default() - before, Counters::default());
    }

    #[test]
    fn this_process_has_used_something() {
        let counters = Counters::of(&[std::process::id()]);
        assert!(counters.cpu > Duration::ZERO);
    }
}
