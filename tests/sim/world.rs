//! Everything that is not a thread: bricks, hosts, connections, who else writes, and
//! what must hold.

use std::collections::BTreeMap;

use bypass_blk::image::dirty_map::{DirtyMap, Peer};
use bypass_blk::image::layout::Layout as Files;
use bypass_blk::image::replica::brick_set::{SetChange, Shape};
use bypass_blk::image::replica::promotion::Promotion;
use bypass_blk::image::session::handle::SessionHandle;
use bypass_blk::image::session::state_machine::Phase;
use uuid::Uuid;

use super::brick::{BRICKS, Brick, Domain, EXTENT, Held, Owner, SECTOR, SECTORS, Syncs};
use super::client::Client;
use super::guest::Guest;
use super::net::Conn;
use super::oracle::{Oracle, is_guests};
use super::peer::RARELY;
use super::piece::{self, Row};
use super::promotion::Promoting;
use super::rng::Rng;
use super::sched::Process;
use super::stock::Stock;

/// A replica set.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub bricks: usize,
    pub arbiter: Option<usize>,
}

/// A host with a brick on it.
#[derive(Default)]
pub struct Host {
    /// It is cut off from the others.
    pub parted: bool,
    /// It has power.
    pub up: bool,
    pub daemon: Option<Process>,
    pub serving: Option<Serving>,
    pub healer: Option<Process>,
    /// Its daemon is to end as it should.
    pub close: bool,
    /// Calls of a handle of its daemon's that are under way.
    pub asking: usize,
    /// Calls of its healer's that got stuck.
    pub stuck: usize,
    /// Flushes of its disk that take long.
    pub slow: usize,
    /// What its state directory says of its copy.
    pub promotion: Option<Promotion>,
}

impl Host {
    /// A daemon may start.
    pub fn is_free(&self) -> bool {
        self.up && self.daemon.is_none() && self.asking == 0
    }
}

/// A session that is open.
pub struct Serving {
    pub process: Process,
    pub session: Uuid,
    pub handle: SessionHandle,
    pub map: DirtyMap,
    pub guest: Guest,
}

pub struct World {
    pub rng: Rng,
    /// The image's.
    pub files: Files,
    pub bricks: Vec<Brick>,
    pub hosts: Vec<Host>,
    pub conns: BTreeMap<Owner, Conn>,
    pub next_conn: Owner,
    pub next_version: u64,
    pub next_process: Process,
    pub oracle: Oracle,
    pub client: Client,
    pub stock: Stock,
    pub promoting: Option<Promoting>,
    /// Writes of guests that came to the copy of each host.
    pub landed: [u64; BRICKS],
    /// How rarely a healer gets stuck before it locks what it is to copy.
    pub stuck_odds: usize,
    /// Now and then a flush of this host's copy takes long.
    pub slow_flushes: Option<usize>,
    pub steps: u64,
    pub told: bool,
    /// Marks were stored or taken back by AFR on some bricks, and another one failed just
    /// then: it alone says something else of a copy. A session that opens without that
    /// brick does not know, and what AFR makes of it later may be the wrong copy.
    pub one_sided: bool,
    /// Locks were cleared, and some session may not have noticed yet: it writes without
    /// marks, and copies differ that nobody accuses.
    pub robbed: bool,
    /// The heal locks, and on which file, that were cleared. Nobody has told their owners.
    pub stolen: Vec<(Owner, usize)>,
    /// Sessions opened, for the figures.
    pub opened: u64,
    pub unmarked: u64,
    /// Those against one peer, beside another that is held and behind.
    pub beside: u64,
    pub promoted: u64,
}

impl World {
    pub fn new(rng: Rng, layout: Layout, in_shards: bool, told: bool) -> Self {
        let files = piece::layout(in_shards);
        let brick = |brick| Brick::new(layout.arbiter != Some(brick), &files);
        let host = || Host {
            up: true,
            ..Host::default()
        };
        Self {
            rng,
            bricks: (0..layout.bricks).map(brick).collect(),
            files: files.clone(),
            hosts: (0..layout.bricks).map(|_| host()).collect(),
            conns: BTreeMap::new(),
            next_conn: 10,
            next_version: 0,
            next_process: 0,
            oracle: Oracle::new(),
            client: Client::default(),
            stock: Stock::default(),
            steps: 0,
            told,
            one_sided: false,
            robbed: false,
            stolen: Vec::new(),
            opened: 0,
            unmarked: 0,
            beside: 0,
            promoted: 0,
            promoting: None,
            landed: [0; BRICKS],
            stuck_odds: RARELY,
            slow_flushes: None,
        }
    }

