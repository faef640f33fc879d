//! What a pass is told and what it tells.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use super::clock::{Clock, SystemClock};
use super::progress::Progress;
use crate::image::dirty::Peer;

/// How an engine works.
#[derive(Clone)]
pub struct Options {
    /// The most bytes on their way to the peer at one time.
    pub window: u64,
    /// Compare checksums first and send only what differs: for extents that are
    /// dirty because nobody knows better.
    pub compare_first: bool,
    /// The bandwidth limit in bytes per second, of what is sent or compared; 0 is
    /// none. May change at any time.
    pub rate: Arc<AtomicU64>,
    /// Ends a pass early when set.
    pub stop: Arc<AtomicBool>,
    /// How long to leave the peer alone before the first pass. A connection that
    /// broke, or a healer that died, may have left WRITEs with the brick that are
    /// carried out only now, and nothing but time keeps them from overtaking ours.
    pub quiet: Duration,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The counters to add to.
    pub progress: Arc<Progress>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            window: 8 << 20,
            compare_first: false,
            rate: Arc::default(),
            stop: Arc::default(),
            quiet: Duration::from_secs(1),
            clock: Arc::new(SystemClock::default()),
            progress: Arc::default(),
        }
    }
}

/// Why a pass ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassEnd {
    /// It went once over the whole map.
    #[default]
    Complete,
    /// [`Options::stop`] was set.
    Stopped,
    /// Another client did not give AFR's data lock back in time.
    Locked,
}

/// What a pass did. All of it is durable at the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Why it ended.
    pub end: PassEnd,
    /// Extents cleared.
    pub cleared: u64,
    /// Extents that were written to while they were copied, and stay dirty.
    pub again: u64,
    /// Extents not tried since a write was in flight there; they stay dirty.
    pub skipped: u64,
}

/// The proof that at one moment (when [`super::Engine::settle`] was called) the peer's
/// copy was equal to the local one, both of them durable, no write in flight.
///
/// The engine can do nothing while this exists. So if the map still has nothing
/// dirty for the peer, behind a closed gate, no write began since that moment, and
/// the proof holds: then, and only then, may the marks against the peer go.
#[must_use]
#[derive(Debug)]
pub struct Settled<'a> {
    peer: Peer,
    engine: PhantomData<&'a mut ()>,
}

impl Settled<'_> {
    /// For the engine alone.
    pub(super) fn new(peer: Peer) -> Self {
        Self {
            peer,
            engine: PhantomData,
        }
    }

    /// The peer.
    pub fn peer(&self) -> Peer {
        self.peer
    }
}
