//! What a session's thread is told, and by whom.

use std::ops::Range;
use std::sync::mpsc::Sender;

use crate::image::dirty_map::Peer;
use crate::image::heal::Unmarked;
use crate::image::layout::FileIndex;
use crate::image::local::Fingerprint;
use crate::image::replica::brick_set::{BrickSet, VolumeChange};
use crate::image::replica::brick_worker::BrickReport;

use super::ending::KeptSession;
use super::extension::Extend;
use super::resize::{Insist, ResizeError, Resized};

/// What the thread is told.
pub enum Input {
    /// By a brick's worker.
    Brick(usize, BrickReport),
    /// By a queue: a write waits at the gate, or will, of this file.
    WriteWanted(FileIndex),
    /// By a queue: the guest's flush failed.
    SyncFailed,
    /// By a healer: a peer does not carry the session's mark.
    MarkAgain,
    /// By a healer: remove the marks against peers that miss nothing.
    Unmark {
        /// Children that may miss something: they cannot be healed for now.
        despite: BrickSet,
        /// What came of it.
        answer: Sender<Unmarked>,
    },
    /// By who compared the copies: these byte ranges of a peer's differ.
    Repair {
        /// The peer.
        peer: Peer,
        /// Where its copy differs, in bytes.
        ranges: Vec<Range<u64>>,
        /// What came of it: they are dirty and marked, or why not.
        answer: Sender<Result<(), String>>,
    },
    /// By who asked glusterd: the volume has changed in this way.
    VolumeChanged(VolumeChange),
    /// By the session's owner: make all copies that large. No healer is at work.
    Grow {
        /// In bytes; more than now.
        to: u64,
        /// In spite of what.
        insist: Insist,
        /// For the files that it needs then.
        extend: Extend,
        /// What came of it.
        answer: Sender<Result<Resized, ResizeError>>,
    },
    /// By the session's owner: end it if no copy that is held misses anything, with no
    /// mark left on it, and this child's, if one is named, is held. The answer is the local
    /// copy as it is left.
    HandOver(Option<usize>, Sender<Result<Option<Fingerprint>, String>>),
    /// By the session's owner: rest, for another process to go on.
    Keep(Sender<Result<KeptSession, String>>),
    /// By the session's owner: end it.
    Close,
}
