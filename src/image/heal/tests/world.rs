//! An image under test: its local file, dirty map, peer, and who else writes to it.

use crate::image::scheduler::clock::Clock;
use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use crate::image::dirty_map::{Begun, DirtyMap, ExtentSize, Healer, Identity, Peer, Peers, Record};

use super::super::{Engine, LocalFiles, PassOptions};
use super::brick::Brick;
use super::disk::Disk;
use super::{CLIENT, Rng};
use crate::image::layout::Layout;

/// Bytes of an extent.
pub const EXTENT: u64 = 4096;
/// 40 extents, the last of them cut short.
pub const SIZE: u64 = 39 * EXTENT + 512;

/// Gluster's identity of the image.
const GFID: Uuid = Uuid::from_u128(7);

/// What the session marks with.
pub const STAMP: i32 = 77;

/// The one peer.
pub fn the_peer() -> Peer {
    Peer::new(0).unwrap()
}

/// Time goes on when somebody sleeps, which nobody may do with a lock in hand.
pub struct SimClock {
    now: Mutex<Duration>,
    brick: Brick,
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        *self.now.lock().unwrap()
    }

    fn sleep(&self, time: Duration) {
        assert!(!self.brick.is_locked_by_healer());
        *self.now.lock().unwrap() += time;
    }
}

/// A local copy and a session's map of it with this many peers, all dirty.
pub fn image(seed: u64, peers: usize) -> (tempfile::TempDir, PathBuf, DirtyMap) {
    let mut rng = Rng(seed);
    let directory = tempfile::Builder::new().prefix("bypass-heal-").tempdir();
    let directory = directory.unwrap();
    let path = directory.path().join("image");
    let mut bytes = rng.bytes(SIZE);
    for extent in bytes.chunks_mut(EXTENT as usize) {
        if rng.chance(3) {
            extent.fill(0);
        }
    }
    std::fs::write(&path, bytes).unwrap();
    let identity = Identity {
        gfid: GFID,
        size: SIZE,
        extent_size: ExtentSize::new(EXTENT as u32).unwrap(),
        local: "a:/brick".into(),
        peers: (0..peers)
            .map(|peer| format!("peer-{peer}:/brick"))
            .collect(),
    };
    let map = DirtyMap::open(&directory.path().join("map"), &identity);
    let map = map.unwrap().0;
    let stamp = Record {
        stamp: STAMP,
        ..Record::default()
    };
    map.set_record(stamp).unwrap();
    (directory, path, map)
}

pub struct World {
    _directory: tempfile::TempDir,
    pub disk: Disk,
    pub map: Arc<DirtyMap>,
    pub brick: Brick,
    pub clock: Arc<SimClock>,
    pub options: PassOptions,
}

impl World {
    /// Everything dirty, local and peer's bytes at random, a third of the local
    /// extents zero.
    pub fn new(seed: u64) -> Self {
        let (directory, path, map) = image(seed, 1);
        let brick = Brick::new(Rng(!seed).bytes(SIZE), seed);
        let disk = Disk::new(Layout::new(GFID, SIZE, None), &path);
        Self::of(directory, disk, map, brick)
    }

    /// As [`World::new`], in files of a few extents each, of any length, here as there.
    pub fn cut(seed: u64) -> Self {
        Self::cut_by(seed, EXTENT * (4 + Rng(seed ^ 0xc07).below(16)))
    }

    /// In files of so many bytes.
    pub fn cut_by(seed: u64, piece: u64) -> Self {
        let (directory, path, map) = image(seed, 1);
        let disk = Disk::cut(GFID, &path, piece, &mut Rng(seed));
        let brick = Brick::cut(Rng(!seed).bytes(SIZE), seed, disk.layout().clone());
        Self::of(directory, disk, map, brick)
    }

    /// One or the other, one in four in several files.
    pub fn either(seed: u64) -> Self {
        match seed.is_multiple_of(4) {
            true => Self::cut(seed),
            false => Self::new(seed),
        }
    }

    fn of(directory: tempfile::TempDir, disk: Disk, map: DirtyMap, brick: Brick) -> Self {
        let clock = Arc::new(SimClock {
            now: Mutex::default(),
            brick: brick.clone(),
        });
        Self {
            _directory: directory,
            disk,
            map: Arc::new(map),
            brick,
            options: PassOptions {
                window: 8 * EXTENT,
                quiet: Duration::ZERO,
                clock: clock.clone(),
                ..PassOptions::default()
            },
            clock,
        }
    }

    /// As [`World::new`], but both copies are equal and the map is clean.
    pub fn healed(seed: u64) -> Self {
        Self::new(seed).made_equal()
    }

    /// Both copies are equal and the map is clean.
    pub fn made_equal(self) -> Self {
        {
            let mut brick = self.brick.state();
            brick.write(0, &self.local());
            brick.disk = self.local();
        }
        self.map.declare_clean(Peers::first(1));
        self
    }

    /// The one of an image that is one.
    pub fn file(&self) -> File {
        self.disk.file(0)
    }

    pub fn local(&self) -> Vec<u8> {
        self.disk.read()
    }

    /// A new healer with a new connection.
    pub fn engine(&self) -> Engine {
        let healer = Healer::claim(self.map.clone()).unwrap();
        let peer = self.brick.connect();
        let options = self.options.clone();
        let files = LocalFiles::new(self.disk.layout().clone(), self.disk.files());
        Engine::new(Arc::new(healer), the_peer(), Arc::new(files), peer, options)
    }

