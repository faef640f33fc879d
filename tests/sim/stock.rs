//! Gluster's own self-heal of the image's data, as AFR does it once every brick is
//! there (`afr-self-heal-data.c`, `afr_selfheal_find_direction`). It knows files only: of an
//! image in shards it heals one, and another one later or never.

use bypass_blk::image::layout::FileIndex;

use super::brick::{BRICKS, Domain, EXTENT, Held, Owner, SECTOR};
use super::piece::{self, Row};
use super::world::World;

const STOCK: Owner = 2;

#[derive(Default)]
pub struct Stock {
    heal: Option<Heal>,
    /// The files of which it found every copy accused.
    pub split_brain: Vec<usize>,
}

struct Heal {
    file: usize,
    lives: [u64; BRICKS],
    phase: Phase,
    direction: Direction,
}

#[derive(Clone, Copy)]
enum Phase {
    Inspect,
    Lock(u64),
    Copy(u64),
    Sync,
    LockAgain,
    Undo(usize),
}

#[derive(Clone, Default)]
struct Direction {
    source: usize,
    sinks: [bool; BRICKS],
    rows: [Row; BRICKS],
}

/// Which copies it reads, by the rows of all bricks.
pub fn sources(bricks: usize, rows: &[Row; BRICKS]) -> ([bool; BRICKS], [u64; BRICKS]) {
    let size = |counter: i32| u64::from(counter.unsigned_abs());
    let all = 0..bricks;
    let fool = |i: usize| rows[i].pending[i] != 0;
    let accusers = |j: usize| {
        let accuses = |&i: &usize| !fool(i) && rows[i].pending[j] != 0;
        all.clone().filter(accuses).count()
    };
    let mut sources = [0, 1, 2].map(|j| j < bricks && accusers(j) == 0);
    if !sources.contains(&true) {
        sources = [0, 1, 2].map(|j| j < bricks && accusers(j) < bricks / 2 + 1);
    }
    let others = |i: usize| all.clone().filter(move |j| *j != i);
    let pends = |i: usize| others(i).any(|j| rows[i].pending[j] != 0);
    let any_pends = all.clone().any(pends);
    let witness = [0, 1, 2].map(|i| {
        let mut witness = size(rows[i].dirty);
        if fool(i) {
            witness += others(i).map(|j| size(rows[i].pending[j])).sum::<u64>();
            if !any_pends || pends(i) {
                witness += size(rows[i].pending[i]);
            }
        }
        witness
    });
    (sources, witness)
}

impl Stock {
    pub fn is_idle(&self) -> bool {
        self.heal.is_none()
    }

    pub fn step(&mut self, world: &mut World) {
        let all_up = world.bricks.iter().all(|b| b.up) && !world.hosts.iter().any(|h| h.parted);
        match self.heal.take() {
            None if all_up && has_landed(world) => self.heal = begin(world),
            Some(heal) if all_up && heal.lives == world.lives() => self.go_on(heal, world),
            _ => release(world),
        }
    }

    fn go_on(&mut self, mut heal: Heal, world: &mut World) {
        let file = heal.file;
        let whole = Held::whole(STOCK, Domain::Data, file);
        let extents = extents_of(world, file);
        let next = match heal.phase {
            Phase::Inspect if !world.lock_all(&whole) => Some(Phase::Inspect),
            Phase::Inspect => {
                let found = self.inspect(file, world);
                world.unlock_all(&whole);
                heal.direction = found.clone().unwrap_or_default();
                found.map(|_| Phase::Lock(extents.start))
            }
            Phase::Lock(extent) if !world.lock_all(&block(file, extent - extents.start)) => {
                Some(Phase::Lock(extent))
            }
            Phase::Lock(extent) => Some(Phase::Copy(extent)),
            Phase::Copy(extent) => {
                copy(&heal.direction, extent, world);
                world.unlock_all(&block(file, extent - extents.start));
                Some(if extent + 1 == extents.end {
                    Phase::Sync
                } else {
                    Phase::Lock(extent + 1)
                })
            }
            Phase::Sync => {
                // AFR syncs the sinks; what a killed daemon left on the way to the
                // source's disk has come there since.
                level(&heal.direction, file, world);
                world.bricks.iter_mut().for_each(|b| b.fsync(file));
                Some(Phase::LockAgain)
            }
            Phase::LockAgain if !world.lock_all(&whole) => Some(Phase::LockAgain),
            Phase::LockAgain => Some(Phase::Undo(0)),
            Phase::Undo(brick) if brick == world.bricks.len() => {
                world.unlock_all(&whole);
                None
            }
            Phase::Undo(brick) => {
                undo(&heal.direction, file, brick, world);
                Some(Phase::Undo(brick + 1))
            }
        };
        match next {
            Some(phase) => self.heal = Some(Heal { phase, ..heal }),
            None => release(world),
        }
    }