    /// One line of the schedule, for who replays it.
    pub fn tell(&self, line: impl FnOnce() -> String) {
        if self.told {
            eprintln!("{:6} {}", self.steps, line());
        }
    }

    /// The replica set, seen from a host.
    pub fn shape(&self, local: usize) -> Shape {
        Shape {
            bricks: self.bricks.len(),
            local,
            arbiter: self.bricks.iter().position(|brick| !brick.has_data),
            since: SetChange::NONE,
        }
    }

    pub fn is_quorum(&self, bricks: &[usize]) -> bool {
        self.shape(0).is_quorum(bricks.iter().copied().collect())
    }

    /// The bricks with data.
    pub fn copies(&self) -> Vec<usize> {
        self.shape(0).copies().iter().collect()
    }

    pub fn any_copy(&mut self) -> usize {
        let copies = self.copies();
        copies[self.rng.below(copies.len())]
    }

    pub fn any_file(&mut self) -> usize {
        match self.files.len() {
            1 => 0,
            files => self.rng.below(files),
        }
    }

    /// All locks of a file go, on every brick, and nobody is told.
    pub fn clear_locks(&mut self, file: usize) {
        self.robbed = true;
        for brick in &mut self.bricks {
            let held = brick.locks.iter().filter(|held| held.file == file);
            let heal = held.filter(|held| held.domain == Domain::Heal);
            self.stolen.extend(heal.map(|held| (held.owner, file)));
            brick.locks.retain(|held| held.file != file);
        }
    }

    pub fn any_brick(&mut self) -> usize {
        self.rng.below(self.bricks.len())
    }

    /// A sync of a file by the daemon of a host, or for its guest.
    pub fn sync_disk(&mut self, host: usize, file: usize, who: Syncs) -> std::io::Result<()> {
        let synced = self.bricks[host].sync_here(file, who, &mut self.rng);
        if let Err(error) = &synced {
            self.tell(|| format!("host {host}: its sync fails: {error}"));
        }
        synced
    }

    /// The daemon of a host is gone.
    pub fn reveal_lost(&mut self, host: usize) {
        if self.bricks[host].reveal_lost() {
            self.tell(|| format!("host {host}: what was not synced is lost"));
            self.oracle.crashed(host);
        }
    }

    /// One whose healer got stuck.
    pub fn stuck_host(&self) -> Option<usize> {
        self.hosts.iter().position(|host| host.stuck > 0)
    }

    /// It is not to come back before another copy is promoted.
    pub fn is_given_up(&self, host: usize) -> bool {
        self.promoting
            .is_some_and(|promoting| promoting.lost == host)
    }

    /// Of each brick; of those that are not there, nothing.
    fn each<T: Default>(&self, of: impl Fn(&Brick) -> T) -> [T; BRICKS] {
        [0, 1, 2].map(|brick: usize| self.bricks.get(brick).map(&of).unwrap_or_default())
    }

    pub fn lives(&self) -> [u64; BRICKS] {
        self.each(|brick| brick.life)
    }

    /// A lock on all bricks or on none.
    pub fn lock_all(&mut self, lock: &Held) -> bool {
        for brick in 0..self.bricks.len() {
            if !self.bricks[brick].try_lock(lock.clone()) {
                self.bricks[..brick].iter_mut().for_each(|b| {
                    b.unlock(lock);
                });
                return false;
            }
        }
        true
    }

    pub fn unlock_all(&mut self, lock: &Held) {
        self.bricks.iter_mut().for_each(|b| {
            b.unlock(lock);
        });
    }

    /// What the bricks say of a file.
    pub fn rows(&self, file: usize) -> [Row; BRICKS] {
        self.each(|brick| brick.files[file].row)
    }

    /// Of each file.
    pub fn all_rows(&self) -> Vec<[Row; BRICKS]> {
        self.each_file().map(|file| self.rows(file)).collect()
    }

    pub fn each_file(&self) -> std::ops::Range<usize> {
        0..self.files.len()
    }

    /// No mark stands anywhere.
    pub fn is_unmarked(&self) -> bool {
        let unmarked = [Row::default(); BRICKS];
        self.each_file().all(|file| self.rows(file) == unmarked)
    }

    /// Somebody says that a copy misses something of a file.
    pub fn is_accused(&self, copy: usize, file: usize) -> bool {
        let mut bricks = self.bricks.iter();
        bricks.any(|brick| brick.files[file].row.pending[copy] != 0)
    }

