//! The guest benchmark: the same fio workloads on any disk, and the table and
//! JSON of their results. Used by `qemu/demo` and `qemu/guest-fio`.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::progress::Step;
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
    /// What came out.
    pub stats: FioStats,
}

/// Runs `workloads` for `runtime` each on `device` of a guest that is up; `disk`
/// names it in the results and in the progress shown.
pub fn measure(
    guest: &Guest,
    disk: &str,
    device: &str,
    workloads: &[Workload],
    runtime: Duration,
) -> Result<Vec<Measurement>> {
    let step = Step::begin_parts(disk, 1 + workloads.len());
    step.part("warming up");
    warm_up(guest, device)?;
    step.part_done();
    let mut all = Vec::new();
    for workload in workloads {
        step.part(&workload.name());
        let stats = run_workload(guest, device, *workload, runtime)?;
        let disk = disk.to_owned();
        all.push(Measurement {
            disk,
            workload: *workload,
            stats,
        });
        step.part_done();
    }
    step.done("");
    Ok(all)
}

/// Reads the whole disk once, so that the host's cache is as warm for the first
/// disk measured as for the last.
fn warm_up(guest: &Guest, device: &str) -> Result<()> {
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

/// The results as a table, a block of lines per workload.
pub fn table(measurements: &[Measurement]) -> String {
    let width = measurements
        .iter()
        .map(|m| m.disk.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    let mut current = None;
    for Measurement {
        disk,
        workload,
        stats,
    } in sorted(measurements)
    {
        if current != Some(*workload) {
            let head = format!(
                "\n{:<width$}  {:>9}  {:>10}  {:>10}\n",
                workload.name(),
                "IOPS",
                "mean",
                "p99",
                width = width.max(22)
            );
            text.push_str(&head);
            current = Some(*workload);
        }
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{disk:<width$}  {:>9.0}  {:>7} µs  {:>7} µs",
            stats.iops,
            stats.mean.as_micros(),
            stats.p99.as_micros(),
            width = width.max(22),
        );
    }
    text
}

/// The results as JSON: an array of one object per workload and disk; times are
/// in nanoseconds.
pub fn json(measurements: &[Measurement]) -> Value {
    let object = |m: &Measurement| {
        json!({
            "disk": m.disk,
            "pattern": m.workload.pattern.name(),
            "depth": m.workload.depth,
            "iops": m.stats.iops,
            "mean_ns": m.stats.mean.as_nanos() as u64,
            "p99_ns": m.stats.p99.as_nanos() as u64,
        })
    };
    Value::Array(measurements.iter().map(object).collect())
}

/// Workload by workload in order of first appearance, disks in order within.
fn sorted(measurements: &[Measurement]) -> Vec<&Measurement> {
    let first = |m: &&Measurement| {
        measurements
            .iter()
            .position(|other| other.workload == m.workload)
    };
    let mut sorted: Vec<&Measurement> = measurements.iter().collect();
    sorted.sort_by_key(first);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(disk: &str, workload: Workload, iops: f64) -> Measurement {
        Measurement {
            disk: disk.into(),
            workload,
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
            measurement("a", d1, 1.0),
            measurement("a", d32, 2.0),
            measurement("b", d1, 3.0),
            measurement("b", d32, 4.0),
        ];
        let text = table(&rows);
        let order: Vec<&str> = text
            .split_whitespace()
            .filter(|w| ["1", "2", "3", "4"].contains(w))
            .collect();
        // Depth 1 in the first head line, then its two disks.
        assert_eq!(order, ["1", "1", "3", "2", "4"], "{text}");
        assert_eq!(text.matches("4k randread").count(), 2);
        assert_eq!(json(&rows)[3]["iops"], 4.0);
    }
}
