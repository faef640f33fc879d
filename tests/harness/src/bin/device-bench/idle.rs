//! What our daemon costs when nobody asks anything of it: wake-ups, processor, memory.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::counters::{Watched, sleeps};
use crate::device::Device;
use crate::load::{self, Job};
use crate::rig::Rig;
use crate::table::{Goal, Table};
use crate::workload::Workload;
use crate::{MIB, QUEUES};

/// What the front-end's buffers are; it asks nothing.
const BLOCK: usize = 4096;
/// After the last request, until the daemon has come to rest.
const SETTLE: Duration = Duration::from_secs(2);
const KIB: u64 = 1 << 10;

/// An idle daemon with a connected front-end.
#[derive(Debug, Clone, Serialize)]
pub struct Idle {
    /// Times per second that a thread of it went to sleep again.
    pub wake_ups_per_second: f64,
    /// The same for each thread that did, by name.
    pub by_thread: Vec<(String, f64)>,
    /// Of one processor.
    pub cpu_percent: f64,
    /// Bytes in memory, all of it.
    pub rss: u64,
    /// The same, with what is shared divided among those that share it.
    pub pss: u64,
    /// Bytes of the dirty map that are in memory.
    pub map_rss: u64,
    /// Its share.
    pub map_pss: u64,
    /// The image's bytes.
    pub image: u64,
}

/// Writes everywhere, so that buffers and map are as large as they get, then watches.
pub fn measure(rig: &Rig<'_>, job: Job, length: Duration) -> Result<Idle, Box<dyn Error>> {
    let workload = Workload::named("write-8").ok_or("no such workload")?;
    let daemon = rig.daemon()?;
    load::run(&daemon.socket, Job { workload, ..job }, || {})?;
    let _front_end = Device::connect_queues(&daemon.socket, QUEUES, 1, BLOCK)?;
    thread::sleep(SETTLE);
    let serving = daemon.pid();
    let watched = Watched {
        serving,
        gluster: Vec::new(),
    };
    let (before, slept) = (watched.read(), sleeps(serving));
    thread::sleep(length);
    let (used, slept_since) = (watched.read() - before, sleeps(serving));
    let seconds = used.time.as_secs_f64();
    let of_thread = |(id, (name, count)): (String, (String, u64))| {
        let before = slept.get(&id).map_or(0, |(_, count)| *count);
        let count = count.saturating_sub(before);
        (count > 0).then(|| (name, count as f64 / seconds))
    };
    let maps = fs::read_to_string(format!("/proc/{serving}/smaps"))?;
    let [rss, pss] = memory(&maps, |_| true);
    let state_dir = rig.state_dir();
    let [map_rss, map_pss] = memory(&maps, |path| Path::new(path).starts_with(&state_dir));
    Ok(Idle {
        wake_ups_per_second: used.serving.voluntary as f64 / seconds,
        by_thread: slept_since.into_iter().filter_map(of_thread).collect(),
        cpu_percent: used.serving.cpu.as_secs_f64() / seconds * 100.0,
        rss,
        pss,
        map_rss,
        map_pss,
        image: rig.area(),
    })
}

impl Idle {
    /// Adds a row for each goal.
    pub fn judge(&self, table: &mut Table) {
        let wake_ups = self.wake_ups_per_second;
        let threads = self
            .by_thread
            .iter()
            .map(|(name, rate)| format!("{name} {rate:.2}"));
        let figures = threads.collect::<Vec<_>>().join(", ");
        table.add(
            "idle: wake-ups per second",
            &figures,
            wake_ups,
            Goal::AtMost(1.0),
        );
        let figures = format!("{:.4} %", self.cpu_percent);
        table.add(
            "idle: % of a CPU",
            &figures,
            self.cpu_percent,
            Goal::AtMost(0.1),
        );
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        let without = mib(self.pss.saturating_sub(self.map_pss));
        let figures = format!(
            "PSS {:.2} MiB, of which map {:.2}; RSS {:.2} and {:.2}; image {} MiB",
            mib(self.pss),
            mib(self.map_pss),
            mib(self.rss),
            mib(self.map_rss),
            self.image / MIB
        );
        table.add(
            "memory without the map, MiB (PSS)",
            &figures,
            without,
            Goal::AtMost(12.0),
        );
        // Pages with no entry, and the head, are in it: no goal is judged by this.
        let per_block = self.map_rss as f64 / (self.image / BLOCK as u64) as f64;
        let figures = format!("{} KiB", self.map_rss / KIB);
        table.add(
            "dirty map in memory, bytes per 4 KiB of the image",
            &figures,
            per_block,
            Goal::None,
        );
    }
}

/// RSS and PSS, in bytes, of the mappings of a process whose path is wanted (`smaps` of
/// proc(5); a mapping without a path has an empty one).
pub fn memory(smaps: &str, wanted: impl Fn(&str) -> bool) -> [u64; 2] {
    let mut sums = [0; 2];
    let mut counts = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next());
        match first.strip_suffix(':') {
            // The head of a mapping: addresses, rights, offset, device, inode, path.
            None => counts = wanted(words.nth(3).unwrap_or_default()),
            Some(name) if counts => {
                let kib = second.and_then(|kib| kib.parse().ok()).unwrap_or(0);
                let sums = sums.iter_mut().zip(["Rss", "Pss"]);
                for (sum, _) in sums.filter(|(_, of)| *of == name) {
                    *sum += kib * KIB;
                }
            }
            Some(_) => {}
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0-55d1 r-xp 00000000 fe:00 42 /usr/bin/bypass-blk
Size:   8 kB
Rss:    8 kB
Pss:    4 kB
Pss_Dirty: 1 kB
7f00-7f01 rw-s 00000000 fe:00 43 /state/x.map
Rss:   16 kB
Pss:   16 kB
7f02-7f03 rw-p 00000000 00:00 0
Rss:    4 kB
Pss:    2 kB
";

    #[test]
    fn memory_is_of_the_wanted_mappings() {
        assert_eq!(memory(SMAPS, |_| true), [28 * KIB, 22 * KIB]);
        let of_map = |path: &str| path.starts_with("/state/");
        assert_eq!(memory(SMAPS, of_map), [16 * KIB, 16 * KIB]);
        assert_eq!(memory("", |_| true), [0, 0]);
    }
}
