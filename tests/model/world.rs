//! The state of the modelled world: bricks, daemons, healers, with the few
//! transitions of a brick's own.
//!
//! A copy is the set of writes that it contains: two copies with the same writes are
//! equal, and a write done over a stale copy shows.

use bypass_blk::image::replica::brick_set::BrickSet;

use super::daemon::{Conn, Daemon, Session};
use super::setting::Setting;

/// The largest replica set modelled.
pub const BRICKS: usize = 3;

/// A set of writes, a bit each.
pub type Writes = u8;
/// A set of extents, a bit each.
pub type Extents = u8;
/// A data counter. Stamps are multiples of [`STAMP`]; stock clients add ones.
pub type Counter = i16;
/// A brick's counters against each brick.
pub type Row = [Counter; BRICKS];

/// The smallest stamp.
pub const STAMP: Counter = 8;

/// Whom a row accuses.
pub fn accused_by(row: &Row) -> BrickSet {
    (0..BRICKS).filter(|&brick| row[brick] != 0).collect()
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub bricks: [Brick; BRICKS],
    pub daemons: [Daemon; 2],
    /// Each host's dirty map.
    pub maps: [Option<Map>; 2],
    /// What each host's healer is copying.
    pub healers: [Option<Copy>; 2],
    pub stock: StockHealer,
    /// Writes that a guest was told are done, and that no crash took with it before
    /// they were durable.
    pub acked: Writes,
    /// Those of all writes that the second session did.
    pub by_second: Writes,
    /// Writes given up by a promotion: nobody may find them in an unaccused copy.
    pub given_up: Writes,
    /// A promotion's record on each host: an accusation by this brick with this
    /// counter is overruled.
    pub overruled: [Option<(usize, Counter)>; 2],
    pub writes_left: u8,
    pub clients_left: u8,
    pub faults_left: u8,
    pub opens_left: u8,
    pub promotes_left: u8,
    pub remarks_left: u8,
    pub stuck_left: u8,
    pub breach: Option<Breach>,
}

/// A forbidden step that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    /// A write without marks against every peer, durable on a quorum.
    UnmarkedWrite,
    /// A session opened on a copy without all acknowledged writes.
    StaleOpen,
    /// A write to a copy without all acknowledged writes.
    StaleWrite,
    /// A write to a copy that changed since its session opened it.
    ChangedUnderneath,
}

/// A brick: its process, its copy and its locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Brick {
    pub up: bool,
    /// The copy.
    pub data: Writes,
    /// The same, as a crash of the host may leave it.
    pub data_durable: Writes,
    /// The counters.
    pub stored: Row,
    /// The same, as a crash of the host may leave them.
    pub durable: Row,
    /// AFR's *dirty* counter, raised by a promotion. Durable at once.
    pub witness: bool,
    /// Who holds the session lock.
    pub lease: Option<Lease>,
    /// Who holds the copy lock.
    pub copier: Option<Copier>,
    /// The stock healer holds the heal lock.
    pub healed: bool,
}

impl Brick {
    const NEW: Self = Self {
        up: true,
        data: 0,
        data_durable: 0,
        stored: [0; BRICKS],
        durable: [0; BRICKS],
        witness: false,
        lease: None,
        copier: None,
        healed: false,
    };

    /// Neither a session's lock nor the stock healer's stands here.
    pub fn is_free(&self) -> bool {
        self.up && self.lease.is_none() && !self.healed
    }

    /// Is the heal lock free, and AFR's data lock?
    pub fn may_be_healed(&self) -> bool {
        let locked = self.lease.is_some_and(|lease| lease.heal);
        self.up && !self.healed && !locked && !self.is_copied_to()
    }

    /// Is a healer's WRITE under way? Its data lock is held then.
    pub fn is_copied_to(&self) -> bool {
        self.copier.is_some_and(|copier| copier.write.is_some())
    }

    /// Is the copy lock free for the session in `slot`, its own healer aside?
    pub fn is_free_of_others(&self, slot: usize) -> bool {
        self.copier
            .is_none_or(|copier| copier.slot == slot && !copier.orphan)
    }

    /// FSYNC.
    pub fn fsync(&mut self) {
        self.durable = self.stored;
        self.data_durable = self.data;
    }

    /// Whom the marks on this brick accuse, a crash or not.
    pub fn surely_accuses(&self, copy: usize) -> bool {
        self.stored[copy] != 0 && self.durable[copy] != 0
    }
}

/// The locks of one connection of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    pub slot: usize,
    pub link: Link,
    /// The record is published: the session is established.
    pub published: bool,
    /// The heal lock is held too.
    pub heal: bool,
}

/// What became of the session's end of a connection that holds a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    Live,
    /// Given up by the session, not noticed by the brick.
    Ghost,
    /// The session is gone, not noticed by the brick.
    Dead,
}

/// A healer's copy lock, and its WRITE that is on its way under AFR's data lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Copier {
    pub slot: usize,
    /// The session that it copies for is over.
    pub orphan: bool,
    /// The healer is gone, not noticed by the brick.
    pub gone: bool,
    /// The extent, and what it will contain.
    pub write: Option<(u8, Writes)>,
}

