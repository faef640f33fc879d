//! The state of a daemon: nothing, an open session, or a promotion.

use bypass_blk::image::replica::brick_set::BrickSet;
use bypass_blk::image::session::state_machine::{Action, GateState, Machine};

use bypass_blk::image::replica::unmarking::Absent;

use super::world::{BRICKS, Counter, Row, Writes};

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
    /// Promoting its copy under the locks of a quorum: these bricks are still to be
    /// changed.
    Promoting(Promotion),
}

/// A promotion on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Promotion {
    /// All have accused; now the promoted copy is acquitted.
    pub acquits: bool,
    /// The bricks on which its locks are.
    pub reached: BrickSet,
    /// Those that are still to be changed.
    pub left: BrickSet,
    /// What they said at the beginning.
    pub read: [Row; BRICKS],
    /// The counter to accuse with.
    pub stamp: Counter,
    /// The writes that it gives up.
    pub lost: Writes,
}

/// An open session: the real machine and the rim around it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    pub machine: Machine,
    pub gate: GateState,
    pub conns: [Conn; BRICKS],
    /// What workers reported and the session's thread has not taken yet.
    pub inbox: Vec<Report>,
    /// Actions that wait for the round before them.
    pub todo: Vec<Action>,
    pub round: Option<Round>,
    /// The local copy as the session knows it.
    pub view: Writes,
    /// Whom each brick accused when it was last read.
    pub known: [Absent; BRICKS],
    /// A write that was admitted and is not done yet.
    pub in_flight: Option<u8>,
}

impl Session {
    /// The connection to a brick is no longer a joined one.
    pub fn leave(&mut self, brick: usize, now: Conn) {
        self.conns[brick] = now;
        if let Some(round) = self.round.as_mut().filter(|round| round.probed) {
            round.unlocked.insert(brick);
        }
    }

    /// May the guest's writes go through while no brick has a lock of ours, which the
    /// session has not heard yet?
    pub fn is_unguarded(&self) -> bool {
        let unheard = !self.machine.held().is_empty();
        let writes = self.gate == GateState::Open && unheard || self.in_flight.is_some();
        writes && !self.conns.contains(&Conn::Joined)
    }

    /// Is AFR's data lock of a round held on this brick?
    pub fn has_data_lock(&self, brick: usize) -> bool {
        self.round.is_some_and(|round| {
            round.probed && round.asked.contains(brick) && !round.unlocked.contains(brick)
        })
    }
}

/// A worker's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    Lost(usize),
    Rejoined { brick: usize, row: Row },
}

impl Report {
    /// Whose.
    pub fn brick(self) -> usize {
        match self {
            Self::Lost(brick) | Self::Rejoined { brick, .. } => brick,
        }
    }
}

/// A round under AFR's data lock on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Round {
    /// Marks may go though a peer that is held is behind.
    pub despite: bool,
    /// The bricks of the round.
    pub asked: BrickSet,
    /// The peers whose marks are removed; `None`: peers are marked.
    pub removed: Option<BrickSet>,
    pub probed: bool,
    /// What the probe read on each brick.
    pub read: [Row; BRICKS],
    /// Bricks whose turn comes later, one set after the other.
    pub stages: [BrickSet; 3],
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
