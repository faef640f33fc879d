//! What is said to and by the session's machine: its phases, events and actions.

use crate::image::layout::FileIndex;
use crate::image::replica::brick_set::{BrickSet, SetChange};

#[cfg(doc)]
use super::Machine;

/// Where a session stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No write of this session has been admitted; the peers are as they were
    /// at open.
    Unmarked,
    /// The first write waits while the marks are being stored.
    Marking,
    /// The marks are durable on a quorum; writes go on, connected or not.
    Dirty,
    /// Writes wait while marks against peers that miss nothing are removed.
    Unmarking {
        /// The gate was open before.
        was_dirty: bool,
    },
    /// Writes wait: the marks cannot be stored on a quorum now.
    Stalled,
    /// Writes are refused: they waited for a quorum for too long.
    Failed,
    /// The session is over; every request is refused.
    Stopped(StopReason),
}

/// Why a session ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// A brick that came back says that the local copy misses data: somebody
    /// wrote to another copy while we were cut off.
    CopyAccused {
        /// The accuser.
        by: usize,
    },
    /// Another session holds the lock on a brick, and we no longer hold it on a
    /// quorum.
    LockTaken {
        /// Where the other session holds it.
        on: usize,
    },
    /// The local file changed while we held the lock on less than a quorum and
    /// wrote nothing.
    ChangedUnderneath,
    /// The volume has got another replica set, and this shard has gone there, or is on its way.
    ShardMoved(FileIndex),
    /// The volume has got another replica set, and a session that only reads holds no lock
    /// that would keep shards where they are.
    ShardsMayMove,
    /// A fault of this program: the session's thread panicked. Its locks stay until it is
    /// closed. Not the machine's to say.
    Panicked,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The guest wants to write and the gate is held.
    WriteWanted,
    /// One round of marking is over; what it achieved was told through
    /// [`Machine::marked`].
    MarkRoundOver,
    /// A mark on some brick is not what this session stored: somebody else changed it.
    MarkAgain,
    /// A held brick, read just now, does not accuse every peer: somebody removed marks.
    MarksGone {
        /// Which brick.
        on: usize,
    },
    /// A held brick says that the local copy misses data. Nothing was marked since it
    /// was read.
    LocalAccused {
        /// The accuser.
        by: usize,
    },
    /// A brick's connection, and with it our locks there, is gone; or a lock of ours was
    /// taken away, and the connection was given up for it.
    Lost(usize),
    /// A brick is back: session, heal and rebalance locks are held there again.
    Rejoined {
        /// Which.
        brick: usize,
        /// It has this session's marks against every peer.
        marks_stand: bool,
        /// A held brick, this one or another, that accuses the local copy now.
        local_accused_by: Option<usize>,
        /// The local file has not been written since this session opened it
        /// (only meaningful before the first admitted write).
        local_untouched: bool,
    },
    /// The image's replica set has changed since the session was opened, in this way.
    SetChanged(SetChange),
    /// A brick is back, but another session's lock is established there.
    TakenByOther {
        /// Which brick.
        brick: usize,
        /// It says that the local copy misses data.
        accused: bool,
    },
    /// Another file of the image has ended the session.
    StoppedElsewhere(StopReason),
    /// The local file changed behind our back; see [`Machine::watches_local`].
    LocalChanged,
    /// The time that writes may wait for a quorum is over.
    QuorumTimeout,
    /// The marks against some peers are about to be removed: every held brick is
    /// read and locked. Only if [`Machine::may_unmark`].
    UnmarkBegun,
    /// The removal is over.
    UnmarkOver {
        /// Some mark may have been removed on some brick.
        changed: bool,
    },
}

/// Why marks are not removed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CannotUnmark {
    /// The session is marking, stalled or stopped.
    #[error("the session is not in a state for it")]
    Busy,
    /// Our locks are on too few bricks.
    #[error("fewer bricks than a quorum are reached")]
    NoQuorum,
    /// The local brick's process is away.
    #[error("the process of the local brick is away")]
    LocalAway,
}

/// What the guest's writes do at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GateState {
    /// Wait.
    Hold,
    /// Go.
    Open,
    /// Writes fail, reads go on.
    FailWrites,
    /// Everything fails.
    FailAll,
}

/// What the session thread has to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Tell the guest's queues.
    SetGate(GateState),
    /// Publish who we are (and the fence) on a brick that came back.
    Publish(usize),
    /// Store the missing marks on these bricks, durably; then report each
    /// success by [`Machine::marked`] and the end by [`Event::MarkRoundOver`].
    Mark(BrickSet),
    /// From now on see whether the local file is written by somebody else.
    WatchLocal,
    /// Start to count the time that writes wait.
    StartQuorumTimer,
    /// Stop counting it.
    StopQuorumTimer,
    /// End the session.
    Stop(StopReason),
}
