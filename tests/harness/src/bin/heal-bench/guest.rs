//! What the guest's writes feel of healing: rounds without and with a healer, in
//! turn. Every round begins with a clean image.

use std::error::Error;
use std::time::Duration;

use bypass_harness::progress::Step;
use bypass_harness::stats::Spread;
use bypass_harness::{Fill, Volume};

use crate::load::{self, DEPTH, Until};
use crate::program::{Program, end};
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
    let daemon = program.serve(volume, IMAGE, None)?;
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
    let mut sent = Vec::new();
    for number in 0..u64::from(options.rounds) {
        for (healing, rounds) in [(false, &mut without), (true, &mut with)] {
            daemon.wait_no_healer()?;
            program.heal(volume, IMAGE)?;
            daemon.wait_no_healer()?;
            let healer = healing.then(|| daemon.start_healer()).transpose()?;
            let rng = Rng::new(options.seed, STREAM + number);
            let until = Until::Time(options.round());
            let written = load::write(&daemon.socket, IMAGE_BYTES, rng, until)?;
            if let Some(healer) = healer {
                sent.push(daemon.sent()? as f64 / MIB as f64 / options.round().as_secs_f64());
                end(healer)?;
            }
            rounds.iops.push(written.iops());
            rounds.p99.push(written.p99().as_secs_f64() * 1e3);
            step.part_done();
        }
    }
    step.done("");
    daemon.stop()?;
    let what = |of: &str| {
        let sent = format!("{:.0}", Spread::of(&sent));
        format!(
            "{of} of 4 KiB random writes at depth {DEPTH}: healing on (sending {sent} MiB/s) / off"
        )
    };
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

/// A row of medians.
fn add(table: &mut Table, what: &str, [with, without]: [&[f64]; 2], digits: usize, goal: Goal) {
    let (with, without) = (Spread::of(with), Spread::of(without));
    let text = format!("{with:.digits$} / {without:.digits$}");
    table.add(what, &text, with.median / without.median, goal);
}