/// A healer's copy of one extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Copy {
    pub peer: usize,
    pub extent: u8,
    /// The WRITE was answered.
    pub answered: bool,
    /// No write to the extent began since the copy did: the *copying* flag.
    pub intact: bool,
}

/// A dirty map, as `missed_writes.rs` keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Map {
    pub stamp: Counter,
    pub previous: Counter,
    /// What each peer misses.
    pub dirty: [Extents; BRICKS],
    /// Closed, all on the disk.
    pub clean_close: bool,
}

/// The stock self-heal daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StockHealer {
    Idle,
    /// The sinks were copied to and fsynced; the marks read at the start are
    /// taken off brick after brick.
    Undoing {
        rows: [Row; BRICKS],
        next: usize,
    },
}

impl World {
    /// All copies equal, no session.
    pub fn new(setting: &Setting) -> Self {
        Self {
            bricks: [Brick::NEW; BRICKS],
            daemons: [Daemon::Closed, Daemon::Closed],
            maps: [None; 2],
            healers: [None; 2],
            stock: StockHealer::Idle,
            acked: 0,
            by_second: 0,
            given_up: 0,
            overruled: [None; 2],
            writes_left: setting.writes,
            clients_left: setting.clients,
            faults_left: setting.faults,
            opens_left: setting.opens,
            promotes_left: setting.promotes,
            remarks_left: setting.remarks,
            stuck_left: setting.stuck,
            breach: None,
        }
    }

    /// The open session in `slot`.
    pub fn session(&self, slot: usize) -> Option<&Session> {
        match &self.daemons[slot] {
            Daemon::Open(session) => Some(session),
            _ => None,
        }
    }

    /// The counters of every brick.
    pub fn rows(&self) -> [Row; BRICKS] {
        self.bricks.map(|brick| brick.stored)
    }

    /// Some value that no counter and no map has.
    pub fn fresh_stamp(&self) -> Counter {
        let on_bricks = |stamp| {
            let mut bricks = self.bricks.iter();
            bricks.any(|b| b.stored.contains(&stamp) || b.durable.contains(&stamp))
        };
        let in_maps = |stamp| {
            let mut maps = self.maps.iter().flatten();
            maps.any(|map| map.stamp == stamp || map.previous == stamp)
        };
        let recorded = |stamp| self.overruled.iter().flatten().any(|&(_, s)| s == stamp);
        let used = |stamp| on_bricks(stamp) || in_maps(stamp) || recorded(stamp);
        let stamps = (1..).map(|number| number * STAMP);
        stamps
            .into_iter()
            .find(|&stamp| !used(stamp))
            .unwrap_or_default()
    }

    /// The next write begins; its number.
    pub fn begin_write(&mut self, setting: &Setting) -> u8 {
        self.writes_left -= 1;
        setting.writes - 1 - self.writes_left
    }

    /// The brick gave the connection up.
    pub fn connection_broken(&mut self, slot: usize, brick: usize) {
        match &mut self.daemons[slot] {
            Daemon::Opening(conns) if conns[brick] == Conn::Joined => conns[brick] = Conn::Broken,
            Daemon::Open(session) if session.conns[brick] == Conn::Joined => {
                session.leave(brick, Conn::Broken);
            }
            // It gives up when a brick fails it.
            Daemon::Promoting(promotion) if promotion.reached.contains(brick) => {
                self.daemon_gone(slot);
            }
            _ => {}
        }
    }

    /// The brick's process is gone, and every lock and connection with it.
    pub fn brick_down(&mut self, brick: usize) {
        self.bricks[brick].up = false;
        self.bricks[brick].lease = None;
        self.bricks[brick].copier = None;
        for slot in 0..self.daemons.len() {
            self.connection_broken(slot, brick);
            if self.healers[slot].is_some_and(|copy| copy.peer == brick) {
                self.healers[slot] = None;
            }
        }
        self.stock_heal_over();
    }

    /// The daemon in `slot` is gone. The bricks notice in their own time; so does
    /// its healer.
    pub fn daemon_gone(&mut self, slot: usize) {
        self.daemons[slot] = Daemon::Closed;
        for lease in self.leases_of(slot) {
            lease.link = Link::Dead;
        }
        for copier in self.copiers_of(slot) {
            copier.orphan = true;
        }
    }

    /// The healer of `slot` is gone. The bricks notice in their own time.
    pub fn healer_gone(&mut self, slot: usize) {
        self.healers[slot] = None;
        for copier in self.copiers_of(slot) {
            copier.gone = true;
        }
    }

    /// The locks of `slot`, wherever they stand.
    pub fn leases_of(&mut self, slot: usize) -> impl Iterator<Item = &mut Lease> {
        let leases = self.bricks.iter_mut().filter_map(|b| b.lease.as_mut());
        leases.filter(move |lease| lease.slot == slot)
    }

    fn copiers_of(&mut self, slot: usize) -> impl Iterator<Item = &mut Copier> {
        let copiers = self.bricks.iter_mut().filter_map(|b| b.copier.as_mut());
        copiers.filter(move |copier| copier.slot == slot)
    }

    /// The stock healer gives up: the marks that it has not taken off yet stay.
    pub fn stock_heal_over(&mut self) {
        self.stock = StockHealer::Idle;
        for brick in &mut self.bricks {
            brick.healed = false;
        }
    }
}
