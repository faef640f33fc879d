//! The guest of a session: writes that begin at the gate, land and end, many at a
//! time, and flushes.

use std::ops::Range;
use std::sync::Arc;

use bypass_blk::device::gate::{Admission, Gate};
use bypass_blk::image::session::write_gate::WriteGate;

use super::brick::{SECTOR, SECTORS, Syncs, Version};
use super::oracle::is_guests;
use super::piece;
use super::world::World;

/// Writes in flight at one time, at most.
const DEPTH: usize = 3;

pub struct Guest {
    pub gate: Arc<WriteGate>,
    in_flight: Vec<Write>,
    /// Waits at the gate.
    waiting: Option<Write>,
    /// It writes no more.
    pub quiet: bool,
}

#[derive(Clone)]
struct Write {
    sectors: Range<usize>,
    version: Version,
    /// Which parts of it, each in one file, have not landed.
    left: Vec<Range<usize>>,
}

impl Write {
    fn bytes(&self) -> (u64, u64) {
        let len = self.sectors.len() as u64 * SECTOR;
        (self.sectors.start as u64 * SECTOR, len)
    }

    fn guests(&self) -> impl Iterator<Item = usize> {
        guests_of(&self.sectors)
    }
}

impl Guest {
    pub fn new(gate: Arc<WriteGate>) -> Self {
        Self {
            gate,
            in_flight: Vec::new(),
            waiting: None,
            quiet: false,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    pub fn step(&mut self, host: usize, world: &mut World) {
        if self.quiet {
            self.waiting = None;
        }
        if let Some(write) = self.waiting.take() {
            return self.submit(host, world, write);
        }
        let begins = !self.quiet && self.in_flight.len() < DEPTH && world.rng.chance(3);
        if begins {
            let write = new_write(world);
            let overlaps = |w: &Write| {
                w.sectors.start < write.sectors.end && write.sectors.start < w.sectors.end
            };
            if !self.in_flight.iter().any(overlaps) {
                self.submit(host, world, write);
            }
        } else if !self.in_flight.is_empty() {
            let index = world.rng.below(self.in_flight.len());
            self.advance(host, world, index);
        } else if world.rng.chance(6) {
            self.flush(host, world);
        }
    }

    fn flush(&self, host: usize, world: &mut World) {
        if self.gate.begin_sync() != Admission::Go {
            return;
        }
        let mut files = world.each_file();
        if let Err(error) = files.try_for_each(|file| world.sync_disk(host, file, Syncs::Guest)) {
            self.gate
                .sync_failed(error.raw_os_error().unwrap_or(libc::EIO));
        }
        if self.gate.end_sync() {
            world.oracle.flushed();
            world.tell(|| format!("guest on {host}: flush"));
        }
    }

    fn submit(&mut self, host: usize, world: &mut World, write: Write) {
        let (offset, len) = write.bytes();
        match self.gate.begin_write(offset, len) {
            Admission::Go => {
                world.tell(|| {
                    format!(
                        "guest on {host}: begins {} {:?}",
                        write.version, write.sectors
                    )
                });
                for sector in write.guests() {
                    world.oracle.submitted(sector, write.version);
                }
                self.in_flight.push(write);
            }
            // This guest waits for its write whatever others may do.
            Admission::Wait | Admission::WaitAlone => self.waiting = Some(write),
            Admission::Refuse => {}
        }
    }

    fn advance(&mut self, host: usize, world: &mut World, index: usize) {
        if let Some(part) = self.in_flight[index].left.pop() {
            return self.land(host, world, index, part);
        }
        let write = self.in_flight.swap_remove(index);
        let (offset, len) = write.bytes();
        self.gate.end_write(offset, len);
        for sector in write.guests() {
            world.oracle.acknowledged(sector, write.version);
        }
        world.tell(|| format!("guest on {host}: {} is done", write.version));
    }

    fn land(&self, host: usize, world: &mut World, index: usize, part: Range<usize>) {
        let write = &self.in_flight[index];
        world.tell(|| format!("guest on {host}: {} lands in {part:?}", write.version));
        for sector in guests_of(&part) {
            world.bricks[host].write(sector, write.version);
        }
        world.landed[host] += 1;
        if !world.robbed {
            world.check_marked(host, piece::file_of(&world.files, part.start));
        }
    }

    /// Its daemon is killed: what was in flight comes through or not.
    pub fn killed(mut self, host: usize, world: &mut World) {
        for index in 0..self.in_flight.len() {
            while let Some(part) = self.in_flight[index].left.pop() {
                if world.rng.chance(2) {
                    self.land(host, world, index, part);
                }
            }
        }
    }
}

fn new_write(world: &mut World) -> Write {
    let length = 1 + world.rng.below(6);
    let start = world.rng.below(SECTORS - length + 1);
    world.next_version += 1;
    let version = match world.rng.chance(12) {
        true => 0,
        false => world.next_version,
    };
    let (from, to) = (start as u64 * SECTOR, (start + length) as u64 * SECTOR);
    let part = |bytes: Range<u64>| (bytes.start / SECTOR) as usize..(bytes.end / SECTOR) as usize;
    Write {
        sectors: start..start + length,
        version,
        left: world.files.cut(from..to).map(part).collect(),
    }
}

fn guests_of(sectors: &Range<usize>) -> impl Iterator<Item = usize> + use<> {
    sectors.clone().filter(|sector| is_guests(*sector))
}
