//! Copying more slowly when the guest suffers from it. Pure: told what was seen,
//! says how fast to copy.
//!
//! The guest's latency is compared with a *baseline*, what it is without copying.
//! That is learned from intervals in which nothing was copied, and, where there are
//! none, from those in which copying was as slow as it ever gets: so a baseline from
//! before the guest did something else is forgotten in the end, and copying is
//! never held back for long for what it does not cause. With no baseline at all,
//! copying is slowed down at first, to learn one.

use std::time::Duration;

/// Copying is never held back below this, in bytes per second.
pub const FLOOR: u64 = 4 << 20;
/// A cap above this is none.
const CEILING: u64 = 1 << 40;
/// The guest suffers when its latency is above the baseline by this factor …
const FACTOR: f64 = 1.5;
/// … and by this many seconds: what a disk does by itself is no reason.
const MARGIN: f64 = 200e-6;
/// The weight of one interval without copying in the baseline.
const QUIET_WEIGHT: f64 = 0.25;
/// The weight of one in which copying was at its slowest.
const SLOW_WEIGHT: f64 = 1.0 / 16.0;
/// The growth in an interval: this part of the cap and [`STEP`].
const GROWTH: u64 = 16;
/// In bytes per second.
const STEP: u64 = 256 << 10;

/// What was seen between two looks, about half a second apart.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// The guest's mean latency; `None`: it asked for nothing.
    pub latency: Option<Duration>,
    /// Was anything copied?
    pub copied: bool,
    /// How fast, in bytes per second.
    pub rate: u64,
}

/// How fast to copy.
#[derive(Debug)]
pub struct Backoff {
    /// The guest's latency without copying, in seconds.
    baseline: Option<f64>,
    /// In bytes per second; [`u64::MAX`] is none.
    cap: u64,
    /// Nothing is known of where copying begins to hurt: grow quickly.
    searching: bool,
    /// The guest asked for nothing in the last interval.
    idle: bool,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            baseline: None,
            cap: u64::MAX,
            searching: false,
            idle: true,
        }
    }
}

impl Backoff {
    /// How fast to copy, in bytes per second, 0 for no limit, given the operator's
    /// limit, 0 for none.
    pub fn rate(&self, limit: u64) -> u64 {
        let none_is_most = |rate: u64| if rate == 0 { u64::MAX } else { rate };
        let cap = if self.idle { u64::MAX } else { self.cap };
        match cap.min(none_is_most(limit)) {
            u64::MAX => 0,
            rate => rate,
        }
    }

    /// Takes an interval into account, during which the cap was in force.
    pub fn observe(&mut self, interval: &Interval) {
        self.idle = interval.latency.is_none();
        let Some(latency) = interval.latency.map(|latency| latency.as_secs_f64()) else {
            return self.grow();
        };
        let slowest = self.cap <= FLOOR;
        match self.baseline {
            _ if !interval.copied => self.learn(latency, QUIET_WEIGHT),
            None if !slowest => {
                (self.cap, self.searching) = (FLOOR, true);
                return;
            }
            Some(baseline) if latency < baseline => self.learn(latency, QUIET_WEIGHT),
            _ if slowest => self.learn(latency, SLOW_WEIGHT),
            _ => {}
        }
        if interval.copied && self.suffers(latency) {
            let rate = self.cap.min(interval.rate);
            (self.cap, self.searching) = ((rate / 2).max(FLOOR), false);
        } else {
            self.grow();
        }
    }

    fn suffers(&self, latency: f64) -> bool {
        let above = |baseline: f64| latency > (baseline * FACTOR).max(baseline + MARGIN);
        self.baseline.is_some_and(above)
    }

    fn learn(&mut self, latency: f64, weight: f64) {
        let baseline = self.baseline.unwrap_or(latency);
        self.baseline = Some(baseline + (latency - baseline) * weight);
    }

    fn grow(&mut self) {
        let more = match self.searching {
            true => self.cap,
            false => self.cap / GROWTH + STEP,
        };
        self.cap = self.cap.saturating_add(more);
        if self.cap > CEILING {
            (self.cap, self.searching) = (u64::MAX, false);
        }
    }
}

#[cfg(test)]
#[path = "backoff/tests.rs"]
mod tests;
