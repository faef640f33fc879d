//! `qemu/device-bench`: this disk, its peers and the limit, measured side by side on the
//! brick's file of a real three-node volume, in rounds whose order is shuffled.
//!
//! `rig.rs` has the volume and begins and ends each way (`qsd.rs`, `fio.rs`,
//! `bare.rs`, and `program.rs` for ours), `load.rs` is the front-end of all vhost-user-blk devices,
//! `counters.rs` reads what processes used. The rest is pure: `workload.rs`, `way.rs`,
//! `plan.rs`, `figures.rs`, `goals.rs`, `report.rs`, `plot.rs`. This file is the command
//! line. It judges no goal as an error: a measurement on a busy machine is not a test.

mod bare;
mod counters;
#[allow(dead_code, unsafe_code)]
#[path = "../../../../chaos/device.rs"]
mod device;
mod figures;
mod fio;
mod goals;
mod healing;
mod idle;
mod load;
mod many_shards;
mod plan;
mod plot;
#[allow(dead_code)]
#[path = "../heal-bench/program.rs"]
mod program;
mod qsd;
mod report;
mod rig;
#[allow(dead_code)]
#[path = "../../../../chaos/rng.rs"]
mod rng;
#[path = "../heal-bench/table.rs"]
mod table;
#[allow(dead_code)]
#[path = "../heal-bench/traffic.rs"]
mod traffic;
mod way;
mod workload;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bypass_harness::progress::Step;
use bypass_harness::signals;
use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};

use figures::{Cell, Cells};
use load::{Job, Window};
use program::Program;
use report::Report;
use rig::{Rig, Volumes};
use table::Table;
use way::{Contender, State, Way};
use workload::Workload;

/// The node, and with one brick per node the brick, whose copy is served.
const NODE: usize = 0;
const BRICK: usize = NODE;
const MIB: u64 = 1 << 20;
/// Queues that every device has; a workload may use fewer.
const QUEUES: u16 = 2;
/// Before what counts of each cell.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the idle daemon is watched.
const IDLE: Duration = Duration::from_secs(20);

/// Measures bypass-blk, qemu-storage-daemon and fio side by side on the same brick file of
/// a real three-node volume; prints Markdown tables and writes them, with JSON of every
/// round and plots, to a folder.
#[derive(Parser)]
struct Options {
    /// The bypass-blk program.
    #[arg(long, default_value = "bypass-blk")]
    program: PathBuf,
    /// The bare-device program, for the ways unmarked and bare-null.
    #[arg(long, value_name = "PROGRAM", default_value = "bare-device")]
    bare_device: PathBuf,
    /// The folder for report.md, report.json and the plots.
    #[arg(long, value_name = "DIR", default_value = "target/device-bench")]
    output: PathBuf,
    /// What is measured; sharded, fuse, gfapi, qsd-gluster, unmarked, null and bare-null
    /// only if named.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        visible_alias = "only",
        default_value = "bypass,qsd-uring,qsd-uring-iothread,qsd-native,qsd-native-iothread,fio"
    )]
    ways: Vec<Way>,
    /// The state of our image when a cell begins, each a way of its own.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "clean")]
    states: Vec<State>,
    /// What is asked of the disk. Default: all.
    #[arg(long, value_delimiter = ',', value_parser = workload_parser(),
          default_values = workload::ALL.map(|workload| workload.name))]
    workloads: Vec<Workload>,
    /// Rounds, each with every workload on every way; 0 is none.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    rounds: u32,
    /// What counts of each cell, after half a second that does not.
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Also watch our daemon, idle with a connected front-end, for 20 seconds.
    #[arg(long)]
    idle: bool,
    /// Also compare what healing sends for an image in shards and for a whole one.
    #[arg(long)]
    healing: bool,
    /// Also open an image of so many shards, on a cluster of its own.
    #[arg(long, value_name = "SHARDS", value_parser = clap::value_parser!(u64).range(2..=16384))]
    many_shards: Option<u64>,
    /// Size of the image.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=65536))]
    image: u64,
    /// Size of a shard of the image in shards.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(4..=4096))]
    shard: u64,
    /// The order of the cells, and where random requests go.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn workload_parser() -> impl TypedValueParser<Value = Workload> {
    let names = PossibleValuesParser::new(workload::ALL.map(|workload| workload.name));
    names.try_map(|name| Workload::named(&name).ok_or("unknown"))
}

impl Options {
    fn job(&self, workload: Workload, round: u32) -> Job {
        Job {
            workload,
            area: self.image * MIB,
            // The same places for all ways of a round.
            seed: self.seed.wrapping_add(u64::from(round) << 32),
            window: Window {
                warm_up: WARM_UP,
                length: Duration::from_secs(self.seconds),
            },
        }
    }
}

