//! The state of the modelled world: bricks, daemons and the stock healer, with
//! the few transitions of a brick's own.
//!
//! An image has one block per write, so a copy is the set of writes it contains:
//! two copies with the same writes are equal, and a write done over a stale copy
//! shows.

use bypass_blk::image::bricks::BrickSet;
use bypass_blk::image::machine::{Action, GateState, Machine};

use super::setting::Setting;

/// The largest replica set modelled.
pub const BRICKS: usize = 3;

/// A set of writes, a bit each.
pub type Writes = u8;

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub bricks: [Brick; BRICKS],
    pub daemons: [Daemon; 2],
    pub healer: Healer,
    /// Writes that a guest was told are done.
    pub acked: Writes,
    /// Those of them that the second session did.
    pub by_second: Writes,
    pub writes_left: u8,
    pub faults_left: u8,
    pub opens_left: u8,
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
    /// The copy; every write is durable when it is acknowledged.
    pub data: Writes,
    /// Whom the marks on this brick accuse.
    pub stored: BrickSet,
    /// The same, as a crash of the host may leave it.
    pub durable: BrickSet,
    /// Who holds the session lock.
    pub lease: Option<Lease>,
    /// The stock healer holds the heal lock.
    pub healed: bool,
}

impl Brick {
    const NEW: Self = Self {
        up: true,
        data: 0,
        stored: BrickSet::EMPTY,
        durable: BrickSet::EMPTY,
        lease: None,
        healed: false,
    };

    /// Neither a session's lock nor the healer's stands here.
    pub fn is_free(&self) -> bool {
        self.up && self.lease.is_none() && !self.healed
    }

    /// Is the heal lock free?
    pub fn may_be_healed(&self) -> bool {
        self.up && !self.healed && self.lease.is_none_or(|lease| !lease.heal)
    }
}

/// The locks of one connection.
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

/// A worker's connection to its brick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conn {
    Joined,
    /// The brick dropped it and the locks; the worker has not noticed.
    Broken,
    Away,
}

/// One would-be session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Daemon {
    Closed,
    /// The locks are taken, nothing was read yet.
    Opening([Conn; BRICKS]),
    Open(Session),
}

/// An open session: the real machine and the rim around it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    pub machine: Machine,
    pub gate: GateState,
    pub conns: [Conn; BRICKS],
    /// What workers reported and the session's thread has not taken yet.
    pub inbox: Vec<Report>,
    /// Actions that wait for the marking round before them.
    pub todo: Vec<Action>,
    pub round: Option<Round>,
    /// The local copy as the guest knows it.
    pub view: Writes,
}

impl Session {
    /// The connection to a brick is no longer a joined one.
    pub fn leave(&mut self, brick: usize, now: Conn) {
        self.conns[brick] = now;
        if let Some(round) = self.round.as_mut().filter(|round| round.probed) {
            round.unlocked.insert(brick);
        }
    }

    /// Do the guest's writes go through while no brick has a lock of ours?
    pub fn is_unguarded(&self) -> bool {
        self.gate == GateState::Open && !self.conns.contains(&Conn::Joined)
    }
}

/// A worker's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    Lost(usize),
    Rejoined { brick: usize, accuses: BrickSet },
}

impl Report {
    /// Whose.
    pub fn brick(self) -> usize {
        match self {
            Self::Lost(brick) | Self::Rejoined { brick, .. } => brick,
        }
    }
}

/// A marking round on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Round {
    /// Bricks to be marked, as the machine asked.
    pub asked: BrickSet,
    pub probed: bool,
    /// What the probe found missing on each brick.
    pub missing: [BrickSet; BRICKS],
    /// The local brick's turn comes after the others' (an amendment).
    pub local_due: bool,
    /// Bricks whose XATTROP is due.
    pub to_store: BrickSet,
    /// Bricks whose FSYNC is due.
    pub to_sync: BrickSet,
    pub marked: BrickSet,
    pub failed: BrickSet,
    /// Bricks whose connection, and with it AFR's data lock, went since the probe:
    /// to unlock it is refused then, even through a new connection.
    pub unlocked: BrickSet,
}

/// The stock self-heal daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Healer {
    Idle,
    /// The sinks were copied to and fsynced; the marks read at the start are
    /// taken off brick after brick.
    Undoing {
        rows: [BrickSet; BRICKS],
        next: usize,
    },
}

impl World {
    /// All copies equal, no session.
    pub fn new(setting: &Setting) -> Self {
        Self {
            bricks: [Brick::NEW; BRICKS],
            daemons: [Daemon::Closed, Daemon::Closed],
            healer: Healer::Idle,
            acked: 0,
            by_second: 0,
            writes_left: setting.writes,
            faults_left: setting.faults,
            opens_left: setting.opens,
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

    /// The brick gave the connection up.
    pub fn connection_broken(&mut self, slot: usize, brick: usize) {
        match &mut self.daemons[slot] {
            Daemon::Closed => {}
            Daemon::Opening(conns) if conns[brick] == Conn::Joined => conns[brick] = Conn::Broken,
            Daemon::Opening(_) => {}
            Daemon::Open(session) if session.conns[brick] == Conn::Joined => {
                session.leave(brick, Conn::Broken);
            }
            Daemon::Open(_) => {}
        }
    }

    /// The stored marks of every brick.
    pub fn rows(&self) -> [BrickSet; BRICKS] {
        self.bricks.map(|brick| brick.stored)
    }

    /// The brick's process is gone, and every lock and connection with it.
    pub fn brick_down(&mut self, brick: usize) {
        self.bricks[brick].up = false;
        self.bricks[brick].lease = None;
        for slot in 0..self.daemons.len() {
            self.connection_broken(slot, brick);
        }
        self.heal_aborted();
    }

    /// The daemon in `slot` is gone. The bricks notice in their own time.
    pub fn daemon_gone(&mut self, slot: usize) {
        self.daemons[slot] = Daemon::Closed;
        for lease in self.leases_of(slot) {
            lease.link = Link::Dead;
        }
    }

    /// The locks of `slot`, wherever they stand.
    pub fn leases_of(&mut self, slot: usize) -> impl Iterator<Item = &mut Lease> {
        let leases = self.bricks.iter_mut().filter_map(|b| b.lease.as_mut());
        leases.filter(move |lease| lease.slot == slot)
    }

    /// The healer gives up: the marks that it has not taken off yet stay.
    pub fn heal_aborted(&mut self) {
        self.healer = Healer::Idle;
        for brick in &mut self.bricks {
            brick.healed = false;
        }
    }
}
