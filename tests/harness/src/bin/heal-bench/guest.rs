//! What the guest's writes feel of healing: rounds without and with a healer, in
//! turn. Every round begins with a clean image.

use std::error::Error;
use std::time::Duration;

use bypass_harness::progress::Step;
use bypass_harness::{Fill, Volume};

use crate::load::{self, DEPTH, Until};
use crate::program::{Daemon, Program, end};
use crate::rng::Rng;
use crate::table::{Goal, Table};
use crate::{MIB, Options};

const IMAGE: &str = "/guest.img";
const IMAGE_BYTES: u64 = 256 * MIB;
/// The seed's first stream.
const STREAM: u64 = 200;

/// The rounds of one kind.
#[derive(Default)]
struct Rounds {
    iops: Vec<f64>,
    p99: Vec<f64>,
}

/// Adds a row for the writes per second and one for their latency.
pub fn measure(
    volume: &Volume,
    program: &Program,
    options: &Options,
    table: &mut Table,
) -> Result<(), Box<dyn Error>> {
    volume.create_image(IMAGE, IMAGE_BYTES, Fill::Noise)?;
    let daemon = program.serve(volume, IMAGE, "64K")?;
    let step = Step::begin_parts(
        "writes without and with healing",
        2 * options.rounds as usize,
    );
    let (mut without, mut with) = (Rounds::default(), Rounds::default());
    // A first round that does not count.
    let warm_up = Duration::from_secs(1);
    load::write(
        &daemon.socket,
        IMAGE_BYTES,
        Rng::new(options.seed, 0),
        Until::Time(warm_up),
    )?;
    for number in 0..u64::from(options.rounds) {
        for (healing, rounds) in [(false, &mut without), (true, &mut with)] {
            daemon.wait_no_healer()?;
            program.heal(volume, IMAGE)?;
            let rng = Rng::new(options.seed, STREAM + number);
            let (iops, p99) = round(&daemon, healing, rng, options.round())?;
            eprintln!("    healing {healing}: {iops:.0} IOPS, p99 {p99:.1?}");
            rounds.iops.push(iops);
            rounds.p99.push(p99.as_secs_f64() * 1e3);
            step.part_done();
        }
    }
    step.done("");
    daemon.stop()?;
    let what = |of: &str| format!("{of} of 4 KiB random writes at depth {DEPTH}: healing on / off");
    add(
        table,
        &what("IOPS"),
        [&with.iops, &without.iops],
        0,
        Goal::AtLeast(0.95),
    );
    add(
        table,
        &what("p99 in ms"),
        [&with.p99, &without.p99],
        2,
        Goal::AtMost(1.05),
    );
    Ok(())
}

fn round(
    daemon: &Daemon,
    healing: bool,
    rng: Rng,
    time: Duration,
) -> Result<(f64, Duration), Box<dyn Error>> {
    daemon.wait_no_healer()?;
    let healer = healing.then(|| daemon.start_healer()).transpose()?;
    let written = load::write(&daemon.socket, IMAGE_BYTES, rng, Until::Time(time))?;
    healer.map(end).transpose()?;
    Ok((written.iops(), written.p99()))
}

/// Medians, with the least and greatest of the rounds behind them.
fn add(table: &mut Table, what: &str, [with, without]: [&[f64]; 2], digits: usize, goal: Goal) {
    let sorted = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values
    };
    let (with, without) = (sorted(with), sorted(without));
    let median = |values: &[f64]| values[values.len() / 2];
    let figures = |values: &[f64]| {
        let (least, greatest) = (values[0], values[values.len() - 1]);
        format!(
            "{:.digits$} ({least:.digits$}–{greatest:.digits$})",
            median(values)
        )
    };
    let text = format!("{} / {}", figures(&with), figures(&without));
    table.add(what, &text, median(&with) / median(&without), goal);
}
