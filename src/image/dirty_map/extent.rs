//! The atomic state of one extent: 16 bits, four extents to a 64-bit word.
//!
//! ```text
//!   15..12         11..8         7..0
//!   copying (peer) dirty (peer)  writes in flight
//! ```
//!
//! A write counts itself in and sets *dirty* for every peer before it is
//! submitted, and counts itself out when it has completed. A copy to a peer may
//! begin only when nothing is in flight, and sets *copying*; a write that begins
//! meanwhile takes *copying* away again. So *copying* still there at the end
//! means that no write began, and none was in flight, while the extent was read:
//! the peer has its newest bytes, and *dirty* may go.
//!
//! Two things follow, and others rely on them: *copying* is never set while a
//! write is in flight, and a write in flight implies *dirty* for every peer.
//!
//! # Memory ordering
//!
//! Every change is one read-modify-write on the extent's word, so all changes of
//! an extent have one order that every thread and process agrees on. That order
//! alone decides whether [`Extent::end_copy`] clears. What needs more is that a
//! copy reads what earlier writes wrote: [`Extent::end_write`] releases and
//! [`Extent::begin_copy`] acquires, and since only read-modify-writes follow
//! each other, the acquire meets the release of every write that ended before.
//! The other changes use the same pair: it costs nothing on x86 and keeps a
//! change from moving past the I/O it announces.
//!
//! Compiled twice: here, and with loom's atomics by `tests/loom_extent.rs`.

use super::sync::{AtomicU64, Ordering};

/// The most peers whose dirtiness an extent can hold.
pub const MAX_PEERS: usize = 4;
/// Extents in one word.
pub const LANES: usize = 4;

/// Bits of one extent.
const LANE_BITS: u32 = 16;
/// One in the lowest bit of every lane.
const EACH_LANE: u64 = 0x0001_0001_0001_0001;
const IN_FLIGHT: u16 = 0x00ff;
const DIRTY_SHIFT: u32 = 8;
const COPYING_SHIFT: u32 = 12;

/// A peer: its index among the bricks that hold a copy, the local one left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer(u8);

impl Peer {
    /// The peer with this index; `None` from [`MAX_PEERS`] on.
    pub fn new(index: usize) -> Option<Self> {
        (index < MAX_PEERS).then_some(Self(index as u8))
    }

    /// Its index.
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// A set of peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Peers(u8);

impl Peers {
    /// No peer.
    pub const NONE: Self = Self(0);

    /// The peers `0..count`; a count above [`MAX_PEERS`] is cut to it.
    pub fn first(count: usize) -> Self {
        (0..count).filter_map(Peer::new).collect()
    }

    /// Is the peer in the set?
    pub fn contains(self, peer: Peer) -> bool {
        self.0 & Self::from(peer).0 != 0
    }

    /// The peers whose bits are set in `bits`, the lowest being peer 0.
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & ((1 << MAX_PEERS) - 1))
    }

    /// As bits; see [`Peers::from_bits`].
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Is it empty?
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The peers in either set.
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The peers that are not in `other`.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The peers in both sets.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The peers, in order.
    pub fn iter(self) -> impl Iterator<Item = Peer> {
        (0..MAX_PEERS)
            .filter_map(Peer::new)
            .filter(move |&peer| self.contains(peer))
    }

    /// These peers' *dirty* bits in a [`ExtentState`].
    pub(super) fn dirty_bits(self) -> u16 {
        u16::from(self.0) << DIRTY_SHIFT
    }

    /// The peers whose *dirty* bits these are.
    pub(super) fn of_dirty_bits(bits: u16) -> Self {
        Self::from_bits((bits >> DIRTY_SHIFT) as u8)
    }

    /// These peers' *copying* bits in a [`ExtentState`].
    pub(super) fn copying_bits(self) -> u16 {
        u16::from(self.0) << COPYING_SHIFT
    }
}

impl From<Peer> for Peers {
    fn from(peer: Peer) -> Self {
        Self(1 << peer.0)
    }
}

impl FromIterator<Peer> for Peers {
    fn from_iter<I: IntoIterator<Item = Peer>>(peers: I) -> Self {
        Self(peers.into_iter().fold(0, |set, peer| set | 1 << peer.0))
    }
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Copied {
    /// The peer has the extent's newest bytes; it is no longer dirty there.
    Cleared,
    /// A write came in between (or the copy was not the one begun): still dirty.
    Again,
}

/// One extent's state at a moment, with the transitions as pure functions. `None`
/// from a transition means that it is not allowed and nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentState(pub u16);

impl ExtentState {
    /// All of it, as in the map.
    pub(super) fn bits(self) -> u16 {
        self.0
    }

    /// Writes in flight.
    pub fn in_flight(self) -> u8 {
        (self.0 & IN_FLIGHT) as u8
    }

    /// Is the peer behind here?
    pub fn is_dirty(self, peer: Peer) -> bool {
        self.0 & Peers::from(peer).dirty_bits() != 0
    }

    /// Is a copy to the peer under way, with no write since it began?
    pub fn is_copying(self, peer: Peer) -> bool {
        self.0 & Peers::from(peer).copying_bits() != 0
    }

    /// `None`: 255 writes are in flight.
    fn begin_write(self, all: Peers) -> Option<Self> {
        let counted = (self.in_flight() < u8::MAX).then_some(self.0 + 1)?;
        Some(Self(counted).mark_dirty(all))
    }

    /// `None`: nothing is in flight.
    fn end_write(self) -> Option<Self> {
        (self.in_flight() > 0).then(|| Self(self.0 - 1))
    }

