//! The state of the world: bricks with a copy of each file, sessions, maps. A copy is the set
//! of writes that it contains; what is stored is durable at once.

use bypass_blk::image::replica::brick_set::{BrickSet, SetChange, Shape};
use bypass_blk::image::session::state_machine::{GateState, Machine};

/// Of the image: the base and a shard.
pub const FILES: usize = 2;
/// The replica set; brick `n` is the local one of the session in slot `n`.
pub const BRICKS: usize = 2;
/// The smallest stamp. Stock clients add ones.
pub const STAMP: i16 = 8;

/// A brick's counters against each brick.
pub type Row = [i16; BRICKS];
/// A set of writes, a bit each.
pub type Writes = u8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub bricks: [Brick; BRICKS],
    pub sessions: [Option<Session>; BRICKS],
    pub maps: [Option<Map>; BRICKS],
    /// A stock heal of each file that has copied: the marks that it read, and takes off.
    pub heals: [Option<[Row; BRICKS]>; FILES],
    /// Writes to each file that somebody was told are done.
    pub acked: [Writes; FILES],
    pub writes_left: u8,
    pub clients_left: u8,
    pub faults_left: u8,
    pub opens_left: u8,
    pub breach: Option<Breach>,
}

/// A forbidden step that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    Unmarked,
    StaleOpen,
    StaleWrite,
    Underneath,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Brick {
    pub up: bool,
    pub lease: Option<Lease>,
    pub files: [Copy; FILES],
}

/// A file's copy and counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Copy {
    pub data: Writes,
    pub row: Row,
}

/// The locks of one connection of a session: the session lock, of the base, and heal locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    pub slot: usize,
    /// The session does not use the connection any more, and the brick has not noticed.
    pub dead: bool,
    /// The files from which it keeps heals.
    pub guards: [bool; FILES],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    pub files: [FileState; FILES],
    pub conns: [Conn; BRICKS],
    pub inbox: Vec<Report>,
}

/// What the session's thread knows of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileState {
    pub machine: Machine,
    pub gate: GateState,
    /// The local copy as the session knows it.
    pub view: Writes,
    pub guarded: BrickSet,
    pub wants_guard: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conn {
    Joined,
    /// The brick dropped it; the worker has not noticed.
    Broken,
    Away,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    Lost(usize),
    Rejoined {
        brick: usize,
        rows: [Row; FILES],
        guards: [bool; FILES],
    },
}

/// A dirty map: which files the peer misses something of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Map {
    pub stamp: i16,
    pub previous: i16,
    pub dirty: [bool; FILES],
    pub clean_close: bool,
}

pub fn shape(slot: usize) -> Shape {
    Shape {
        bricks: BRICKS,
        local: slot,
        arbiter: None,
        since: SetChange::NONE,
    }
}

pub fn accused_by(row: &Row) -> BrickSet {
    (0..BRICKS).filter(|&brick| row[brick] != 0).collect()
}

impl World {
    pub fn rows(&self, file: usize) -> [Row; BRICKS] {
        self.bricks.map(|brick| brick.files[file].row)
    }

    pub fn is_marked(&self, file: usize) -> bool {
        self.rows(file) != [[0; BRICKS]; BRICKS]
    }

    /// Some value that no counter and no map has.
    pub fn fresh_stamp(&self) -> i16 {
        let files = self.bricks.iter().flat_map(|brick| brick.files);
        let counters = files.flat_map(|copy| copy.row);
        let maps = self.maps.iter().flatten();
        let used: Vec<_> = counters
            .chain(maps.flat_map(|map| [map.stamp, map.previous]))
            .collect();
        let stamps = (1..).map(|number| number * STAMP);
        stamps
            .into_iter()
            .find(|stamp| !used.contains(stamp))
            .unwrap_or_default()
    }

    /// The daemon is gone. The bricks notice in their own time.
    pub fn daemon_gone(&mut self, slot: usize) {
        self.sessions[slot] = None;
        self.let_go(slot);
    }

    /// Every connection is given up.
    pub fn let_go(&mut self, slot: usize) {
        let leases = self.bricks.iter_mut().filter_map(|b| b.lease.as_mut());
        leases
            .filter(|lease| lease.slot == slot)
            .for_each(|lease| lease.dead = true);
    }

    /// The process is gone with every lock, and a heal under way with it.
    pub fn brick_down(&mut self, brick: usize) {
        self.bricks[brick].up = false;
        self.bricks[brick].lease = None;
        for session in self.sessions.iter_mut().flatten() {
            if session.conns[brick] == Conn::Joined {
                session.conns[brick] = Conn::Broken;
            }
        }
        self.heals = [None; FILES];
    }
}
