//! The guest: random 4 KiB writes with several in flight, through the daemon.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use bypass_harness::stats::percentile;

use crate::BLOCK;
use crate::device::{Device, Kind};
use crate::rng::Rng;

/// Writes in flight.
pub const DEPTH: usize = 16;
/// The longest wait for any answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// When to stop.
#[derive(Clone, Copy)]
pub enum Until {
    /// After so many writes.
    Writes(u64),
    /// After this time.
    Time(Duration),
}

/// What was written.
pub struct Written {
    blocks: BTreeSet<u64>,
    latencies: Vec<Duration>,
    took: Duration,
}

impl Written {
    /// Bytes of distinct units of `unit` bytes (a multiple of 4 KiB) that were
    /// written to.
    pub fn distinct_bytes(&self, unit: u64) -> u64 {
        let per_unit = unit / BLOCK;
        let units: BTreeSet<u64> = self.blocks.iter().map(|block| block / per_unit).collect();
        units.len() as u64 * unit
    }

    /// The first byte of each distinct block that was written, in order.
    pub fn offsets(&self) -> impl Iterator<Item = u64> {
        self.blocks.iter().map(|block| block * BLOCK)
    }

    /// Writes per second.
    pub fn iops(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// The latency that 99 of 100 writes did not exceed.
    pub fn p99(&self) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        percentile(&sorted, 990)
    }
}

/// Writes anywhere in an image of `image` bytes, then flushes. What is written is
/// never zero. The flush is not in the figures.
pub fn write(socket: &Path, image: u64, mut rng: Rng, until: Until) -> Result<Written, String> {
    let connected = Device::connect(socket, DEPTH, BLOCK as usize);
    let mut device = connected.map_err(|error| format!("cannot connect: {error}"))?;
    let mut slots: [Option<(u64, Instant)>; DEPTH] = [None; DEPTH];
    let (mut blocks, mut latencies) = (BTreeSet::new(), Vec::new());
    let (begun, mut made) = (Instant::now(), 0);
    loop {
        for slot in 0..DEPTH {
            let over = match until {
                Until::Writes(writes) => made >= writes,
                Until::Time(time) => begun.elapsed() >= time,
            };
            if over || slots[slot].is_some() {
                continue;
            }
            let block = free_block(&slots, image / BLOCK, &mut rng);
            fill(device.buffer(slot, BLOCK as usize), &mut rng);
            slots[slot] = Some((block, Instant::now()));
            device.submit(slot, Kind::Write, block * BLOCK, BLOCK as usize);
            blocks.insert(block);
            made += 1;
        }
        if slots.iter().all(Option::is_none) {
            break;
        }
        for slot in answers(&mut device, slots.iter().flatten().count())? {
            if let Some((_, submitted)) = slots[slot].take() {
                latencies.push(submitted.elapsed());
            }
        }
    }
    let took = begun.elapsed();
    device.submit(0, Kind::Flush, 0, 0);
    answers(&mut device, 1)?;
    Ok(Written {
        blocks,
        latencies,
        took,
    })
}

/// A block that no write in flight is about: what two of them leave is undefined.
fn free_block(slots: &[Option<(u64, Instant)>], blocks: u64, rng: &mut Rng) -> u64 {
    loop {
        let block = rng.below(blocks);
        if !slots.iter().flatten().any(|(other, _)| *other == block) {
            return block;
        }
    }
}

fn fill(buffer: &mut [u8], rng: &mut Rng) {
    for word in buffer.chunks_exact_mut(8) {
        word.copy_from_slice(&(rng.next() | 1).to_le_bytes());
    }
}

/// The slots that were answered, at least one; a refusal is an error.
fn answers(device: &mut Device, in_flight: usize) -> Result<Vec<usize>, String> {
    let answers = device.answers(in_flight, PATIENCE);
    if answers.is_empty() {
        return Err(format!("no answer in {PATIENCE:?}"));
    }
    let slot = |(slot, result)| match result {
        0 => Ok(slot),
        error => Err(format!("a write or flush failed: error {error}")),
    };
    answers.into_iter().map(slot).collect()
}
