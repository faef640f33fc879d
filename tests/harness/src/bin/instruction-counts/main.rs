//! `qemu/instruction-counts`: how many instructions our device takes for a request, by
//! valgrind's callgrind. Unlike time, that does not depend on what else the machine does.
//!
//! `trace.rs` has the requests and waits until the device sleeps again after each batch,
//! so that every run goes the same way; `callgrind.rs` runs `bare-device` on /dev/zero
//! under valgrind and reads what it counted; `record.rs` is the recorded figures and what
//! is too much of a difference. Counted is user space alone, of the queue's thread alone.

mod callgrind;
#[allow(dead_code, unsafe_code)]
#[path = "../../../../chaos/device.rs"]
mod device;
mod record;
mod trace;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use bypass_harness::progress::Step;
use bypass_harness::{Place, signals};
use clap::Parser;

use callgrind::Counts;
use record::Record;
use trace::{CASES, Case};

/// Before what counts, of each case: everything that is made once is made here.
const WARM_UP: usize = 32;
/// What counts, of one case; with 32 at a time, 64 batches.
const COUNTED: usize = 2048;

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
    /// Keep callgrind's files here, for callgrind_annotate.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    signals::exit_status("instruction-counts", run(&Options::parse()))
}

fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    signals::clean_up_when_told_to_end()?;
    let place = Place::host()?;
    let recorded = match options.update {
        true => Record::default(),
        false => Record::read(&options.record)?,
    };
    let mut counted = Record::default();
    let before = count(options, &place, None)?;
    for case in CASES {
        let step = Step::begin(case.title);
        let grown = count(options, &place, Some(case))?.busiest_since(&before)?;
        counted.set(case.name, grown as f64 / COUNTED as f64);
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

/// What a whole run takes: the warm-up of all cases, then what counts of one.
fn count(options: &Options, place: &Place, case: Option<Case>) -> Result<Counts, Box<dyn Error>> {
    let name = case.map_or("none", |case| case.name);
    callgrind::run(
        place,
        &options.bare_device,
        name,
        options.keep.as_deref(),
        |pid, socket| {
            let mut trace = trace::Trace::connect(pid, socket)?;
            for warm_up in CASES {
                trace.go(warm_up, WARM_UP)?;
            }
            case.map_or(Ok(()), |case| trace.go(case, COUNTED))
        },
    )
}
