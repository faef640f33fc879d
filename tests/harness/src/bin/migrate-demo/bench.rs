//! How long a guest stands still, with images of different sizes and the same writes
//! before: from the logs of both daemons and from QEMU.

use std::error::Error;

use bypass_harness::progress::Step;
use bypass_harness::{Fill, GuestImage};

use crate::guest::{FAST, Load, Moved, Moving};
use crate::hosts::Program;
use crate::{MIB, Options, three_hosts};

/// What the daemons log, in this order.
const STOPPED: &str = "the rings have stopped";
const GIVEN_AWAY: &str = "the image is given away: it is opened";
const STARTED: &str = "rings have started";
const HELD: &str = "the image is held";

/// Prints the table.
pub fn measure(options: &Options, sizes: &[u64]) -> Result<(), Box<dyn Error>> {
    let volume = three_hosts()?;
    let program = Program::new(&options.program)?;
    let _healers = program.healers(&volume)?;
    let boot = GuestImage::prepare()?;
    println!(
        "| image | written before, MB/s | rings stopped → given away, ms | target's rings started → held, ms | stopped → held, ms | QEMU's downtime, ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for gib in sizes {
        let step = Step::begin(&format!("an image of {gib} GiB"));
        let image = format!("/size{gib}.img");
        volume.create_image(&image, gib * 1024 * MIB, Fill::Sparse)?;
        let mut moving = Moving::prepare(&program, &volume, &image, &boot)?;
        moving.start(Load::Write(options.rate))?;
        let rate = (moving.written_fast()? as f64 / 1e6 / FAST.as_secs_f64()) as u64;
        let moved = moving.run_script(&options.script, &options.max_downtime, &mut |_| {})?;
        if !moved.success {
            return Err(moved.verdict.into());
        }
        println!("{}", row(*gib, rate, &moved, &moving)?);
        moving.finish()?;
        step.done("");
    }
    Ok(())
}

fn row(gib: u64, rate: u64, moved: &Moved, moving: &Moving) -> Result<String, Box<dyn Error>> {
    let (source, target) = (moving.source.log(), moving.target.log());
    let [stopped, given] = [at(&source, STOPPED)?, at(&source, GIVEN_AWAY)?];
    let [started, held] = [at(&target, STARTED)?, at(&target, HELD)?];
    let downtime = moved.verdict.split_whitespace().rev().nth(1).unwrap_or("?");
    Ok(format!(
        "| {gib} GiB | {rate} | {} | {} | {} | {downtime} |",
        given.saturating_sub(stopped),
        held.saturating_sub(started),
        held.saturating_sub(stopped),
    ))
}

/// The time of the last line with this text, in milliseconds of the day.
fn at(log: &str, text: &str) -> Result<u64, Box<dyn Error>> {
    let line = log.lines().rev().find(|line| line.contains(text));
    let stamp = line.and_then(|line| line.split_whitespace().next());
    let time = stamp.map(|stamp| {
        stamp
            .rsplit('T')
            .next()
            .unwrap_or(stamp)
            .trim_end_matches('Z')
    });
    let millis = time.and_then(|time| {
        let mut parts = time.split([':', '.']).map(|part| part.parse::<u64>().ok());
        let mut part = || parts.next().flatten();
        Some(((part()? * 60 + part()?) * 60 + part()?) * 1000 + part()?)
    });
    millis.ok_or_else(|| format!("no time of {text:?} in the log: {log}").into())
}
