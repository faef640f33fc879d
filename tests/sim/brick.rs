//! A brick: the copy with what a crash of its host takes away again, AFR's counters,
//! and the locks that its process keeps.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bypass_blk::image::replica::holder::Holder;

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

/// A lock on the bytes from `first` to `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub owner: Owner,
    pub domain: Domain,
    pub shared: bool,
    pub first: u64,
    pub last: u64,
}

impl Held {
    pub fn whole(owner: Owner, domain: Domain) -> Self {
        Self {
            owner,
            domain,
            shared: false,
            first: 0,
            last: u64::MAX,
        }
    }

    fn meets(&self, other: &Self) -> bool {
        let overlap = self.first <= other.last && other.first <= self.last;
        self.domain == other.domain
            && overlap
            && self.owner != other.owner
            && !(self.shared && other.shared)
    }
}

/// AFR's data counters on one brick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub pending: [i32; BRICKS],
    pub dirty: i32,
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
    /// The next sync of this host's own fails.
    pub sync_fails: bool,
    /// Who has not been told yet that one has failed. Linux tells each that has the file open for
    /// itself, once (errseq), and after that a sync fails no more.
    untold: Vec<Syncs>,
    pub row: Row,
    /// What a crash leaves at least, and what it may leave, in order.
    rows: Vec<Row>,
    /// Changes of the file's data, as its times tell.
    pub changes: u64,
    /// What somebody set them to.
    pub times: Duration,
    /// The cache again, for who reads a file.
    pub file: File,
    pub locks: Vec<Held>,
    pub record: Option<(Owner, Holder)>,
}

impl Brick {
    pub fn new(has_data: bool) -> Self {
        let file = rustix::fs::memfd_create("bypass-sim", rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(file.unwrap());
        file.set_len(SIZE).unwrap();
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
            untold: Vec::new(),
            row: Row::default(),
            rows: vec![Row::default()],
            changes: 0,
            times: Duration::ZERO,
            file,
            locks: Vec::new(),
            record: None,
        }
    }

    pub fn write(&mut self, sector: usize, version: Version) {
        if !self.has_data {
            return;
        }
        self.changes += 1;
        self.set(sector, version);
        self.since[sector].push(version);
        self.lost[sector] = false;
    }

    fn set(&mut self, sector: usize, version: Version) {
        self.cache[sector] = version;
        let bytes = bytes_of(version);
        self.file
            .write_all_at(&bytes, sector as u64 * SECTOR)
            .unwrap();
    }

    pub fn change_row(&mut self, change: impl FnOnce(&mut Row)) {
        change(&mut self.row);
        self.rows.push(self.row);
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

    /// Data and counters are on the disk.
    pub fn fsync(&mut self) {
        for sector in (0..SECTORS).filter(|&sector| !self.lost[sector]) {
            self.disk[sector] = self.cache[sector];
            self.since[sector].clear();
        }
        self.rows = vec![self.row];
    }

    /// A sync of who has the file open here. When one fails, what was not on the disk may never
    /// be.
    pub fn sync_here(&mut self, who: Syncs, rng: &mut Rng) -> std::io::Result<()> {
        if std::mem::take(&mut self.sync_fails) {
            for sector in 0..SECTORS {
                self.lost[sector] |= !self.since[sector].is_empty() && rng.chance(2);
            }
            self.untold = vec![Syncs::Guest, Syncs::Session];
        }
        match self.untold.iter().position(|untold| *untold == who) {
            Some(place) => {
                self.untold.swap_remove(place);
                Err(std::io::Error::from_raw_os_error(libc::EIO))
            }
            None => {
                self.fsync();
                Ok(())
            }
        }
    }

    /// Whoever opens the file anew reads what is on the disk. Was anything lost?
    pub fn reveal_lost(&mut self) -> bool {
        self.untold.clear();
        let lost: Vec<_> = (0..SECTORS).filter(|&sector| self.lost[sector]).collect();
        for &sector in &lost {
            self.lost[sector] = false;
            self.since[sector].clear();
            self.set(sector, self.disk[sector]);
            self.changes += 1;
        }
        !lost.is_empty()
    }

    /// The counters that a crash cannot take away.
    pub fn durable_rows(&self) -> &[Row] {
        &self.rows
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
        self.untold.clear();
        self.changes += 1;
        self.row = rng.pick(&self.rows).unwrap();
        self.fsync();
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
