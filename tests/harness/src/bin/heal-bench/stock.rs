//! Time and bytes from a killed daemon to equal copies, by `bypass-blk heal` and by
//! the stock self-heal daemons, after the same writes.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use bypass_harness::progress::Step;
use bypass_harness::{Fill, Volume, wait_until};

use crate::load::{self, Until, Written};
use crate::program::Program;
use crate::rng::Rng;
use crate::table::{Goal, Table, mib};
use crate::traffic::Traffic;
use crate::{BLOCK, NODE, Options};

/// The seed's stream.
const STREAM: u64 = 100;
const DEADLINE: Duration = Duration::from_secs(3600);
const SHD_DEADLINE: Duration = Duration::from_secs(60);

/// What a heal took.
struct Cost {
    took: Duration,
    read: u64,
    sent: u64,
    cpu: Duration,
}

impl Cost {
    fn moved(&self) -> u64 {
        self.read + self.sent
    }

    /// For a cell of the table.
    fn part(&self) -> String {
        let all = mib(self.moved());
        format!("{all} (read {}, sent {})", mib(self.read), mib(self.sent))
    }
}

/// Adds a row for the time and one for the bytes, per extent size: the default one, and
/// but for the full sizes a coarse one for what rounding costs.
pub fn measure(
    volume: &Volume,
    program: &Program,
    options: &Options,
    beside_stock: bool,
    table: &mut Table,
) -> Result<(), Box<dyn Error>> {
    let mut costs = vec![("default", ours(volume, program, options, None)?)];
    if !options.full {
        costs.push(("64K", ours(volume, program, options, Some("64K"))?));
    }
    let (written, image) = options.against_stock();
    let case = format!("{} in {} GiB", mib(written), image >> 30);
    if !beside_stock {
        for (extents, ours) in &costs {
            let what = format!("seconds to clean, {case}: {extents} extents");
            table.add(&what, &ours.part(), ours.took.as_secs_f64(), Goal::None);
        }
        return Ok(());
    }
    let stock = stock(volume, program, options)?;
    for (extents, ours) in &costs {
        let seconds = [stock.took, ours.took].map(|took| took.as_secs_f64());
        let figures = format!("{:.1} s / {:.1} s", seconds[0], seconds[1]);
        let what = format!("time to clean, {case}: stock / ours with {extents} extents");
        table.add(
            &what,
            &figures,
            seconds[0] / seconds[1],
            Goal::AtLeast(10.0),
        );
    }
    for (extents, ours) in &costs {
        let seconds = [stock.cpu, ours.cpu].map(|cpu| cpu.as_secs_f64());
        let figures = format!("{:.1} s / {:.1} s", seconds[0], seconds[1]);
        let what = format!("processors' time, {case}: stock / ours with {extents} extents");
        table.add(&what, &figures, seconds[0] / seconds[1], Goal::None);
    }
    for (extents, ours) in &costs {
        let figures = format!("{} / {}", stock.part(), ours.part());
        let what = format!("bytes read + sent, {case}: stock / ours with {extents} extents");
        let ratio = stock.moved() as f64 / ours.moved() as f64;
        table.add(&what, &figures, ratio, Goal::AtLeast(20.0));
    }
    Ok(())
}

fn ours(
    volume: &Volume,
    program: &Program,
    options: &Options,
    extents: Option<&str>,
) -> Result<Cost, Box<dyn Error>> {
    let name = extents.unwrap_or("default");
    let image = format!("/ours-{name}.img");
    let written = leave_behind(volume, program, options, &image, extents)?;
    let step = Step::begin(&format!("bypass-blk heal, {name} extents"));
    let before = Traffic::now(volume)?;
    let healed = program.heal(volume, &image)?;
    let moved = Traffic::now(volume)? - before;
    let took = healed.took.as_secs_f64();
    step.done(&format!(
        "{took:.1} s; {}; {:.1} s of CPU; bricks and network: {moved}",
        healed.said,
        healed.cpu.as_secs_f64(),
    ));
    check_and_remove(volume, &image, &written)?;
    Ok(Cost {
        took: healed.took,
        read: moved.read + healed.read,
        sent: moved.sent,
        cpu: moved.cpu + healed.cpu,
    })
}

/// The self-heal daemons are up before the writes, so that their start is not in
/// the time; until they are asked, they look at their indices every ten minutes only.
fn stock(volume: &Volume, program: &Program, options: &Options) -> Result<Cost, Box<dyn Error>> {
    let image = "/stock.img";
    let step = Step::begin("starting the self-heal daemons");
    volume.set_self_heal_daemon(true)?;
    wait_until("the self-heal daemons", SHD_DEADLINE, || {
        volume.trigger_heal().map_err(|error| error.to_string())
    })?;
    step.done("");
    let written = leave_behind(volume, program, options, image, None)?;
    let step = Step::begin("gluster volume heal");
    let (before, begun) = (Traffic::now(volume)?, Instant::now());
    volume.trigger_heal()?;
    wait_until("stock Gluster to heal", DEADLINE, || {
        let marks = volume.marks(image).map_err(|error| error.to_string())?;
        marks.is_clean().then_some(()).ok_or(marks.to_string())
    })?;
    let took = begun.elapsed();
    let moved = Traffic::now(volume)? - before;
    step.done(&moved.to_string());
    check_and_remove(volume, image, &written)?;
    volume.set_self_heal_daemon(false)?;
    Ok(Cost {
        took,
        read: moved.read,
        sent: moved.sent,
        cpu: moved.cpu,
    })
}

/// A sparse image, the writes, and a killed daemon: two copies are behind.
fn leave_behind(
    volume: &Volume,
    program: &Program,
    options: &Options,
    image: &str,
    extents: Option<&str>,
) -> Result<Written, Box<dyn Error>> {
    let step = Step::begin(&format!("writes to {image}"));
    let (bytes, size) = options.against_stock();
    volume.create_image(image, size, Fill::Sparse)?;
    let daemon = program.serve(volume, image, extents)?;
    let rng = Rng::new(options.seed, STREAM);
    let written = load::write(&daemon.socket, size, rng, Until::Writes(bytes / BLOCK))?;
    daemon.kill();
    let marks = volume.marks(image)?;
    if marks.is_clean() {
        return Err(format!("nothing to heal:\n{marks}").into());
    }
    let distinct = |unit| mib(written.distinct_bytes(unit));
    step.done(&format!(
        "{:.0} IOPS; distinct: {} in 4 KiB, {} in 64 KiB, {} in 128 KiB units",
        written.iops(),
        distinct(4 << 10),
        distinct(64 << 10),
        distinct(128 << 10),
    ));
    Ok(written)
}

/// All that was written must be the same on all bricks; all else was a hole.
fn check_and_remove(volume: &Volume, image: &str, written: &Written) -> Result<(), Box<dyn Error>> {
    let step = Step::begin("comparing what was written");
    let bricks = volume.bricks().iter();
    let copies = bricks
        .map(|brick| File::open(volume.brick_file(brick.index, image)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut blocks = vec![[0; BLOCK as usize]; copies.len()];
    for offset in written.offsets() {
        for (copy, block) in copies.iter().zip(&mut blocks) {
            copy.read_exact_at(block, offset)?;
        }
        if blocks.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(format!("the copies of {image} differ at byte {offset}").into());
        }
    }
    let mount = volume.mount(NODE)?;
    std::fs::remove_file(mount.path().join(image.trim_start_matches('/')))?;
    step.done("equal on all copies");
    Ok(())
}
