//! `qemu/heal-bench`: what healing with `bypass-blk` costs on a real three-node
//! volume, beside the stock self-heal daemon and beside the goals.
//!
//! The three measurements are in `sent.rs`, `stock.rs` and `guest.rs`; `program.rs`
//! runs bypass-blk, `load.rs` is the guest, `traffic.rs` counts bytes, `table.rs`
//! is the result. This file is the command line. It judges no goal as an error:
//! a measurement on a busy machine is not a test.

#[allow(dead_code, unsafe_code)]
#[path = "../../../../chaos/device.rs"]
mod device;
mod guest;
mod load;
// device-bench has it too, and asks more of it.
#[allow(dead_code)]
mod program;
#[allow(dead_code)]
#[path = "../../../../chaos/rng.rs"]
mod rng;
mod sent;
mod stock;
mod table;
mod traffic;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bypass_harness::progress::Step;
use bypass_harness::{Cluster, Volume, VolumeKind, signals};
use clap::{Parser, ValueEnum};

use program::Program;
use table::Table;

/// The node, and with one brick per node the brick, that serves the images.
const NODE: usize = 0;
const NODES: usize = 3;
const VOLUME: &str = "vms";
const MIB: u64 = 1 << 20;
/// The size of the guest's writes in bytes.
const BLOCK: u64 = 4096;

/// Measures healing on a real three-node volume, and prints one Markdown table:
/// bytes sent for bytes written, time and bytes to clean beside stock Gluster,
/// and what the guest feels of it.
#[derive(Parser)]
struct Options {
    /// The bypass-blk program.
    #[arg(long, default_value = "bypass-blk")]
    program: PathBuf,
    /// Also write the table to this file.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The sizes beside stock Gluster: 1 GiB of writes in a 20 GiB image, with
    /// the default extents only (takes long, and needs up to 45 GiB of disk).
    #[arg(long)]
    full: bool,
    /// Writes before the image is healed, beside stock Gluster.
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 256,
        conflicts_with = "full"
    )]
    written: u64,
    /// Size of the sparse image of that measurement.
    #[arg(long, value_name = "GIB", default_value_t = 4, conflicts_with = "full",
          value_parser = clap::value_parser!(u64).range(1..=1024))]
    image: u64,
    /// Rounds without and as many with healing, for the guest's writes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of each round.
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Only these measurements.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "sent,stock,guest"
    )]
    only: Vec<Part>,
    /// Where the random writes go.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Bytes sent for bytes written.
    Sent,
    /// Time and bytes to clean, beside stock Gluster.
    Stock,
    /// The same without stock Gluster beside it.
    Ours,
    /// The guest's writes with and without healing.
    Guest,
}

impl Options {
    /// Bytes written, and the size of the image, beside stock Gluster.
    fn against_stock(&self) -> (u64, u64) {
        match self.full {
            true => (1024 * MIB, 20 * 1024 * MIB),
            false => (self.written * MIB, self.image * 1024 * MIB),
        }
    }

    fn round(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

fn main() -> ExitCode {
    let outcome = run(&Options::parse());
    signals::exit_status("heal-bench", outcome.map(|()| true))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    signals::clean_up_when_told_to_end()?;
    let step = Step::begin("a replica-3 volume on three nodes");
    let (volume, program) = set_up(options)?;
    step.done("");
    let mut table = Table::default();
    for part in &options.only {
        match part {
            Part::Sent => sent::measure(&volume, &program, options.seed, &mut table)?,
            Part::Stock => stock::measure(&volume, &program, options, true, &mut table)?,
            Part::Ours => stock::measure(&volume, &program, options, false, &mut table)?,
            Part::Guest => guest::measure(&volume, &program, options, &mut table)?,
        }
    }
    let text = table.to_string();
    print!("{text}");
    if let Some(path) = &options.output {
        std::fs::write(path, text)?;
    }
    Ok(())
}

/// Stock healing is off until it is measured.
fn set_up(options: &Options) -> Result<(Volume, Program), Box<dyn Error>> {
    let program = Program::new(&options.program)?;
    let cluster = Cluster::start(NODES)?;
    let off = [("cluster.self-heal-daemon", "off")];
    let volume = cluster.create_volume(VOLUME, VolumeKind::Replica(NODES), &off)?;
    volume.start()?;
    Ok((volume, program))
}
