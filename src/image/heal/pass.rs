//! What a pass is told and what it tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::image::scheduler::clock::{Clock, SystemClock};

use super::progress::Progress;
use super::throttle::Throttle;

/// The longest sleep before the rate and the stop flag are looked at again.
const NAP: Duration = Duration::from_millis(50);

/// How an engine works.
#[derive(Clone)]
pub struct PassOptions {
    /// The most bytes on their way to the peer at one time.
    pub window: u64,
    /// Compare checksums first and send only what differs: for extents that are
    /// dirty because nobody knows better. May change at any time.
    pub compare_first: Arc<AtomicBool>,
    /// The bandwidth limit of what is sent or compared, shared with other engines.
    pub throttle: Arc<Throttle>,
    /// The same of the whole host, shared with the engines of other images. Of one clock
    /// with them.
    pub host: Arc<Throttle>,
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

impl Default for PassOptions {
    fn default() -> Self {
        Self {
            window: 8 << 20,
            compare_first: Arc::default(),
            throttle: Arc::default(),
            host: Arc::default(),
            stop: Arc::default(),
            quiet: Duration::from_secs(1),
            clock: Arc::new(SystemClock::default()),
            progress: Arc::default(),
        }
    }
}

impl PassOptions {
    /// Is the pass to end early?
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until the bandwidth limit allows to go on. `false`: stopped.
    pub(super) fn wait_for_tokens(&self) -> bool {
        self.nap_while(|now| self.throttle.delay(now).max(self.host.delay(now)))
    }

    /// How many bytes to copy at once at most, under both limits.
    pub(super) fn quantum(&self) -> u64 {
        self.throttle.quantum().min(self.host.quantum())
    }

    /// `bytes` were sent or compared.
    pub(super) fn charge(&self, bytes: u64) {
        self.throttle.charge(bytes);
        self.host.charge(bytes);
    }

    /// `false`: stopped.
    pub(super) fn sleep_until(&self, until: Duration) -> bool {
        self.nap_while(|now| until.saturating_sub(now))
    }

    /// Sleeps as long as something is left. `false`: stopped.
    fn nap_while(&self, left: impl Fn(Duration) -> Duration) -> bool {
        loop {
            let left = left(self.clock.now());
            if self.is_stopped() || left.is_zero() {
                return !self.is_stopped();
            }
            self.clock.sleep(left.min(NAP));
        }
    }
}

/// Why a pass ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassEnd {
    /// It went once over the whole map.
    #[default]
    Complete,
    /// [`PassOptions::stop`] was set.
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
    /// Extents that had a write in flight whenever they were looked at: sent as
    /// they were, they stay dirty.
    pub in_flight: u64,
    /// Every extent that was dirty when the pass began was read since and is
    /// durable at the peer as it was read: no write that was over by then is
    /// missing there, whether or not its extent is dirty again.
    pub covered: bool,
}
