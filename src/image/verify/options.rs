//! How verifying is done, how far it is, and who is told of differences.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::image::heal::LinkError;
use crate::image::scheduler::clock::{Clock, SystemClock};

/// How an image is verified.
#[derive(Clone)]
pub struct VerifyOptions {
    /// The most bytes of the image that are locked and being summed at one time.
    pub window: u64,
    /// How long other clients' locks are waited for.
    pub lock_wait: LockWait,
    /// Rounds over what was busy or behind in the first one.
    pub rounds: u32,
    /// The pause before each of those rounds.
    pub round_pause: Duration,
    /// Ends early when set; what is left counts as not verified.
    pub stop: Arc<AtomicBool>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where to tell how far it is.
    pub progress: Arc<VerifyProgress>,
}

/// See [`VerifyOptions::lock_wait`].
#[derive(Clone, Copy, Debug)]
pub struct LockWait {
    /// For one range.
    pub each: Duration,
    /// In one round over the image, for all that are not had in the end: then each is
    /// only tried.
    pub all: Duration,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            window: 8 << 20,
            lock_wait: LockWait {
                each: Duration::from_secs(2),
                all: Duration::from_secs(60),
            },
            rounds: 5,
            round_pause: Duration::from_millis(200),
            stop: Arc::default(),
            clock: Arc::new(SystemClock::default()),
            progress: Arc::default(),
        }
    }
}

/// How far the first round over the image is, for a bar. What was busy or behind is looked
/// at again after that.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    done: AtomicU64,
    total: AtomicU64,
}

impl VerifyProgress {
    /// Bytes of the image that were looked at once.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes of the image; 0 until it is known.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    pub(super) fn begin(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Takes what differs, to have it healed. Only in [`super::Situation::Served`]: the
/// local copy is then the truth.
pub trait Repair {
    /// The copy of child `child` differs in these bytes: they are to be dirty for it,
    /// and it is to be marked. Called with no lock in hand.
    ///
    /// # Errors
    /// See [`LinkError`]. The differences are reported all the same, and the record
    /// does not say that they were repaired.
    fn mark_differing(&self, child: usize, ranges: &[Range<u64>]) -> Result<(), LinkError>;
}
