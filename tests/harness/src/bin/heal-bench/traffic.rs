//! Bytes that programs read and nodes sent, and the processors' time for it, as the
//! kernel counts them.
//!
//! The same for both healers: `rchar` of `/proc/PID/io` (proc(5)) of the bricks'
//! processes, which holds what they read of the copies and what came in by their
//! sockets; and what left through the interfaces of all nodes, `lo` too, with all
//! headers. What the self-heal daemons read is not counted again: it is all from
//! sockets. What our healer reads of the local copy is added by the caller: `read_bytes`
//! of its `/proc/PID/io`, for `rchar` does not have what io_uring reads.
//!
//! Time: `utime` and `stime` of `/proc/PID/stat` of all processes in the nodes' network
//! namespaces. Other programs on the machine change it little, unlike the time that
//! passes. That of our healer, which does not live long, is added by the caller.

use std::ops::Sub;
use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, fs};

use bypass_harness::Volume;

use crate::table::mib;

/// A reading of the counters, or the difference of two.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// By the bricks' processes.
    pub read: u64,
    /// By all interfaces of all nodes.
    pub sent: u64,
    /// On all processors together.
    pub cpu: Duration,
}

impl Traffic {
    /// Reads the counters of the volume's bricks and their nodes.
    pub fn now(volume: &Volume) -> Result<Traffic, String> {
        let mut now = Traffic {
            read: 0,
            sent: 0,
            cpu: Duration::ZERO,
        };
        let mut namespaces = Vec::new();
        for brick in volume.bricks() {
            let pid = volume.brick_pid(brick.index);
            let pid = pid.map_err(|error| error.to_string())?;
            let pid = pid.ok_or_else(|| format!("brick {} is down", brick.index))?;
            let read = io_of(pid, "rchar");
            now.read += read.ok_or_else(|| format!("no rchar of brick {pid}"))?;
            now.sent += sent_beside(pid)?;
            namespaces.extend(namespace(pid));
        }
        let all = fs::read_dir("/proc").map_err(|error| error.to_string())?;
        let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let of_nodes = pids.filter(|pid| namespace(*pid).is_some_and(|n| namespaces.contains(&n)));
        now.cpu = of_nodes.filter_map(cpu_of).sum();
        Ok(now)
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (read, sent, cpu) = (mib(self.read), mib(self.sent), self.cpu.as_secs_f64());
        write!(f, "read {read}, sent {sent}, {cpu:.1} s of CPU")
    }
}

impl Sub for Traffic {
    type Output = Traffic;

    fn sub(self, before: Traffic) -> Traffic {
        Traffic {
            read: self.read.saturating_sub(before.read),
            sent: self.sent.saturating_sub(before.sent),
            cpu: self.cpu.saturating_sub(before.cpu),
        }
    }
}

/// What a live process read from disks so far.
pub fn read_by(pid: u32) -> Option<u64> {
    io_of(pid, "read_bytes")
}

/// A counter of a live process.
fn io_of(pid: u32, counter: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let value = |line: &str| line.strip_prefix(counter)?.strip_prefix(": ")?.parse().ok();
    text.lines().find_map(value)
}

/// The processors' time that a live process has had so far.
pub fn cpu_of(pid: u32) -> Option<Duration> {
    /// Of `/proc`, on every Linux there is (`USER_HZ`).
    const TICKS_PER_SECOND: u64 = 100;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may have anything in it; then come fields 3 and following.
    let (_, fields) = text.rsplit_once(") ")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<_, _>>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

fn namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

/// What left through the interfaces of the process' network namespace.
fn sent_beside(pid: u32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/net/dev");
    let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
    // Two lines of head; after the colon eight columns in, then bytes out.
    let sent = |line: &str| -> Option<u64> {
        let (_, columns) = line.split_once(':')?;
        columns.split_whitespace().nth(8)?.parse().ok()
    };
    Ok(text.lines().skip(2).filter_map(sent).sum())
}
