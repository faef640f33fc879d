//! Which flushes may be answered when the guest's flushes wait for peers, and which peers are on
//! record as *in step*: what a guest was told is safe is on each of those, durably.
//!
//! The record is kept on a quorum of the bricks, so whoever takes a copy over when the guest's host
//! is gone reads the newest that counts. A peer is waited for from before the record with it is
//! sent to the first brick, until the record without it is on a quorum. So a record that
//! names it is never wrong, however few bricks have it, and whoever dies when.
//!
//! Pure: the session's owner carries out what it says. Entries are counted by the stream's
//! sequence; *before* a number means all with a smaller one.

use std::collections::BTreeSet;

use crate::image::dirty_map::{Peer, Peers};

/// How much the guest's flushes wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Replicate {
    /// The local disk.
    Async,
    /// And so many peers, one at least.
    Flush {
        /// How many.
        peers: usize,
        /// What is done when fewer follow.
        alone: WhenAlone,
    },
}

/// What is done when fewer peers follow than flushes wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WhenAlone {
    /// Flushes are answered without them, once the record says so.
    Continue,
    /// They wait.
    Stall,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Act {
    /// Put it on record, durably and on a quorum of bricks, that these peers are in step; then
    /// [`InStep::stored`]. Until that has succeeded it is tried on and on.
    Store(Peers),
    /// Answer this flush.
    Answer(u64),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InStep {
    replicate: Replicate,
    /// Per peer that follows and whose copy is consistent, what it has durably: all before this.
    following: [Option<u64>; crate::image::dirty_map::extent::MAX_PEERS],
    /// On record, on a quorum.
    recorded: Peers,
    /// Being put on record.
    storing: Option<Peers>,
    /// Durable here, and not answered.
    waiting: BTreeSet<u64>,
    /// All flushes before this one are answered, or later ones.
    answered: u64,
}

impl InStep {
    /// With the peers that the record names already, of this session or one before.
    pub fn new(replicate: Replicate, recorded: Peers) -> Self {
        Self {
            replicate,
            following: Default::default(),
            recorded,
            storing: None,
            waiting: BTreeSet::new(),
            answered: 0,
        }
    }

    /// From now on flushes wait for this much.
    pub fn set(&mut self, replicate: Replicate) {
        self.replicate = replicate;
    }

    /// A peer follows, its copy is consistent, and it has all before this durably; or the same,
    /// and it has more.
    pub fn durable(&mut self, peer: Peer, before: u64) {
        self.following[peer.index()] = Some(before);
    }

    /// A peer does not follow any more.
    pub fn lost(&mut self, peer: Peer) {
        self.following[peer.index()] = None;
    }

    /// This flush is durable here. Larger numbers come later.
    pub fn flushed(&mut self, flush: u64) {
        self.waiting.insert(flush);
    }

    /// What was to be put on record is, on a quorum.
    pub fn stored(&mut self) {
        if let Some(stored) = self.storing.take() {
            self.recorded = stored;
        }
    }

    /// What the record says, on a quorum.
    pub fn recorded(&self) -> Peers {
        self.recorded
    }

    /// What is to be done now; asked until there is nothing.
    pub fn next_act(&mut self) -> Option<Act> {
        if let Some(flush) = self.answerable() {
            self.waiting.remove(&flush);
            self.answered = self.answered.max(flush + 1);
            return Some(Act::Answer(flush));
        }
        let wanted = self.wanted();
        if self.storing.is_none() && wanted != self.recorded {
            self.storing = Some(wanted);
            return Some(Act::Store(wanted));
        }
        None
    }

    /// Peers that a flush must not be answered without.
    fn required(&self) -> Peers {
        self.recorded.or(self.storing.unwrap_or_default())
    }

    fn has(&self, peer: Peer, flush: u64) -> bool {
        // All before the flush, and the flush itself is no data.
        self.following[peer.index()].is_some_and(|before| before >= flush)
    }

    fn answerable(&self) -> Option<u64> {
        let flush = *self.waiting.first()?;
        let required = self.required().iter().all(|peer| self.has(peer, flush));
        let enough = match self.replicate {
            Replicate::Async => true,
            Replicate::Flush { peers, alone } => {
                let having = self.peers().filter(|peer| self.has(*peer, flush)).count();
                let following = self.peers().count();
                having >= peers || (alone == WhenAlone::Continue && having == following)
            }
        };
        (required && enough).then_some(flush)
    }

    /// Those that follow.
    fn peers(&self) -> impl Iterator<Item = Peer> {
        let all = (0..self.following.len()).filter_map(Peer::new);
        all.filter(|peer| self.following[peer.index()].is_some())
    }

    /// Whom the record should name. Not one that flushes do not wait for anyway; of those, each
    /// that has all that was answered.
    fn wanted(&self) -> Peers {
        match self.replicate {
            Replicate::Async => Peers::NONE,
            Replicate::Flush { .. } => {
                let answered = self.answered.saturating_sub(1);
                self.peers()
                    .filter(|peer| self.has(*peer, answered))
                    .collect()
            }
        }
    }
}
