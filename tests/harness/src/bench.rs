//! The guest benchmark: the same fio workloads on any disk, and the table and
//! JSON of their results. Used by `qemu/demo` and `qemu/guest-fio`.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::progress::Step;
use crate::stats::{Spread, median};
use crate::{FioJob, FioStats, Guest, Pattern, Result};

/// Added to a workload's own time: fio's start in a translated CPU, and the
/// requests still in flight on a slow disk.
const FIO_DEADLINE: Duration = Duration::from_secs(120);
/// Reading the whole area once: the first reader pays for the host's cache.
const WARM_UP_DEADLINE: Duration = Duration::from_secs(600);

/// One workload: a pattern of 4 KiB requests at a depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// The order of the I/O.
    pub pattern: Pattern,
    /// Requests in flight.
    pub depth: u32,
}

impl Workload {
    /// Reads, which leave the disk as it is.
    pub const READS: [Workload; 2] = [
        Workload {
            pattern: Pattern::RandRead,
            depth: 1,
        },
        Workload {
            pattern: Pattern::RandRead,
            depth: 32,
        },
    ];
    /// Writes, which destroy what is on the disk.
    pub const WRITES: [Workload; 2] = [
        Workload {
            pattern: Pattern::RandWrite,
            depth: 1,
        },
        Workload {
            pattern: Pattern::RandWrite,
            depth: 32,
        },
    ];

    /// Such as "4k randread, depth 32".
    pub fn name(self) -> String {
        format!("4k {}, depth {}", self.pattern.name(), self.depth)
    }
}

/// One workload's result on one disk.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// What the disk is, for the reader.
    pub disk: String,
    /// What was run on it.
    pub workload: Workload,
    /// In which round, from 0.
    pub round: u32,
    /// What came out.
    pub stats: FioStats,
}

/// Runs `workloads` for `runtime` each on disks of a guest that is up, in so many rounds:
/// all disks one after the other under each workload, each round beginning with the next one.
/// `disks` are the names for the reader, and the devices in the guest.
pub fn measure(
    guest: &Guest,
    disks: &[(&str, &str)],
    workloads: &[Workload],
    runtime: Duration,
    rounds: u32,
) -> Result<Vec<Measurement>> {
    let warm_up = Step::begin_parts("warming up", disks.len());
    for (name, device) in disks {
        warm_up.part(name);
        read_all(guest, device)?;
        warm_up.part_done();
    }
    warm_up.done("");
    let mut all = Vec::new();
    for round in 0..rounds {
        let of_all = format!("round {} of {rounds}", round + 1);
        let step = Step::begin_parts(&of_all, disks.len() * workloads.len());
        for workload in workloads {
            for (name, device) in in_turn(disks, round) {
                step.part(&format!("{name}: {}", workload.name()));
                all.push(Measurement {
                    disk: name.to_string(),
                    workload: *workload,
                    round,
                    stats: run_workload(guest, device, *workload, runtime)?,
                });
                step.part_done();
            }
        }
        step.done("");
    }
    Ok(all)
}

/// All of them, beginning with another one in each round.
fn in_turn<T>(all: &[T], round: u32) -> impl Iterator<Item = &T> {
    let first = round as usize % all.len().max(1);
    all.iter().cycle().skip(first).take(all.len())
}

/// Reads the whole disk once, so that the host's cache is as warm for the first
/// disk measured as for the last.
fn read_all(guest: &Guest, device: &str) -> Result<()> {
    let script = format!("dd if={device} of=/dev/null bs=1M iflag=direct");
    guest.run(&script, WARM_UP_DEADLINE).map(drop)
}

fn run_workload(
    guest: &Guest,
    device: &str,
    workload: Workload,
    runtime: Duration,
) -> Result<FioStats> {
    let job = FioJob {
        depth: workload.depth,
        runtime: Some(runtime),
        ..FioJob::new("bench", device, workload.pattern)
    };
    let report = guest.fio(&job, runtime + FIO_DEADLINE)?;
    Ok(report.write.or(report.read).unwrap_or(FioStats::NOTHING))
}

/// The results as a table, a block of lines per workload: medians of all rounds, IOPS with the
/// least and the greatest. The last column is the median of the ratios of IOPS to those of the
/// disk `limit` in the same round.
pub fn table(measurements: &[Measurement], limit: Option<&str>) -> String {
    let disks = firsts(measurements, |m| m.disk.as_str());
    let widths = disks.iter().map(|disk| disk.chars().count());
    let width = widths.max().unwrap_or_default().max(22);
    let mut text = String::new();
    for workload in firsts(measurements, |m| m.workload) {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\n{:<width$}  {:>24}  {:>10}  {:>10}  {}",
            workload.name(),
            "IOPS",
            "mean",
            "p99",
            limit.map_or(String::new(), |limit| format!("of {limit}")),
        );
        for disk in &disks {
            let rounds = of(measurements, workload, disk);
            let limits = limit.map(|limit| of(measurements, workload, limit));
            let _ = writeln!(text, "{disk:<width$}  {}", row(&rounds, limits.as_deref()));
        }
    }
    text
}