    /// `None`: not dirty, or a write is in flight, or a copy is under way.
    fn begin_copy(self, peer: Peer) -> Option<Self> {
        let may = self.in_flight() == 0 && self.is_dirty(peer) && !self.is_copying(peer);
        may.then(|| Self(self.0 | Peers::from(peer).copying_bits()))
    }

    fn end_copy(self, peer: Peer) -> (Self, Copied) {
        let over = self.0 & !Peers::from(peer).copying_bits();
        // Nothing in flight follows from copying; asked for all the same, since
        // a file can hold any bits.
        if self.is_copying(peer) && self.in_flight() == 0 {
            let clean = over & !Peers::from(peer).dirty_bits();
            (Self(clean), Copied::Cleared)
        } else {
            (Self(over), Copied::Again)
        }
    }

    /// Dirty, and no copy under way counts any more.
    fn mark_dirty(self, peers: Peers) -> Self {
        Self((self.0 | peers.dirty_bits()) & !peers.copying_bits())
    }

    /// The writes in flight are those of a process that is gone: they may or may
    /// not have been done. `None`: there are none.
    fn settle(self, all: Peers) -> Option<Self> {
        (self.in_flight() > 0).then(|| Self(self.0 & !IN_FLIGHT).mark_dirty(all))
    }

    /// `None`: already clean for these peers, or a write is in flight.
    fn declare_clean(self, peers: Peers) -> Option<Self> {
        let bits = peers.dirty_bits() | peers.copying_bits();
        (self.in_flight() == 0 && self.0 & bits != 0).then_some(Self(self.0 & !bits))
    }

    /// `None`: no copy under way to these peers.
    fn forget_copies(self, peers: Peers) -> Option<Self> {
        let bits = peers.copying_bits();
        (self.0 & bits != 0).then_some(Self(self.0 & !bits))
    }
}

/// The same bits in every lane.
pub fn spread(bits: u16) -> u64 {
    u64::from(bits) * EACH_LANE
}

/// [`Extent::mark_dirty`] for all the extents of a word, as one change.
pub fn mark_word_dirty(word: &AtomicU64, peers: Peers) {
    let (dirty, copying) = (spread(peers.dirty_bits()), spread(peers.copying_bits()));
    // Never refused, so there is no error.
    let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
        Some((word | dirty) & !copying)
    });
}

/// One extent: its place in a word that others share.
#[derive(Clone, Copy)]
pub struct Extent<'a> {
    word: &'a AtomicU64,
    shift: u32,
}

impl<'a> Extent<'a> {
    /// The extent in `lane` of `word`; a lane counts modulo [`LANES`].
    pub fn new(word: &'a AtomicU64, lane: usize) -> Self {
        let shift = (lane % LANES) as u32 * LANE_BITS;
        Self { word, shift }
    }

    /// The state now.
    pub fn state(self) -> ExtentState {
        self.lane(self.word.load(Ordering::Acquire))
    }

    /// A write is about to be submitted: in flight, dirty for `all`, and every
    /// copy under way is void. `false`, and nothing changed: 255 writes are in
    /// flight already.
    #[must_use]
    pub fn begin_write(self, all: Peers) -> bool {
        self.change(|state| state.begin_write(all)).is_ok()
    }

    /// Another write found the extent full, and has said so elsewhere: whoever
    /// ends a write here after this call sees what was said before it.
    pub fn announce(self) {
        self.word.fetch_or(0, Ordering::AcqRel);
    }

    /// A write counted in by [`Extent::begin_write`] has completed. The state
    /// before; an error when no write was in flight, which is then unchanged.
    pub fn end_write(self) -> Result<ExtentState, ExtentState> {
        self.change(ExtentState::end_write)
    }

    /// May a copy to `peer` begin now? Then the extent is to be read after this
    /// call, and [`Extent::end_copy`] or [`Extent::forget_copies`] is owed.
    #[must_use]
    pub fn begin_copy(self, peer: Peer) -> bool {
        self.change(|state| state.begin_copy(peer)).is_ok()
    }

    /// What was read since [`Extent::begin_copy`] is safe with the peer.
    pub fn end_copy(self, peer: Peer) -> Copied {
        match self.change(|state| Some(state.end_copy(peer).0)) {
            Ok(before) | Err(before) => before.end_copy(peer).1,
        }
    }

    /// Dirty for `peers`, whatever it was.
    pub fn mark_dirty(self, peers: Peers) {
        let _ = self.change(|state| Some(state.mark_dirty(peers)));
    }

    /// The writes in flight are a dead process's. Were there any?
    pub fn settle(self, all: Peers) -> bool {
        self.change(|state| state.settle(all)).is_ok()
    }

    /// Clean for `peers` by what the caller knows, unless a write is in flight.
    pub fn declare_clean(self, peers: Peers) {
        let _ = self.change(|state| state.declare_clean(peers));
    }

    /// No copy to `peers` is under way: given up, or a dead healer's.
    pub fn forget_copies(self, peers: Peers) {
        let _ = self.change(|state| state.forget_copies(peers));
    }

    /// One read-modify-write; the state before it, as an error when `next`
    /// refused and nothing changed.
    fn change(
        self,
        next: impl Fn(ExtentState) -> Option<ExtentState>,
    ) -> Result<ExtentState, ExtentState> {
        let others = !(u64::from(u16::MAX) << self.shift);
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let ExtentState(bits) = next(self.lane(word))?;
                Some(word & others | u64::from(bits) << self.shift)
            })
            .map(|before| self.lane(before))
            .map_err(|before| self.lane(before))
    }

    fn lane(self, word: u64) -> ExtentState {
        ExtentState((word >> self.shift) as u16)
    }
}