fn main() -> ExitCode {
    let outcome = run(&Options::parse());
    signals::exit_status("device-bench", outcome.map(|()| true))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    signals::clean_up_when_told_to_end()?;
    let load_before = load_average();
    let (ways, alone) = (&options.ways, options.idle || options.healing);
    let alone = alone || options.many_shards.is_some();
    let ours = alone || ways.iter().any(|way| way.is_ours());
    let program = ours.then(|| Program::new(&options.program)).transpose()?;
    let volumes = Volumes::set_up(options.image * MIB, options.shard, &options.ways)?;
    let rig = volumes.serve(program.as_ref(), &options.bare_device, &options.ways)?;
    let contenders = Contender::all(&options.ways, &options.states);
    let about = || about(options, &load_before);
    let (mut cells, mut goals) = (Cells::default(), Table::default());
    for number in 0..options.rounds {
        round(&rig, options, &contenders, number, &mut cells)?;
        // Whatever ends a long run, what was measured is there.
        report(options, &contenders, &cells, &goals, about()).write(&options.output)?;
    }
    goals::judge(&cells, &contenders, &mut goals);
    let idle = options.idle.then(|| idle(&rig, options)).transpose()?;
    if let Some(idle) = &idle {
        idle.judge(&mut goals);
    }
    let healing = options
        .healing
        .then(|| healing(&rig, options))
        .transpose()?;
    if let Some(healing) = &healing {
        healing.judge(&mut goals);
    }
    let many = program.as_ref().zip(options.many_shards);
    let many = many.map(|(program, shards)| many_shards(program, shards, options));
    let many = many.transpose()?;
    if let Some(many) = &many {
        many.judge(&mut goals);
    }
    let mut report = report(options, &contenders, &cells, &goals, about());
    (report.idle, report.healing, report.many_shards) = (idle, healing, many);
    report.write(&options.output)?;
    print!("{}", report.markdown());
    eprintln!("written to {}", options.output.display());
    Ok(())
}

fn report<'a>(
    options: &'a Options,
    contenders: &'a [Contender],
    cells: &'a Cells,
    goals: &'a Table,
    about: Value,
) -> Report<'a> {
    Report {
        workloads: &options.workloads,
        contenders,
        cells,
        idle: None,
        healing: None,
        many_shards: None,
        goals,
        about,
    }
}

fn round(
    rig: &Rig<'_>,
    options: &Options,
    contenders: &[Contender],
    round: u32,
    cells: &mut Cells,
) -> Result<(), Box<dyn Error>> {
    let plan = plan::round(options.seed, round, &options.workloads, contenders);
    let of_all = format!("round {} of {}", round + 1, options.rounds);
    let step = Step::begin_parts(&of_all, plan.len());
    for (workload, contender) in plan {
        step.part(&format!("{}: {}", workload.name, contender.name()));
        let figures = rig.measure(contender, options.job(workload, round));
        let place = |error| format!("{}, {}: {error}", workload.name, contender.name());
        cells.0.push(Cell {
            round,
            workload,
            contender,
            figures: figures.map_err(place)?,
        });
        step.part_done();
    }
    step.done("");
    Ok(())
}

fn idle(rig: &Rig<'_>, options: &Options) -> Result<idle::Idle, Box<dyn Error>> {
    let step = Step::begin("an idle daemon");
    let workload = Workload::named("write-8").ok_or("no such workload")?;
    let idle = idle::measure(rig, options.job(workload, 0), IDLE)?;
    step.done("");
    Ok(idle)
}

fn healing(rig: &Rig<'_>, options: &Options) -> Result<healing::Healing, Box<dyn Error>> {
    let step = Step::begin("what healing sends");
    let workload = Workload::named("randwrite-32").ok_or("no such workload")?;
    let healing = healing::measure(rig, options.job(workload, 0))?;
    step.done("");
    Ok(healing)
}

fn many_shards(
    program: &Program,
    shards: u64,
    options: &Options,
) -> Result<many_shards::ManyShards, Box<dyn Error>> {
    let step = Step::begin(&format!("an image of {shards} shards"));
    let many = many_shards::measure(program, shards, options.shard)?;
    step.done("");
    Ok(many)
}

fn about(options: &Options, load_before: &str) -> Value {
    json!({
        "command": std::env::args().collect::<Vec<_>>(),
        "at": now(),
        "load_average": [load_before, load_average()],
        "image_bytes": options.image * MIB,
        "shard_bytes": options.shard * MIB,
        "seconds": options.seconds,
        "warm_up_seconds": WARM_UP.as_secs_f64(),
    })
}

/// Seconds since 1970.
fn now() -> Option<u64> {
    let since = std::time::UNIX_EPOCH.elapsed();
    since.ok().map(|since| since.as_secs())
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.trim().to_owned()
}
