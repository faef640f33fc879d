//! The bandwidth limit: a token bucket that may go into debt.
//!
//! The cost of a piece of work is known only after it (extents turn out equal or
//! zero), and nobody is to sleep while holding a lock. So work is charged
//! afterwards, and the next piece waits until the debt is paid. No clock and no
//! sleep in here: the caller says what time it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What may be saved up while nothing is sent, as time at the present rate.
const BURST: Duration = Duration::from_millis(250);

/// The limit of one engine. The rate is shared and may change at any time.
#[derive(Debug)]
pub struct Throttle {
    /// In bytes per second; 0 is no limit.
    rate: Arc<AtomicU64>,
    /// Bytes that may be sent now; negative is debt.
    tokens: f64,
    /// When `tokens` was right.
    at: Option<Duration>,
}

impl Throttle {
    /// Nothing saved up and no debt. `rate` is in bytes per second, 0 for no limit.
    pub fn new(rate: Arc<AtomicU64>) -> Self {
        Self {
            rate,
            tokens: 0.0,
            at: None,
        }
    }

    /// How many bytes to do at once at most, so that work comes in small steps
    /// under a low rate.
    pub fn quantum(&self) -> u64 {
        match self.rate.load(Ordering::Relaxed) {
            0 => u64::MAX,
            rate => (rate as f64 * BURST.as_secs_f64()) as u64,
        }
    }

    /// How long to wait, at the present rate, before anything more is sent. Ask
    /// again after waiting: the rate may have changed.
    pub fn delay(&mut self, now: Duration) -> Duration {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            (self.tokens, self.at) = (0.0, Some(now));
            return Duration::ZERO;
        }
        let rate = rate as f64;
        let passed = now.saturating_sub(self.at.unwrap_or(now));
        self.tokens = (self.tokens + passed.as_secs_f64() * rate).min(rate * BURST.as_secs_f64());
        self.at = Some(now);
        if self.tokens >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.tokens / rate).unwrap_or(Duration::MAX)
    }

    /// `bytes` were sent since the last [`Throttle::delay`].
    pub fn charge(&mut self, bytes: u64) {
        self.tokens -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn throttle(rate: u64) -> (Arc<AtomicU64>, Throttle) {
        let rate = Arc::new(AtomicU64::new(rate));
        (rate.clone(), Throttle::new(rate))
    }

    #[test]
    fn what_was_sent_is_waited_for_at_the_rate() {
        let (_, mut throttle) = throttle(1000);
        assert_eq!(throttle.delay(SECOND), Duration::ZERO);
        throttle.charge(3000);
        assert_eq!(throttle.delay(SECOND), 3 * SECOND);
        assert_eq!(throttle.delay(3 * SECOND), SECOND);
        assert_eq!(throttle.delay(4 * SECOND), Duration::ZERO);
    }

    #[test]
    fn an_idle_time_saves_up_no_more_than_a_short_burst() {
        let (_, mut throttle) = throttle(1000);
        throttle.delay(Duration::ZERO);
        assert_eq!(throttle.delay(3600 * SECOND), Duration::ZERO);
        throttle.charge(1250);
        assert_eq!(throttle.delay(3600 * SECOND), SECOND);
    }

    #[test]
    fn a_new_rate_counts_at_once_also_for_what_was_sent_before() {
        let (rate, mut throttle) = throttle(1000);
        throttle.delay(Duration::ZERO);
        throttle.charge(4000);
        rate.store(4000, Ordering::Relaxed);
        assert_eq!(throttle.delay(Duration::ZERO), SECOND);
        rate.store(0, Ordering::Relaxed);
        assert_eq!(throttle.delay(Duration::ZERO), Duration::ZERO);
        rate.store(1, Ordering::Relaxed);
        assert_eq!(
            throttle.delay(SECOND),
            Duration::ZERO,
            "the debt is forgiven"
        );
    }

    #[test]
    fn a_low_rate_makes_small_steps() {
        assert_eq!(throttle(1 << 20).1.quantum(), 256 << 10);
        assert_eq!(throttle(0).1.quantum(), u64::MAX);
    }

    #[test]
    fn a_clock_that_goes_back_and_huge_figures_do_no_harm() {
        let (_, mut throttle) = throttle(1);
        throttle.delay(SECOND);
        throttle.charge(u64::MAX);
        throttle.charge(u64::MAX);
        assert!(throttle.delay(Duration::ZERO) > SECOND);
    }
}
