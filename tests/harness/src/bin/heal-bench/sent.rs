//! Bytes sent to the peers for bytes written, with no healer while they are.

use std::error::Error;

use bypass_harness::progress::Step;
use bypass_harness::{Fill, Volume};

use crate::load::{self, Until};
use crate::program::Program;
use crate::rng::Rng;
use crate::table::{Goal, Table, mib};
use crate::{BLOCK, MIB};

const IMAGE: &str = "/sent.img";
const IMAGE_BYTES: u64 = 256 * MIB;
const WRITES: u64 = 4096;
const PEERS: u64 = 2;
/// Extents of an image of this size by default, and coarse ones for what rounding costs.
const EXTENTS: [(Option<&str>, u64); 2] = [(None, 4 << 10), (Some("64K"), 64 << 10)];

/// Adds a row per extent size, and for the coarse one how much the rounding costs.
pub fn measure(
    volume: &Volume,
    program: &Program,
    seed: u64,
    table: &mut Table,
) -> Result<(), Box<dyn Error>> {
    let step = Step::begin("bytes sent for bytes written");
    volume.create_image(IMAGE, IMAGE_BYTES, Fill::Noise)?;
    for (stream, (size, extent)) in EXTENTS.into_iter().enumerate() {
        let daemon = program.serve(volume, IMAGE, size)?;
        let name = size.unwrap_or("default (4K)");
        let rng = Rng::new(seed, stream as u64);
        let written = load::write(&daemon.socket, IMAGE_BYTES, rng, Until::Writes(WRITES))?;
        program.heal(volume, IMAGE)?;
        let sent = daemon.sent()?;
        daemon.stop()?;
        let extents = PEERS * written.distinct_bytes(extent);
        let what = format!(
            "sent / (2 × distinct {} KiB extents), {name} extents",
            extent >> 10
        );
        let figures = format!("{} / {}", mib(sent), mib(extents));
        table.add(
            &what,
            &figures,
            sent as f64 / extents as f64,
            Goal::AtMost(1.05),
        );
        if extent != BLOCK {
            let blocks = PEERS * written.distinct_bytes(BLOCK);
            let what = format!("the same, of distinct 4 KiB blocks, {name} extents");
            let figures = format!("{} / {}", mib(sent), mib(blocks));
            table.add(&what, &figures, sent as f64 / blocks as f64, Goal::None);
        }
    }
    step.done("");
    match volume.copies_equal(IMAGE)?.are_equal() {
        true => Ok(()),
        false => Err(format!("the copies of {IMAGE} differ").into()),
    }
}
