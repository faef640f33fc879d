//! What one check explores: the replica set, the bounds, and which protection of the
//! protocol is switched off.

use bypass_blk::image::replica::brick_set::{SetChange, Shape};

use super::steps::Step;

/// One check.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Number of bricks, an arbiter included; 2 or 3.
    pub bricks: usize,
    /// The last brick stores marks but no data.
    pub arbiter: bool,
    /// The local brick of each of the two would-be sessions.
    pub locals: [usize; 2],
    /// How many writes guests and clients do in all.
    pub writes: u8,
    /// How many extents the image has; write `n` is to extent `n % extents`.
    pub extents: u8,
    /// How many faults happen in all: a connection lost (either end first), a
    /// brick killed, a host crashed, a healer of either kind killed. Killing or
    /// closing a session is no fault: it is always possible.
    pub faults: u8,
    /// How often a session is opened in all.
    pub opens: u8,
    /// How many of the writes may be a stock client's.
    pub clients: u8,
    /// How often a stale copy may be promoted.
    pub promotes: u8,
    /// How often marks that stand are to be stored again.
    pub remarks: u8,
    /// How often a session may take it that a peer which it holds cannot be healed, and
    /// remove the marks against another one meanwhile.
    pub stuck: u8,
    /// Our own healers are at work, and sessions remove marks.
    pub healing: bool,
    /// What has happened at the beginning.
    pub after: fn() -> Vec<Step>,
    /// The protections that are switched off.
    pub without: &'static [Protection],
}

impl Setting {
    /// Two hosts, each with a brick and a would-be session, and nothing else.
    pub const TWO_BRICKS: Self = Self {
        bricks: 2,
        arbiter: false,
        locals: [0, 1],
        writes: 2,
        extents: 1,
        faults: 2,
        opens: 2,
        clients: 0,
        promotes: 0,
        remarks: 0,
        stuck: 0,
        healing: false,
        after: Vec::new,
        without: &[],
    };

    /// The same with a third brick.
    pub const THREE_BRICKS: Self = Self {
        bricks: 3,
        faults: 1,
        ..Self::TWO_BRICKS
    };

    /// The shape that the session in `slot` sees.
    pub fn shape(&self, slot: usize) -> Shape {
        Shape {
            bricks: self.bricks,
            local: self.locals[slot],
            arbiter: self.arbiter_brick(),
            since: SetChange::NONE,
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

    /// Was this protection switched off?
    pub fn lacks(&self, protection: Protection) -> bool {
        self.without.contains(&protection)
    }

    /// The writes that are to this extent.
    pub fn writes_to(&self, extent: u8) -> u8 {
        let to = |write: &u8| write % self.extents == extent;
        (0..self.writes).filter(to).map(|write| 1 << write).sum()
    }

    /// The extent of this write, as a set.
    pub fn extent_of(&self, write: u8) -> u8 {
        1 << (write % self.extents)
    }

    /// Every extent, as a set.
    pub fn all_extents(&self) -> u8 {
        (1 << self.extents) - 1
    }
}

/// What can be switched off. Those that the sources do not have yet say so: *proposed*.
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
    /// A round for a held gate marks the local copy last, and only if
    /// that completes a quorum.
    LocalMarkedLast,
    /// The local file is marked past its brick's process only if other bricks
    /// that are locked and marked are a quorum.
    LocalFileGuarded,
    /// And only if the local file does not accuse its own copy.
    LocalFileRead,
    /// When a round loses the last brick, the gate is closed.
    LossesCarriedOut,
    /// What a round reads of a brick and what it stores there go through
    /// one and the same connection.
    RoundKeepsConnection,
    /// The local file, its attributes included, is made durable before a round
    /// marks others: what was read there would else not be what a crash leaves.
    ReadIsDurable,
    /// Under the data lock, before marks for a held gate are stored, the
    /// local file is compared with what the session last knew of it.
    FileCompared,
    /// And that is done, too, when the bricks that answer were not all held without a gap:
    /// a loss is noticed late.
    AnswersCounted,
    /// A clean session that lost its quorum looks at the file when a brick is back.
    FileWatched,
    /// The heal lock is taken with the session lock.
    HealLock,
    /// The session lock is taken on every brick, not on the local one only.
    LocksOnPeers,
    /// The marks are read again before marking and when a brick is back.
    MarksReadAgain,
    /// A brick's accusation of the local copy is overruled only if a quorum of
    /// the others answers in the round that takes it off: a session may have lost its
    /// locks and not know it yet.
    OverruledByAnswer,
    /// A brick that accuses itself is believed about the others, as it is not by
    /// AFR's heal.
    SelfAccusersBelieved,
    /// Fewer bricks than a quorum are no ground for opening.
    OpenQuorum,
    /// A write is in the dirty map before it is submitted.
    MapBeforeWrite,
    /// After a crash of the host its map is not believed.
    MapDistrusted,
    /// An earlier map is believed only where the marks are those of its own session.
    StampsCompared,
    /// Somebody else's marks, found when marking or unmarking, make all dirty.
    ForeignMarksNoted,
    /// A copy during which a write came in does not clear its extent.
    CopyingFlag,
    /// An extent is cleared only after the peer's FSYNC.
    PeerFsynced,
    /// Marks are removed with the gate held.
    GateHeld,
    /// Marks are removed, durably, from the local brick and others that do not
    /// accuse themselves before they are from those that do.
    BelievedUnmarkedFirst,
    /// Marks are removed only against those that `unmarking::removable` names.
    RemovableOnly,
    /// The removal of marks is made durable.
    RemovalDurable,
    /// A healer that took the copy lock copies only if its session's record stands there.
    RecordChecked,
    /// Under the data lock, a healer copies only if the peer still accuses itself with a
    /// stamp of the map: else somebody has healed or written since.
    StampUnderLock,
    /// A session takes no brick on which another session's healer copies.
    CopyLock,
    /// A promotion accuses the copy that is away.
    OldCopyAccused,
    /// When a promotion accuses, every brick accuses itself, too: AFR believes
    /// none of them until all have.
    AllAccusedFirst,
    /// What a promotion overrules is recorded once all bricks have accused.
    RecordedLate,
    /// A promotion raises AFR's *dirty* counter on the promoted copy, which
    /// makes it the source of every heal in which nobody else decides.
    PromotedWitness,
}