    /// A write as the session does it, all at once.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let length = data.len() as u64;
        assert_eq!(self.map.begin_write(offset, length), Begun::Yes);
        self.disk.write(offset, data);
        let _ = self.map.end_write(offset, length);
    }

    /// Dirty extents.
    pub fn debt(&self) -> u64 {
        self.map.dirty_extents(the_peer())
    }

    /// Is every extent that the map calls clean equal on the peer's disk?
    pub fn clean_means_equal(&self) -> bool {
        let (local, brick) = (self.local(), self.brick.state());
        (0..self.map.geometry().extents()).all(|extent| {
            let bytes = self.map.geometry().bytes_of(extent);
            let bytes = bytes.start as usize..bytes.end as usize;
            self.map.state(extent).unwrap().is_dirty(the_peer())
                || local[bytes.clone()] == brick.disk[bytes]
        })
    }

    /// Passes until nothing is dirty; the copies must then be equal.
    pub fn finish(&self, mut engine: Engine) {
        for _ in 0..20 {
            let _ = engine.run_pass();
            if self.debt() == 0 {
                let brick = self.brick.state();
                assert!(self.local() == brick.disk, "copies differ");
                assert_eq!(brick.violations, [""; 0]);
                return;
            }
        }
        panic!("{} extents stay dirty", self.debt());
    }
}

/// The guest: writes that begin, land and end in steps, many at one time.
pub struct Guest {
    map: Arc<DirtyMap>,
    disk: Disk,
    in_flight: Vec<Write>,
    /// Where it writes to ends here.
    end: u64,
    /// The sectors of the writes in flight and of those begun since
    /// [`Guest::remember`].
    unsure: HashSet<u64>,
}

struct Write {
    offset: u64,
    data: Vec<u8>,
    landed: bool,
}

impl Write {
    fn sectors(&self) -> std::ops::Range<u64> {
        self.offset / 512..(self.offset + self.data.len() as u64) / 512
    }
}

impl Guest {
    pub fn new(world: &World, end: u64) -> Self {
        Self {
            map: world.map.clone(),
            disk: world.disk.clone(),
            in_flight: Vec::new(),
            end,
            unsure: HashSet::new(),
        }
    }

    /// From now on, sectors that nothing is written to keep what they have.
    pub fn remember(&mut self) {
        self.unsure = self.in_flight.iter().flat_map(Write::sectors).collect();
    }

    /// Has the brick on its disk every byte that was written, and no more written
    /// to, when [`Guest::remember`] was called?
    pub fn is_all_at(&self, brick: &Brick) -> bool {
        let local = self.disk.read();
        let brick = &brick.state().disk;
        let sectors = local.chunks(512).zip(brick.chunks(512));
        (0..)
            .zip(sectors)
            .all(|(sector, (ours, theirs))| self.unsure.contains(&sector) || ours == theirs)
    }

    pub fn step(&mut self, rng: &mut Rng) {
        if self.in_flight.len() < 4 && rng.chance(2) {
            let length = 512 * (1 + rng.below(12));
            let offset = 512 * rng.below((self.end - length) / 512 + 1);
            if self.map.begin_write(offset, length) == Begun::Yes {
                let write = Write {
                    offset,
                    data: rng.bytes(length),
                    landed: false,
                };
                self.unsure.extend(write.sectors());
                self.in_flight.push(write);
            }
        } else if !self.in_flight.is_empty() {
            let index = rng.below(self.in_flight.len() as u64) as usize;
            self.advance(index);
        }
    }

    /// Ends everything in flight.
    pub fn drain(&mut self) {
        while !self.in_flight.is_empty() {
            self.advance(0);
        }
    }

    fn advance(&mut self, index: usize) {
        let write = &mut self.in_flight[index];
        if write.landed {
            let write = self.in_flight.swap_remove(index);
            let _ = self.map.end_write(write.offset, write.data.len() as u64);
        } else {
            self.disk.write(write.offset, &write.data);
            write.landed = true;
        }
    }
}

/// An ordinary client: locks a range, writes to both bricks in any order, unlocks.
pub struct Client {
    brick: Brick,
    disk: Disk,
    /// What it is writing, and on which bricks it still has to land.
    write: Option<(u64, Vec<u8>, Vec<bool>)>,
    /// It writes from here on.
    begin: u64,
}

impl Client {
    pub fn new(world: &World, begin: u64) -> Self {
        Self {
            brick: world.brick.clone(),
            disk: world.disk.clone(),
            write: None,
            begin,
        }
    }

    pub fn step(&mut self, rng: &mut Rng) {
        match self.write.take() {
            None => {
                let length = 512 * (1 + rng.below(12));
                let offset = self.begin + 512 * rng.below((SIZE - self.begin - length) / 512 + 1);
                if self.brick.lock(CLIENT, &(offset..offset + length)) {
                    let mut order = vec![true, false];
                    order.rotate_left(rng.below(2) as usize);
                    self.write = Some((offset, rng.bytes(length), order));
                }
            }
            Some((offset, data, mut left)) => match left.pop() {
                Some(true) => {
                    self.disk.write(offset, &data);
                    self.write = Some((offset, data, left));
                }
                Some(false) => {
                    let mut brick = self.brick.state();
                    brick.write(offset, &data);
                    // Its own fsyncs are its own affair.
                    let place = offset as usize..offset as usize + data.len();
                    brick.disk[place].copy_from_slice(&data);
                    self.write = Some((offset, data, left));
                }
                None => self
                    .brick
                    .unlock(CLIENT, &(offset..offset + data.len() as u64)),
            },
        }
    }

    /// Ends what it is writing.
    pub fn drain(&mut self, rng: &mut Rng) {
        while self.write.is_some() {
            self.step(rng);
        }
    }
}
