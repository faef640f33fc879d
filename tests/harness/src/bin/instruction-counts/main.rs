//! `qemu/instruction-counts`: how many instructions our device takes for a request. Unlike
//! time, that does not depend on what else the machine does.
//!
//! `trace.rs` has the requests and waits until the device sleeps again after each batch,
//! so that every run goes the same way; `steps.rs` counts; `record.rs` is the recorded
//! figures and what is too much of a difference. The device is `bare-device` on
//! /dev/zero. Counted is user space alone, of the queue's thread alone.

#[allow(dead_code)]
#[path = "../device-bench/bare.rs"]
mod bare;
#[allow(dead_code, unsafe_code)]
#[path = "../../../../chaos/device.rs"]
mod device;
mod places;
mod record;
mod steps;
mod trace;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use bypass_harness::progress::Step;
use bypass_harness::{Place, signals};
use clap::Parser;

use bare::{Bare, Disk};
use places::Program;
use record::Record;
use steps::Steps;
use trace::{AREA, CASES, Case, Trace};

/// Queues of the device, a thread each.
const QUEUES: u16 = 1;
/// That thread's name.
const THREAD: &str = "vring_worker";
/// Requests before what counts: everything that is made once is made here.
const WARM_UP: usize = 640;

/// Counts the instructions of bypass-blk's device per request, and compares them with the
/// recorded ones: fails when one has grown by more than a tenth.
#[derive(Parser)]
struct Options {
    /// The bare-device program, an optimised build.
    #[arg(long, value_name = "PROGRAM", default_value = "bare-device")]
    bare_device: PathBuf,
    /// The recorded figures.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "tests/instruction-counts.json"
    )]
    record: PathBuf,
    /// Record what is counted now.
    #[arg(long)]
    update: bool,
    /// Tell which functions they are spent in, too.
    #[arg(long = "where")]
    places: bool,
}

fn main() -> ExitCode {
    signals::exit_status("instruction-counts", run(&Options::parse()))
}

fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    signals::clean_up_when_told_to_end()?;
    let recorded = match options.update {
        true => Record::default(),
        false => Record::read(&options.record)?,
    };
    let mut counted = Record::default();
    for case in CASES {
        let step = Step::begin(case.title);
        counted.set(case.name, count(options, case)?);
        step.done("");
    }
    print!("{}", counted.compared(&recorded));
    if options.update {
        counted.write(&options.record)?;
        eprintln!("written to {}", options.record.display());
        return Ok(true);
    }
    let too_many = counted.too_many(&recorded);
    if !too_many.is_empty() {
        eprintln!(
            "more instructions per request than recorded: {}. If that has to be: \
             qemu/instruction-counts --update, and say why in the commit",
            too_many.join(", ")
        );
    }
    if counted.gained(&recorded) {
        eprintln!("fewer than recorded: keep it with qemu/instruction-counts --update");
    }
    Ok(too_many.is_empty())
}

/// Instructions per request of one kind.
fn count(options: &Options, case: Case) -> Result<f64, Box<dyn Error>> {
    let place = Place::host()?;
    let bare = Bare::start(&place, &options.bare_device, &Disk::Null(AREA))?;
    let mut trace = Trace::connect(bare.pid(), &bare.socket)?;
    trace.go(case, WARM_UP)?;
    let steps = Steps::of(bare.pid(), THREAD, options.places)?;
    trace.settle()?;
    let before = steps.so_far();
    steps.take_addresses();
    trace.go(case, case.counted)?;
    let counted = steps.so_far() - before;
    if options.places {
        let table = Program::of(bare.pid())?.told(&steps.take_addresses(), case.counted)?;
        println!("{}, instructions per request:\n{table}", case.title);
    }
    Ok(counted as f64 / case.counted as f64)
}