fn row(rounds: &[&Measurement], limits: Option<&[&Measurement]>) -> String {
    let values = |value: fn(&FioStats) -> f64| -> Vec<f64> {
        rounds.iter().map(|m| value(&m.stats)).collect()
    };
    let iops = values(|stats| stats.iops);
    let iops = match rounds {
        [_] => format!("{:.0}", median(&iops)),
        _ => format!("{:.0}", Spread::of(&iops)),
    };
    let ratio = match ratios(rounds, limits.unwrap_or_default()).as_slice() {
        [] => String::new(),
        ratios => format!("{:.2}", median(ratios)),
    };
    format!(
        "{iops:>24}  {:>7.0} µs  {:>7.0} µs  {ratio}",
        median(&values(|stats| stats.mean.as_secs_f64() * 1e6)),
        median(&values(|stats| stats.p99.as_secs_f64() * 1e6)),
    )
}

/// Of the IOPS of the same rounds.
fn ratios(rounds: &[&Measurement], limits: &[&Measurement]) -> Vec<f64> {
    let ratio = |m: &&Measurement| {
        let limit = limits.iter().find(|limit| limit.round == m.round)?;
        (limit.stats.iops > 0.0).then(|| m.stats.iops / limit.stats.iops)
    };
    rounds.iter().filter_map(ratio).collect()
}

fn of<'a>(all: &'a [Measurement], workload: Workload, disk: &str) -> Vec<&'a Measurement> {
    let wanted = |m: &&Measurement| m.workload == workload && m.disk == disk;
    all.iter().filter(wanted).collect()
}

/// The different keys, in order of their first appearance.
fn firsts<'a, K: PartialEq>(all: &'a [Measurement], key: impl Fn(&'a Measurement) -> K) -> Vec<K> {
    let mut keys = Vec::new();
    for key in all.iter().map(key) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// The results as JSON: an array of one object per round, workload and disk; times are
/// in nanoseconds.
pub fn json(measurements: &[Measurement]) -> Value {
    let object = |m: &Measurement| {
        json!({
            "disk": m.disk,
            "round": m.round,
            "pattern": m.workload.pattern.name(),
            "depth": m.workload.depth,
            "iops": m.stats.iops,
            "mean_ns": m.stats.mean.as_nanos() as u64,
            "p99_ns": m.stats.p99.as_nanos() as u64,
        })
    };
    Value::Array(measurements.iter().map(object).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(disk: &str, workload: Workload, round: u32, iops: f64) -> Measurement {
        Measurement {
            disk: disk.into(),
            workload,
            round,
            stats: FioStats {
                iops,
                ..FioStats::NOTHING
            },
        }
    }

    #[test]
    fn disks_stand_together_under_each_workload() {
        let [d1, d32] = Workload::READS;
        let rows = [
            measurement("a", d1, 0, 1.0),
            measurement("a", d32, 0, 2.0),
            measurement("b", d1, 0, 3.0),
            measurement("b", d32, 0, 4.0),
        ];
        let text = table(&rows, None);
        let order: Vec<&str> = text
            .split_whitespace()
            .filter(|w| ["1", "2", "3", "4"].contains(w))
            .collect();
        // Depth 1 in the first head line, then its two disks.
        assert_eq!(order, ["1", "1", "3", "2", "4"], "{text}");
        assert_eq!(text.matches("4k randread").count(), 2);
        assert_eq!(json(&rows)[3]["iops"], 4.0);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let [d1, _] = Workload::READS;
        let rows = [
            measurement("ours", d1, 0, 50.0),
            measurement("limit", d1, 0, 100.0),
            measurement("limit", d1, 1, 10.0),
            measurement("ours", d1, 1, 5.0),
            measurement("ours", d1, 2, 9.0),
        ];
        let text = table(&rows, Some("limit"));
        assert!(text.contains("of limit"), "{text}");
        let ours = text.lines().find(|line| line.starts_with("ours")).unwrap();
        assert!(
            ours.contains("9 (5–50)") && ours.ends_with("0.50"),
            "{text}"
        );
    }

    #[test]
    fn each_round_begins_with_another_disk() {
        let order = |round| {
            in_turn(&["a", "b", "c"], round)
                .copied()
                .collect::<String>()
        };
        assert_eq!([order(0), order(1), order(5)], ["abc", "bca", "cab"]);
    }
}