    /// `None`: there is nothing to do, or nothing that can be done.
    fn inspect(&mut self, file: usize, world: &mut World) -> Option<Direction> {
        let (rows, bricks) = (world.rows(file), world.bricks.len());
        let (mut sources, witness) = sources(bricks, &rows);
        self.split_brain.retain(|split| *split != file);
        if !sources.contains(&true) {
            world.tell(|| format!("stock heal: split brain {rows:?} of file {file}"));
            self.split_brain.push(file);
            return None;
        }
        let best = (0..bricks).filter(|&i| sources[i]);
        let best = best.map(|i| witness[i]).max();
        if best != Some(0) {
            // Only the largest files, so no arbiter's.
            // Then the newest of them, which may be any.
            let data = (0..bricks).filter(|&i| sources[i] && world.bricks[i].has_data);
            let size = |i: usize| world.bricks[i].files[file].size;
            let largest = data.clone().map(size).max();
            let data = data.filter(|&i| Some(size(i)) == largest);
            let most = data.clone().map(|i| witness[i]).max();
            let best: Vec<_> = data.filter(|&i| Some(witness[i]) == most).collect();
            let one = world.rng.pick(&best);
            sources = [0, 1, 2].map(|i| Some(i) == one);
        }
        // Two that accuse each other are no more sources than sinks.
        if (0..bricks).all(|i| sources[i]) && rows != [Row::default(); BRICKS] {
            self.split_brain.push(file);
            return None;
        }
        let sinks = [0, 1, 2].map(|i| i < bricks && !sources[i]);
        let mut readable = (0..bricks).filter(|&i| sources[i] && world.bricks[i].has_data);
        let source = readable.next();
        // An arbiter alone heals nobody.
        if source.is_none() {
            self.split_brain.push(file);
        }
        let source = source?;
        if !sinks.contains(&true) {
            return None;
        }
        world.tell(|| format!("stock heal of file {file}: from {source} to {sinks:?} by {rows:?}"));
        let direction = Direction {
            source,
            sinks,
            rows,
        };
        Some(direction)
    }
}

/// Gluster's daemon reaches a brick that has come back after seconds only. Assumed is that
/// by then everything has landed that a guest had in flight when its session lost every
/// brick. A disk that takes longer for a write could lose it: it is acknowledged, and
/// not marked any more before the session is back.
fn has_landed(world: &World) -> bool {
    let mut serving = world.hosts.iter().filter_map(|host| host.serving.as_ref());
    serving.all(|serving| serving.guest.is_idle())
}

fn release(world: &mut World) {
    world.bricks.iter_mut().for_each(|b| b.release(STOCK));
}

/// Of what the index names it heals anything first. Now and then somebody asks it to look at
/// a file that nobody has marked.
fn begin(world: &mut World) -> Option<Heal> {
    let marked = |file: &usize| world.rows(*file) != [Row::default(); BRICKS];
    let marked: Vec<_> = world.each_file().filter(marked).collect();
    let file = match marked.as_slice() {
        [] => world.any_file(),
        [file] => *file,
        several => several[world.rng.below(several.len())],
    };
    let locked = world.lock_all(&Held::whole(STOCK, Domain::Heal, file));
    locked.then(|| Heal {
        file,
        lives: world.lives(),
        phase: Phase::Inspect,
        direction: Direction::default(),
    })
}

/// Of the disk, those that lie in a file.
fn extents_of(world: &World, file: usize) -> std::ops::Range<u64> {
    let bytes = world.files.range(FileIndex(file as u32));
    bytes.start / EXTENT..bytes.end.div_ceil(EXTENT)
}

/// The bytes of a file's extent.
fn block(file: usize, extent: u64) -> Held {
    Held {
        first: extent * EXTENT,
        last: (extent + 1) * EXTENT - 1,
        ..Held::whole(STOCK, Domain::Data, file)
    }
}

/// The sinks get the source's size (`__afr_selfheal_truncate_sinks`).
fn level(direction: &Direction, file: usize, world: &mut World) {
    let size = world.bricks[direction.source].files[file].size;
    for (brick, sink) in world.bricks.iter_mut().zip(direction.sinks) {
        if sink && brick.has_data {
            brick.files[file].set_size(size);
        }
    }
}

fn copy(direction: &Direction, extent: u64, world: &mut World) {
    let sectors = (EXTENT / SECTOR) as usize;
    let first = extent as usize * sectors;
    let disk = piece::sectors_of(&world.files, piece::file_of(&world.files, first));
    for sector in first..(first + sectors).min(disk.end) {
        let version = world.bricks[direction.source].cache[sector];
        for (brick, sink) in world.bricks.iter_mut().zip(direction.sinks) {
            if sink && brick.cache[sector] != version {
                brick.write(sector, version);
            }
        }
    }
}

fn undo(direction: &Direction, file: usize, brick: usize, world: &mut World) {
    let seen = direction.rows[brick];
    world.tell(|| format!("stock heal: takes the marks on {brick} back"));
    world.bricks[brick].files[file].change_row(|row| {
        row.dirty -= seen.dirty;
        for (counter, seen) in row.pending.iter_mut().zip(seen.pending) {
            *counter = counter.wrapping_sub(seen);
        }
    });
    // AFR does not sync this; the file system does within seconds. A power cut within
    // them brings old marks back, with or without us.
    world.bricks[brick].fsync(file);
}
