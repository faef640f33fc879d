//! `qemu/migrate --demo` and `qemu/migrate-bench`: a guest that writes moves between two
//! of three hosts, each in a network namespace of its own, by the script `qemu/migrate`.
//!
//! `hosts.rs` is bypass-blk on the hosts, `guest.rs` the guest and its move, `bench.rs`
//! the table of downtimes, `libvirt.rs` the move by libvirt. This file is the command line,
//! and the demo with its verdict.

mod bench;
mod guest;
mod hosts;
mod libvirt;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bypass_harness::progress::Step;
use bypass_harness::{Cluster, Copies, Fill, GuestImage, Volume, VolumeKind, signals, wait_until};
use clap::Parser;

use guest::{Load, Moving};
use hosts::Program;

const NODES: usize = 3;
const VOLUME: &str = "vms";
const MIB: u64 = 1 << 20;
/// How long the last marks may take to go.
const HEAL_DEADLINE: Duration = Duration::from_secs(300);

/// Moves a guest that writes and verifies from one host to another, on a cluster in
/// network namespaces of this machine.
#[derive(Parser)]
struct Options {
    /// The bypass-blk program.
    #[arg(long, default_value = "bypass-blk")]
    program: PathBuf,
    /// The script that migrates.
    #[arg(long, default_value = "qemu/migrate")]
    script: PathBuf,
    /// Size of the image.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=65536))]
    size: u64,
    /// No demo: measure the downtime with images of these sizes, each after the same
    /// writes, and print a table.
    #[arg(long, value_name = "GIB", value_delimiter = ',')]
    bench: Option<Vec<u64>>,
    /// No script: libvirt, with the domain and the unit in this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "bench")]
    libvirt: Option<PathBuf>,
    /// With --bench: how fast the guest writes before, in MB/s (it may not come to that).
    #[arg(long, value_name = "MB/S", default_value_t = 200)]
    rate: u32,
    /// With --bench: `handover --max-downtime`, that is how much may be left to send when
    /// the migration begins.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    max_downtime: String,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match (&options.bench, &options.libvirt) {
        (Some(sizes), _) => bench::measure(&options, sizes).map(|()| true),
        (None, Some(dir)) => libvirt::demo(&options, dir),
        (None, None) => demo(&options),
    };
    signals::exit_status("migrate-demo", outcome)
}

/// A started volume over three hosts.
fn three_hosts() -> Result<Volume, Box<dyn Error>> {
    signals::clean_up_when_told_to_end()?;
    let step =
        Step::begin("three hosts, each in a network namespace of its own, and a replica-3 volume");
    let cluster = Cluster::start(NODES)?;
    let volume = cluster.create_volume(VOLUME, VolumeKind::Replica(NODES), &[])?;
    volume.start()?;
    step.done("");
    Ok(volume)
}

/// Whether the guest moved, unharmed, and all copies are equal.
fn demo(options: &Options) -> Result<bool, Box<dyn Error>> {
    const IMAGE: &str = "/vm1.img";
    let volume = three_hosts()?;
    let step = Step::begin("an image on it");
    volume.create_image(IMAGE, options.size * MIB, Fill::Noise)?;
    step.done(&format!("{VOLUME}{IMAGE}, {} MiB", options.size));
    let program = Program::new(&options.program)?;
    let _healers = program.healers(&volume)?;
    let step = Step::begin("a guest on the first host, a QEMU that waits for it on the second");
    let image = GuestImage::prepare()?;
    let mut moving = Moving::prepare(&program, &volume, IMAGE, &image)?;
    moving.start(Load::Verify)?;
    step.done("fio writes and verifies in it");
    let moved = moving.run_script(&options.script, "1s", &mut |line| println!("    {line}"))?;
    let step = Step::begin("fio in the guest, to the end of its round, and powering the guest off");
    moving.finish()?;
    step.done("every byte read back as written");
    let copies = compared(&volume, IMAGE)?;
    println!("{}", verdict(moved.success, &copies));
    Ok(moved.success && copies.are_equal())
}

/// Waits until no copy is marked, then compares all of them.
fn compared(volume: &Volume, image: &str) -> Result<Copies, Box<dyn Error>> {
    let step = Step::begin("the marks go, the copies are compared byte for byte");
    wait_until("no mark to be left", HEAL_DEADLINE, || {
        let marks = volume.marks(image).map_err(|error| error.to_string())?;
        marks.is_clean().then_some(()).ok_or(marks.to_string())
    })?;
    let copies = volume.copies_equal(image)?;
    step.done("");
    Ok(copies)
}

fn verdict(moved: bool, copies: &Copies) -> String {
    let how = match moved {
        true => "The guest moved while it wrote, and read back what it had written.",
        false => "THE GUEST DID NOT MOVE; see above.",
    };
    match copies {
        Copies::Equal { copies, .. } => format!("{how} All {copies} copies are equal."),
        Copies::Differ { offset, .. } => format!("{how} THE COPIES DIFFER at byte {offset}."),
    }
}
