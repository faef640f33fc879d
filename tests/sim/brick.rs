//! A brick: the copy with what a crash of its host takes away again, the files that it is
//! made of, and the locks that its process keeps.

use bypass_blk::image::layout::Layout;
use bypass_blk::image::replica::holder::Holder;

use super::piece::Piece;
use super::rng::Rng;

/// Bricks of a replica set, at most; each is on a host of its own.
pub const BRICKS: usize = 3;
/// Bytes of an extent.
pub const EXTENT: u64 = 4096;
pub const SECTOR: u64 = 512;
/// The last extent is cut short.
pub const SIZE: u64 = 4 * EXTENT + SECTOR;
pub const SECTORS: usize = (SIZE / SECTOR) as usize;

/// What a sector holds: the number of a write, or 0 for zeros.
pub type Version = u64;

/// Whose a lock is: a connection, or somebody who is no process here.
pub type Owner = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    Session,
    Heal,
    Rebalance,
    Data,
    Copy,
}

/// A lock on the bytes from `first` to `last` of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub owner: Owner,
    pub domain: Domain,
    pub file: usize,
    pub shared: bool,
    pub first: u64,
    pub last: u64,
}

impl Held {
    pub fn whole(owner: Owner, domain: Domain, file: usize) -> Self {
        Self {
            owner,
            domain,
            file,
            shared: false,
            first: 0,
            last: u64::MAX,
        }
    }

    fn meets(&self, other: &Self) -> bool {
        let overlap = self.first <= other.last && other.first <= self.last;
        self.domain == other.domain
            && self.file == other.file
            && overlap
            && self.owner != other.owner
            && !(self.shared && other.shared)
    }
}

/// Who of a host's daemon syncs the file, by an open file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncs {
    /// The device, for the guest.
    Guest,
    /// The session.
    Session,
}

pub struct Brick {
    /// It is no arbiter.
    pub has_data: bool,
    /// Its process runs.
    pub up: bool,
    /// Its disk takes nothing more of a healer.
    pub full: bool,
    /// How often the process was started.
    pub life: u64,
    /// What is read.
    pub cache: Vec<Version>,
    /// What was there at the last fsync.
    disk: Vec<Version>,
    /// What was written since: any of it may be on the disk.
    since: Vec<Vec<Version>>,
    /// What a sync that failed has lost, though it is read until the daemon is gone: no later
    /// sync writes it.
    lost: Vec<bool>,
    /// The next sync of this host's own fails, of whichever file.
    pub sync_fails: bool,
    /// In the order of the image's layout.
    pub files: Vec<Piece>,
    pub locks: Vec<Held>,
    pub record: Option<(Owner, Holder)>,
}

impl Brick {
    pub fn new(has_data: bool, layout: &Layout) -> Self {
        let file = |file| Piece::new(layout, file);
        Self {
            has_data,
            up: true,
            full: false,
            life: 0,
            cache: vec![0; SECTORS],
            disk: vec![0; SECTORS],
            since: vec![Vec::new(); SECTORS],
            lost: vec![false; SECTORS],
            sync_fails: false,
            files: (0..layout.len()).map(file).collect(),
            locks: Vec::new(),
            record: None,
        }
    }

    pub fn write(&mut self, sector: usize, version: Version) {
        if !self.has_data {
            return;
        }
        self.set(sector, version);
        self.since[sector].push(version);
        self.lost[sector] = false;
    }

    fn set(&mut self, sector: usize, version: Version) {
        self.cache[sector] = version;
        let files = self.files.iter_mut();
        for file in files.filter(|file| file.sectors.contains(&sector)) {
            file.changes += 1;
            file.set(sector, version);
        }
    }

    /// A crash would take something away.
    pub fn is_unsynced(&self) -> bool {
        self.since.iter().any(|since| !since.is_empty())
    }

    /// Whatever fails, this sector holds that.
    pub fn surely_holds(&self, sector: usize, version: Version) -> bool {
        let since = self.since[sector].iter();
        since.chain([&self.disk[sector]]).all(|v| *v == version)
    }

    /// A file's data and counters are on the disk.
    pub fn fsync(&mut self, file: usize) {
        let file = &mut self.files[file];
        for sector in file.sectors.clone().filter(|&sector| !self.lost[sector]) {
            self.disk[sector] = self.cache[sector];
            self.since[sector].clear();
        }
        file.rows = vec![file.row];
    }

    /// A sync of who has a file open here. When one fails, what was not on the disk may never
    /// be.
    pub fn sync_here(&mut self, file: usize, who: Syncs, rng: &mut Rng) -> std::io::Result<()> {
        let of_it = &mut self.files[file];
        if std::mem::take(&mut self.sync_fails) {
            for sector in of_it.sectors.clone() {
                self.lost[sector] |= !self.since[sector].is_empty() && rng.chance(2);
            }
            of_it.untold = vec![Syncs::Guest, Syncs::Session];
        }
        match of_it.untold.iter().position(|untold| *untold == who) {
            Some(place) => {
                of_it.untold.swap_remove(place);
                Err(std::io::Error::from_raw_os_error(libc::EIO))
            }
            None => {
                self.fsync(file);
                Ok(())
            }
        }
    }

    /// Whoever opens the files anew reads what is on the disk. Was anything lost?
    pub fn reveal_lost(&mut self) -> bool {
        self.files.iter_mut().for_each(|file| file.untold.clear());
        let lost: Vec<_> = (0..SECTORS).filter(|&sector| self.lost[sector]).collect();
        for &sector in &lost {
            self.lost[sector] = false;
            self.since[sector].clear();
            self.set(sector, self.disk[sector]);
        }
        !lost.is_empty()
    }

    /// The process is gone, and every lock with it.
    pub fn stop(&mut self) {
        self.up = false;
        self.locks.clear();
        self.record = None;
    }

    pub fn start(&mut self) {
        self.up = true;
        self.life += 1;
    }

    /// The host lost power.
    pub fn crash(&mut self, rng: &mut Rng) {
        self.stop();
        for sector in 0..SECTORS {
            let mut left = std::mem::take(&mut self.since[sector]);
            left.push(self.disk[sector]);
            let version = rng.pick(&left).unwrap();
            self.set(sector, version);
        }
        self.lost.fill(false);
        self.sync_fails = false;
        for file in 0..self.files.len() {
            let of_it = &mut self.files[file];
            of_it.untold.clear();
            of_it.changes += 1;
            of_it.row = rng.pick(&of_it.rows).unwrap();
            self.fsync(file);
        }
    }

    /// Takes a lock if nobody else is in the way.
    pub fn try_lock(&mut self, lock: Held) -> bool {
        let free = !self.locks.iter().any(|held| held.meets(&lock));
        if free {
            self.locks.push(lock);
        }
        free
    }

    /// Was it there?
    pub fn unlock(&mut self, lock: &Held) -> bool {
        let index = self.locks.iter().position(|held| held == lock);
        index.is_some_and(|index| {
            self.locks.swap_remove(index);
            true
        })
    }

    /// Everything of an owner's goes.
    pub fn release(&mut self, owner: Owner) {
        self.locks.retain(|held| held.owner != owner);
        if self.record.as_ref().is_some_and(|(o, _)| *o == owner) {
            self.record = None;
        }
    }
}

/// A sector's bytes.
pub fn bytes_of(version: Version) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// What a sector's bytes say.
pub fn version_of(bytes: &[u8]) -> Version {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}
