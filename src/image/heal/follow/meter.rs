//! A rate of late, from a counter that is read now and then. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// The most readings kept, more than a window has at two a second.
const MAX_READINGS: usize = 64;

/// The growth of a counter over a window that slides.
#[derive(Debug)]
pub struct Meter {
    window: Duration,
    /// When it was read, and what it was.
    readings: VecDeque<(Duration, u64)>,
}

impl Meter {
    /// Nothing read yet.
    pub fn new(window: Duration) -> Self {
        Self {
            window,
            readings: VecDeque::new(),
        }
    }

    /// The counter is at `total` now; its growth per second over the window, or
    /// over the time since the first reading when that is shorter.
    pub fn read(&mut self, now: Duration, total: u64) -> u64 {
        self.readings.push_back((now, total));
        // One reading at the window's far end stays, to count from.
        let is_old = |reading: &(Duration, u64)| now.saturating_sub(reading.0) >= self.window;
        while self.readings.get(1).is_some_and(is_old) || self.readings.len() > MAX_READINGS {
            self.readings.pop_front();
        }
        // What it was at two moments it was at all between.
        let still = |one: &(Duration, u64), next: &(Duration, u64)| one.1 == next.1;
        let next = self.readings.get(1).copied();
        if let (Some(first), Some(next)) = (self.readings.front_mut(), next)
            && still(first, &next)
        {
            first.0 = first.0.max(next.0.min(now.saturating_sub(self.window)));
        }
        let (since, before) = self.readings.front().copied().unwrap_or((now, total));
        let time = now.saturating_sub(since).as_secs_f64();
        match time > 0.0 {
            true => (total.saturating_sub(before) as f64 / time) as u64,
            false => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(half_seconds: u64) -> Duration {
        Duration::from_millis(500 * half_seconds)
    }

    #[test]
    fn a_rate_is_that_of_the_window_only() {
        let mut meter = Meter::new(at(4));
        assert_eq!(meter.read(at(0), 1000), 0);
        assert_eq!(meter.read(at(1), 1500), 1000);
        assert_eq!(meter.read(at(2), 2000), 1000);
        for half in 3..6 {
            meter.read(at(half), 2000);
        }
        assert_eq!(meter.read(at(6), 2000), 0);
    }

    #[test]
    fn after_a_long_silence_the_rate_is_that_of_the_silence() {
        let mut meter = Meter::new(at(4));
        meter.read(at(0), 0);
        meter.read(at(1), 1000);
        assert_eq!(meter.read(at(201), 2000), 10);
    }

    #[test]
    fn after_a_rest_the_rate_is_that_of_the_window() {
        let mut meter = Meter::new(at(4));
        meter.read(at(0), 0);
        // Nothing was read for long, and nothing was counted.
        assert_eq!(meter.read(at(200), 0), 0);
        assert_eq!(meter.read(at(202), 1000), 500);
        assert_eq!(meter.read(at(204), 2000), 1000);
    }

    #[test]
    fn readings_at_one_moment_and_a_counter_that_falls_do_no_harm() {
        let mut meter = Meter::new(at(4));
        for total in [5, 9, 2] {
            assert_eq!(meter.read(at(7), total), 0);
        }
        assert_eq!(meter.read(at(6), 1), 0);
        for reading in 0..1000 {
            meter.read(at(7), reading);
        }
        assert!(meter.readings.len() <= MAX_READINGS);
    }
}
