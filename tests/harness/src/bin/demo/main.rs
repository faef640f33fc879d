//! `qemu/demo`: a virtual machine on a real three-node Gluster volume, its disk
//! served by `bypass-blk` from one brick, healed by stock Gluster afterwards.
//!
//! The story is in `story.rs`, the comparison with other ways to attach the same
//! image in `compare.rs`. This file is the command line and the verdict.

mod compare;
mod daemon;
mod story;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bypass_harness::{Copies, bench, signals};
use clap::Parser;

/// Runs a guest on a disk served by bypass-blk from one brick of a real
/// three-node volume, lets stock Gluster heal, and compares the copies.
#[derive(Parser)]
struct Options {
    /// The bypass-blk program.
    #[arg(long, default_value = "bypass-blk")]
    program: PathBuf,
    /// Size of the image.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=65536))]
    size: u64,
    /// Time for each workload on each disk.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    runtime: u64,
    /// Also write the measurements as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Options {
    fn image_bytes(&self) -> u64 {
        self.size << 20
    }

    fn runtime(&self) -> Duration {
        Duration::from_secs(self.runtime)
    }
}

fn main() -> ExitCode {
    signals::exit_status("demo", run(&Options::parse()))
}

/// Whether all copies are equal.
fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    signals::clean_up_when_told_to_end()?;
    let outcome = story::tell(options)?;
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{:#}\n", bench::json(&outcome.measurements)))?;
    }
    println!(
        "{}",
        bench::table(&outcome.measurements, Some(compare::LIMIT))
    );
    println!("{}", verdict(&outcome.copies));
    Ok(outcome.copies.are_equal())
}

fn verdict(copies: &Copies) -> String {
    match copies {
        Copies::Equal { copies, bytes } => {
            format!(
                "All {copies} copies are equal, byte for byte ({} MiB each).",
                bytes >> 20
            )
        }
        Copies::Differ { offset, one, other } => format!(
            "THE COPIES DIFFER at byte {offset}: {} and {}",
            one.display(),
            other.display()
        ),
    }
}
