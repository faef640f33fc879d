//! An ordinary client: writes through AFR, as its transactions do it (`afr-transaction.c`):
//! lock, count the write on every brick, write, fsync, count it away (and mark the
//! bricks that failed), unlock.

use std::ops::Range;

use super::brick::{BRICKS, Domain, Held, Owner, SECTOR, SECTORS, Version};
use super::oracle::is_guests;
use super::piece;
use super::world::World;

const CLIENT: Owner = 1;

pub struct Client {
    write: Option<Write>,
    /// It cannot reach these bricks.
    pub cut: [bool; BRICKS],
    /// The sectors where its last write did not come to its end: nobody was told that
    /// it is there.
    pub cut_short: [bool; SECTORS],
}

impl Default for Client {
    fn default() -> Self {
        Self {
            write: None,
            cut: [false; BRICKS],
            cut_short: [false; SECTORS],
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Count,
    Write,
    Sync,
    CountAway,
}

struct Write {
    file: usize,
    sectors: Vec<usize>,
    version: Version,
    lives: [u64; BRICKS],
    failed: [bool; BRICKS],
    /// Nobody accused these copies when it began.
    good: [bool; BRICKS],
    /// Those that had failed when the write was counted away.
    accused: [bool; BRICKS],
    phase: Phase,
    left: Vec<usize>,
}

impl Write {
    /// Which bricks are still there?
    fn look_at(&mut self, world: &mut World) {
        let lives = world.lives();
        for (brick, life) in lives.into_iter().enumerate() {
            self.failed[brick] |= life != self.lives[brick] || !world.bricks[brick].up;
        }
        let unmarked = |brick: &usize| self.failed[*brick];
        let accuses = self.phase == Phase::CountAway && self.accused.contains(&true);
        world.one_sided |= accuses && self.left.iter().any(unmarked);
        // Stock heal may just be copying from a brick that this write misses.
        world.one_sided |= accuses && !world.stock.is_idle();
    }
}

impl Client {
    pub fn is_idle(&self) -> bool {
        self.write.is_none()
    }

    /// A brick is out of its reach, or back.
    pub fn toggle(&mut self, brick: usize, world: &mut World) {
        self.cut[brick] ^= true;
        world.bricks[brick].release(CLIENT);
        if let Some(write) = &mut self.write {
            write.failed[brick] = true;
        }
    }

    pub fn step(&mut self, world: &mut World) {
        self.write = match self.write.take() {
            None => self.begin(world),
            Some(mut write) => {
                write.look_at(world);
                let over = write.phase == Phase::CountAway && write.left.is_empty();
                for sector in &write.sectors {
                    self.cut_short[*sector] = !over;
                }
                go_on(write, world)
            }
        };
    }

    fn begin(&self, world: &mut World) -> Option<Write> {
        let up: Vec<_> = (0..world.bricks.len())
            .filter(|&b| world.bricks[b].up && !self.cut[b])
            .collect();
        let first = world.rng.below(SECTORS);
        let file = piece::file_of(&world.files, first);
        let end = piece::sectors_of(&world.files, file).end;
        let sectors = (first..(first + 4).min(end)).filter(|s| !is_guests(*s));
        let sectors: Vec<_> = sectors.collect();
        if !world.is_quorum(&up) || sectors.is_empty() {
            return None;
        }
        let bytes = sectors[0]..sectors[sectors.len() - 1] + 1;
        let lock = lock_of(&bytes, file, world);
        let locked = up.iter().all(|&b| world.bricks[b].try_lock(lock.clone()));
        // What it read before is as good: a brick that went makes it read again.
        let says = |on: usize, copy: usize| world.bricks[on].files[file].row.pending[copy] != 0;
        let accused = |copy: usize| up.iter().any(|&b| says(b, copy));
        let good = |copy: usize| world.bricks[copy].has_data && !accused(copy);
        if !locked || !up.iter().any(|&copy| good(copy)) {
            up.iter().for_each(|&b| world.bricks[b].release(CLIENT));
            return None;
        }
        let good = [0, 1, 2].map(|copy| up.contains(&copy) && good(copy));
        world.next_version += 1;
        let version = world.next_version;
        world.tell(|| format!("client: begins {version} {sectors:?} on {up:?}"));
        Some(Write {
            file,
            sectors,
            version,
            lives: world.lives(),
            failed: [0, 1, 2].map(|b| b < world.bricks.len() && !up.contains(&b)),
            good,
            accused: [false; BRICKS],
            phase: Phase::Count,
            left: up,
        })
    }
}

fn lock_of(write: &Range<usize>, file: usize, world: &World) -> Held {
    let first = piece::sectors_of(&world.files, file).start;
    Held {
        first: (write.start - first) as u64 * SECTOR,
        last: (write.end - first) as u64 * SECTOR - 1,
        ..Held::whole(CLIENT, Domain::Data, file)
    }
}

fn go_on(mut write: Write, world: &mut World) -> Option<Write> {
    if !write.left.is_empty() {
        let index = world.rng.below(write.left.len());
        let brick = write.left.swap_remove(index);
        if !write.failed[brick] {
            step_on(&write, brick, world);
        }
        return Some(write);
    }
    let all = 0..world.bricks.len();
    let well: Vec<_> = all.clone().filter(|&b| !write.failed[b]).collect();
    // On stale copies alone it has failed (`in_flight_sb`).
    let enough = world.is_quorum(&well) && well.iter().any(|&b| write.good[b]);
    write.phase = match write.phase {
        Phase::Count if enough => Phase::Write,
        Phase::Write if enough => Phase::Sync,
        Phase::Sync if enough => Phase::CountAway,
        // It is over; or cut short, and the count stays.
        _ => {
            all.for_each(|b| world.bricks[b].release(CLIENT));
            return None;
        }
    };
    write.left = well;
    write.accused = write.failed;
    Some(write)
}

fn step_on(write: &Write, on: usize, world: &mut World) {
    let brick = &mut world.bricks[on];
    let file = &mut brick.files[write.file];
    match write.phase {
        Phase::Count => file.change_row(|row| row.dirty += 1),
        Phase::Write => {
            for sector in &write.sectors {
                brick.write(*sector, write.version);
            }
        }
        Phase::Sync => brick.fsync(write.file),
        Phase::CountAway => {
            file.change_row(|row| {
                row.dirty -= 1;
                for (counter, failed) in row.pending.iter_mut().zip(write.accused) {
                    *counter += i32::from(failed);
                }
            });
            // As after stock heal.
            brick.fsync(write.file);
            let failed = write.accused;
            world.tell(|| {
                format!(
                    "client: {} is over on {on}, failed {failed:?}",
                    write.version
                )
            });
        }
    }
}
