//! The bandwidth limit: a token bucket that may go into debt.
//!
//! The cost of a piece of work is known only after it (extents turn out equal or
//! zero), and nobody is to sleep while holding a lock. So work is charged
//! afterwards, and the next piece waits until the debt is paid. No clock and no
//! sleep in here: the caller says what time it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What may be saved up while nothing is sent, as time at the present rate.
const BURST: Duration = Duration::from_millis(250);

/// The limit of all engines that share it. The rate may change at any time.
#[derive(Debug, Default)]
pub struct Throttle {
    /// In bytes per second; 0 is no limit.
    rate: AtomicU64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug, Default)]
struct Bucket {
    /// Bytes that may be sent now; negative is debt.
    tokens: f64,
    /// When `tokens` was right.
    at: Option<Duration>,
}

impl Throttle {
    /// Nothing saved up and no debt. `rate` is in bytes per second, 0 for no limit.
    pub fn new(rate: u64) -> Self {
        Self {
            rate: AtomicU64::new(rate),
            bucket: Mutex::default(),
        }
    }

    /// The rate in bytes per second, 0 for no limit.
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Changes it; counts at once, also for what was sent before.
    pub fn set_rate(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// How many bytes to do at once at most, so that work comes in small steps
    /// under a low rate.
    pub fn quantum(&self) -> u64 {
        match self.rate() {
            0 => u64::MAX,
            rate => (rate as f64 * BURST.as_secs_f64()) as u64,
        }
    }

    /// How long to wait, at the present rate, before anything more is sent. Ask
    /// again after waiting: the rate may have changed, or another have sent.
    pub fn delay(&self, now: Duration) -> Duration {
        let mut bucket = self.bucket();
        let rate = self.rate();
        if rate == 0 {
            (bucket.tokens, bucket.at) = (0.0, Some(now));
            return Duration::ZERO;
        }
        let rate = rate as f64;
        let at = bucket.at.map_or(now, |at| at.max(now));
        let passed = now.saturating_sub(bucket.at.unwrap_or(now));
        bucket.tokens += passed.as_secs_f64() * rate;
        bucket.tokens = bucket.tokens.min(rate * BURST.as_secs_f64());
        bucket.at = Some(at);
        if bucket.tokens >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-bucket.tokens / rate).unwrap_or(Duration::MAX)
    }

    /// `bytes` were sent since the last [`Throttle::delay`].
    pub fn charge(&self, bytes: u64) {
        self.bucket().tokens -= bytes as f64;
    }

    /// One number that is wrong by one piece of work is no reason to stop.
    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_was_sent_is_waited_for_at_the_rate() {
        let throttle = Throttle::new(1000);
        assert_eq!(throttle.delay(SECOND), Duration::ZERO);
        throttle.charge(3000);
        assert_eq!(throttle.delay(SECOND), 3 * SECOND);
        assert_eq!(throttle.delay(3 * SECOND), SECOND);
        assert_eq!(throttle.delay(4 * SECOND), Duration::ZERO);
    }

    #[test]
    fn two_that_share_it_have_the_rate_together() {
        let throttle = Throttle::new(1000);
        throttle.delay(Duration::ZERO);
        throttle.charge(1000);
        throttle.charge(1000);
        assert_eq!(throttle.delay(Duration::ZERO), 2 * SECOND);
        assert_eq!(throttle.delay(SECOND), SECOND);
        assert_eq!(throttle.delay(SECOND), SECOND, "a second one asks");
    }

    #[test]
    fn an_idle_time_saves_up_no_more_than_a_short_burst() {
        let throttle = Throttle::new(1000);
        throttle.delay(Duration::ZERO);
        assert_eq!(throttle.delay(3600 * SECOND), Duration::ZERO);
        throttle.charge(1250);
        assert_eq!(throttle.delay(3600 * SECOND), SECOND);
    }

    #[test]
    fn a_new_rate_counts_at_once_also_for_what_was_sent_before() {
        let throttle = Throttle::new(1000);
        throttle.delay(Duration::ZERO);
        throttle.charge(4000);
        throttle.set_rate(4000);
        assert_eq!(throttle.delay(Duration::ZERO), SECOND);
        throttle.set_rate(0);
        assert_eq!(throttle.delay(Duration::ZERO), Duration::ZERO);
        throttle.set_rate(1);
        assert_eq!(
            throttle.delay(SECOND),
            Duration::ZERO,
            "the debt is forgiven"
        );
    }

    #[test]
    fn a_low_rate_makes_small_steps() {
        assert_eq!(Throttle::new(1 << 20).quantum(), 256 << 10);
        assert_eq!(Throttle::new(0).quantum(), u64::MAX);
    }

    #[test]
    fn a_clock_that_goes_back_and_huge_figures_do_no_harm() {
        let throttle = Throttle::new(1);
        throttle.delay(SECOND);
        throttle.charge(u64::MAX);
        throttle.charge(u64::MAX);
        assert!(throttle.delay(Duration::ZERO) > SECOND);
    }
}