    /// Every session knows what it has lost, and has it back: its locks and, if it writes,
    /// its marks. And no heal is under way whose locks were cleared too.
    pub fn note_recovered(&mut self) {
        let conns = &self.conns;
        let unaware = |owner: &Owner| conns.get(owner).is_some_and(|conn| conn.client);
        self.stolen.retain(|(owner, _)| unaware(owner));
        let unaware = |host: usize| {
            let Some(serving) = &self.hosts[host].serving else {
                // It may be about to end.
                return self.hosts[host].daemon.is_some();
            };
            let locked = |brick: &Brick, file: usize| {
                brick.locks.iter().any(|held| {
                    let conn = self.conns.get(&held.owner);
                    (held.domain, held.file) == (Domain::Heal, file)
                        && conn.is_some_and(|conn| conn.process == serving.process)
                })
            };
            let marks = |brick: &Brick, file: usize| {
                let mut peers = self.shape(host).peers().iter();
                peers.all(|peer| brick.files[file].row.pending[peer] != 0)
            };
            let written = self.written_by(serving);
            let misses = |brick: &Brick| {
                let mut written = written.iter();
                !locked(brick, 0) || written.any(|f| !locked(brick, *f) || !marks(brick, *f))
            };
            self.bricks.iter().filter(|brick| brick.up).any(misses)
        };
        let unaware = (0..self.hosts.len()).any(unaware);
        self.robbed &= !self.stock.is_idle() || unaware || !self.stolen.is_empty();
    }

    /// The files whose marks are the session's, or may be.
    fn written_by(&self, serving: &Serving) -> Vec<usize> {
        let snapshot = serving.handle.snapshot();
        match snapshot.files {
            None => (snapshot.phase != Phase::Unmarked)
                .then_some(0)
                .into_iter()
                .collect(),
            Some(files) => files.marked.iter().map(|file| file.at()).collect(),
        }
    }

    /// Invariants 1 and 2, when a guest's write has just landed on a file of its local copy.
    pub fn check_marked(&self, host: usize, file: usize) {
        let shape = self.shape(host);
        let marks = |brick: &usize| {
            let marked = |row: &Row| shape.peers().iter().all(|peer| row.pending[peer] != 0);
            let mut rows = self.bricks[*brick].files[file].durable_rows().iter();
            rows.all(marked)
        };
        let marked = (0..self.bricks.len()).filter(marks).collect();
        let quorum = shape.is_quorum(marked) && marked.contains(host);
        assert!(
            quorum,
            "host {host} writes to file {file} with marks on {marked:?} alone, of {:?}",
            self.rows(file)
        );
        let lost = self.oracle.missing(&self.bricks[host].cache);
        assert!(
            lost.is_none(),
            "host {host} writes to a stale copy: {}",
            lost.unwrap_or_default()
        );
    }

    /// What is clean in the map is durable at the peer.
    pub fn check_clean(&self) {
        for (host, on) in self.hosts.iter().enumerate() {
            let Some(serving) = &on.serving else { continue };
            for (index, peer) in self.shape(host).peers().iter().enumerate() {
                let id = Peer::new(index).unwrap();
                let clean = |extent: u64| serving.map.next_dirty(id, extent) != Some(extent);
                let lost = |sector: &usize| {
                    let version = self.bricks[host].cache[*sector];
                    clean(*sector as u64 * SECTOR / EXTENT)
                        && !self.bricks[peer].surely_holds(*sector, version)
                };
                let sector = (0..SECTORS).find(lost);
                assert!(
                    sector.is_none(),
                    "brick {peer} may not have sector {sector:?}, which the map of host {host} calls clean"
                );
            }
        }
    }

    /// Invariant 4: copies of a file that nobody accuses are equal.
    pub fn check_unaccused(&self) {
        for file in self.each_file() {
            let copies = self.copies().into_iter();
            let clean: Vec<_> = copies.filter(|&c| !self.is_accused(c, file)).collect();
            let Some((first, others)) = clean.split_first() else {
                continue;
            };
            for other in others {
                let (one, two) = (&self.bricks[*first].cache, &self.bricks[*other].cache);
                let mut sectors = piece::sectors_of(&self.files, file);
                let place = sectors.find(|&s| is_guests(s) && one[s] != two[s]);
                assert!(
                    place.is_none(),
                    "copies {first} and {other} differ in sector {place:?}, and nobody says so"
                );
            }
        }
    }
}
