//! The ways that fio goes by itself: on the brick's file, on a FUSE mount, through gfapi.

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use bypass_harness::{Background, FioReport, FioStats, Volume};

use crate::BRICK;
use crate::counters::{Used, Watched};
use crate::figures::Figures;
use crate::load::Job;
use crate::workload::Workload;

/// Added to a job's own time: a slow disk may still have requests in flight.
const PATIENCE: Duration = Duration::from_secs(60);
/// What fio does not need to be running in full.
const START_UP: Duration = Duration::from_millis(400);
/// The same with gfapi, which connects to the volume first.
const START_UP_GFAPI: Duration = Duration::from_millis(1500);
/// The end of the time in which processes are watched, before fio's own end.
const MARGIN: Duration = Duration::from_millis(200);

/// What fio works on.
pub enum Target<'a> {
    /// A file of this machine.
    File(&'a Path),
    /// An image of a volume, through gfapi.
    Gfapi(&'a str),
}

/// Does the job, and watches these processes of Gluster beside.
pub fn run(
    volume: &Volume,
    target: &Target<'_>,
    job: Job,
    gluster: Vec<u32>,
) -> Result<Figures, Box<dyn Error>> {
    let node = volume.brick_node(BRICK);
    let log = node.place().dir().join("fio.json");
    let errors = node.place().dir().join("fio.err");
    let mut command = node.command("fio");
    command.args(args(job)).stdin(Stdio::null());
    let start_up = aim(&mut command, volume, target, job.workload);
    command
        .stdout(File::create(&log)?)
        .stderr(File::create(&errors)?);
    let mut process = Background::start(&mut command)?;
    thread::sleep(start_up + job.window.warm_up);
    let watched = Watched {
        serving: process.pid(),
        gluster,
    };
    let before = watched.read();
    thread::sleep(job.window.length.saturating_sub(MARGIN));
    let used = watched.read() - before;
    let status = process.wait(job.window.length + PATIENCE)?;
    let (said, complaints) = (fs::read_to_string(log)?, fs::read_to_string(errors)?);
    if !status.success() {
        return Err(format!("fio ended with {status}: {complaints} {said}").into());
    }
    let report = FioReport::parse(&said)?;
    let stats = report.mixed.or(report.write).or(report.read);
    let stats = stats.ok_or("fio did nothing")?;
    Ok(figures(&stats, &used))
}

fn figures(stats: &FioStats, used: &Used) -> Figures {
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    Figures {
        p50_us: us(stats.p50),
        p99_us: us(stats.p99),
        p999_us: us(stats.p999),
        ..used.at(stats.iops)
    }
}

/// Engine and file; returns the time that it takes to begin.
fn aim(
    command: &mut Command,
    volume: &Volume,
    target: &Target<'_>,
    workload: Workload,
) -> Duration {
    match target {
        Target::File(path) => {
            command.arg("--ioengine=io_uring");
            command.arg(format!("--filename={}", path.display()));
            START_UP
        }
        Target::Gfapi(image) => {
            // The synchronous engine has one request in flight, with less work.
            let engine = match workload.depth {
                1 => "gfapi",
                _ => "gfapi_async",
            };
            let server = volume.brick_node(BRICK).address();
            command.arg(format!("--ioengine={engine}"));
            command.arg(format!("--volume={}", volume.name()));
            command.arg(format!("--brick={server}"));
            command.arg(format!("--filename={}", image.trim_start_matches('/')));
            START_UP_GFAPI
        }
    }
}

/// All but engine and file. Latencies are from submission on, as our front-end's are.
fn args(job: Job) -> Vec<String> {
    let Workload {
        reads,
        block,
        depth,
        queues,
        flush_every,
        sequential,
        ..
    } = job.workload;
    let pattern = match (sequential, reads) {
        (true, 100) => "read",
        (true, _) => "write",
        (false, 100) => "randread",
        (false, 0) => "randwrite",
        (false, _) => "randrw",
    };
    let window = job.window;
    let mut args = vec![
        format!("--rw={pattern}"),
        format!("--bs={block}"),
        format!("--iodepth={depth}"),
        format!("--numjobs={queues}"),
        format!("--size={}", job.area),
        format!("--randseed={}", job.seed),
        format!("--ramp_time={}ms", window.warm_up.as_millis()),
        format!("--runtime={}ms", window.length.as_millis()),
        format!("--fdatasync={flush_every}"),
    ];
    if !matches!(reads, 0 | 100) {
        args.push(format!("--rwmixread={reads}"));
        args.push("--unified_rw_reporting=mixed".into());
    }
    let fixed = [
        "--name=bench",
        "--thread",
        "--direct=1",
        "--group_reporting",
        "--time_based",
        "--norandommap",
        "--allow_file_create=0",
        "--lat_percentiles=1",
        "--clat_percentiles=0",
        "--percentile_list=50:99:99.9",
        "--output-format=json",
    ];
    args.extend(fixed.map(String::from));
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Window;

    fn args_of(name: &str) -> String {
        let window = Window {
            warm_up: Duration::from_millis(500),
            length: Duration::from_secs(3),
        };
        let workload = Workload::named(name).unwrap();
        args(Job {
            workload,
            area: 1 << 20,
            seed: 7,
            window,
        })
        .join(" ")
    }

    #[test]
    fn fio_does_what_the_front_end_does() {
        let text = args_of("randwrite-32x2");
        for arg in ["--rw=randwrite", "--bs=4096", "--iodepth=32", "--numjobs=2"] {
            assert!(text.contains(arg), "{text}");
        }
        assert!(args_of("read-8").contains("--rw=read --bs=131072 --iodepth=8"));
        assert!(args_of("mix-32").contains("--rw=randrw") && args_of("mix-32").contains("=70"));
        assert!(args_of("writeflush-1").contains("--fdatasync=16"));
    }
}
