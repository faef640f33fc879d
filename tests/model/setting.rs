//! What one check explores: the replica set, the bounds, and how the rim differs
//! from the real one.

use bypass_blk::image::bricks::Shape;

/// One check.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Number of bricks, an arbiter included; 2 or 3.
    pub bricks: usize,
    /// The last brick stores marks but no data.
    pub arbiter: bool,
    /// The local brick of each of the two would-be sessions.
    pub locals: [usize; 2],
    /// How many writes guests do in all.
    pub writes: u8,
    /// How many faults happen in all: a connection lost (either end first), a
    /// brick killed, a host crashed, the stock healer killed. Killing or closing
    /// a session is no fault: it is always possible.
    pub faults: u8,
    /// How often a session is opened in all.
    pub opens: u8,
    /// How the stock healer takes marks off.
    pub clearing: Clearing,
    /// A session may learn of the loss of its last lock after a stock heal began;
    /// else it is taken to know at once.
    pub late_notice: bool,
    /// A protection taken away.
    pub without: Option<Protection>,
    /// Changes of the protocol that are proposed but not made yet.
    pub with: Amendments,
}

impl Setting {
    /// The shape that the session in `slot` sees.
    pub fn shape(&self, slot: usize) -> Shape {
        Shape {
            bricks: self.bricks,
            local: self.locals[slot],
            arbiter: self.arbiter_brick(),
        }
    }

    /// Child index of the arbiter.
    pub fn arbiter_brick(&self) -> Option<usize> {
        self.arbiter.then(|| self.bricks - 1)
    }

    /// Does this brick hold data?
    pub fn has_data(&self, brick: usize) -> bool {
        self.arbiter_brick() != Some(brick)
    }

    /// Was this protection taken away?
    pub fn lacks(&self, protection: Protection) -> bool {
        self.without == Some(protection)
    }
}

/// How the stock healer takes marks off when the copies are equal: an XATTROP to
/// each brick in child order, without FSYNC (`afr_selfheal_undo_pending`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clearing {
    /// On all bricks and durably at once: what is assumed of it.
    Whole,
    /// Brick after brick; it can be cut short in between.
    BrickByBrick,
    /// At once, but a crash may bring a brick's marks back.
    Volatile,
}

/// What a mutated rim leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Marks go to every held brick, not to the local one only.
    MarksOnPeers,
    /// The gate opens after the marking round, not before.
    MarksBeforeGate,
    /// Marks are fsynced.
    MarksDurable,
    /// Marks stay when a brick is lost.
    MarksStayOnLoss,
    /// The heal lock is taken with the session lock.
    HealLock,
    /// The session lock is taken on every brick, not on the local one only.
    LocksOnPeers,
    /// A rejoined brick's marks are looked at.
    MarksReadOnRejoin,
    /// The marks are read again, under the data lock, before marking.
    MarksReadOnMarking,
    /// A brick counts as marked only if its data lock stood until the round's end.
    LocksSeenToTheEnd,
    /// A brick that accuses itself is believed about the others, as it is not by
    /// AFR's heal.
    SelfAccusersBelieved,
    /// Fewer bricks than a quorum are no ground for opening.
    OpenQuorum,
    /// A clean session that lost its quorum checks that the file is as it was.
    FileWatched,
    /// A session that is told to stop does.
    Stopping,
}

/// Proposed changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amendments {
    /// A round marks the local copy last, and only if that completes a quorum.
    pub local_last: bool,
    /// A worker joins a lost brick again only when the session's thread has taken
    /// note of the loss.
    pub loss_noted_first: bool,
    /// Under the data lock, before marks for a held gate are stored, the local
    /// file is compared with what the session last knew of it.
    pub file_compared: bool,
}

impl Amendments {
    /// All of them.
    pub const ALL: Self = Self {
        local_last: true,
        loss_noted_first: true,
        file_compared: true,
    };
}
