//! How long to wait before the next attempt. Pure.

use std::time::Duration;

/// The first pause; doubled after each failure up to the longest.
const FIRST: Duration = Duration::from_millis(250);
/// The longest pause, by default.
pub const LONGEST: Duration = Duration::from_secs(4);
/// The longest pause when what was sent is refused each time: it costs its bandwidth.
pub const REFUSED: Duration = Duration::from_secs(60);

/// Pauses that grow from failure to failure.
#[derive(Debug)]
pub struct Retry(Duration);

impl Default for Retry {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Retry {
    /// Another attempt failed: the pause before the next, at most `longest`.
    pub fn pause(&mut self, longest: Duration) -> Duration {
        let pause = self.0.min(longest);
        self.0 = (pause * 2).min(longest);
        pause
    }

    /// An attempt succeeded, or the reason to fail has gone.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_anew_after_a_success() {
        let mut retry = Retry::default();
        let mut pauses = |longest| -> Vec<u128> {
            let pause = |_| retry.pause(longest).as_millis();
            (0..6).map(pause).collect()
        };
        assert_eq!(pauses(LONGEST), [250, 500, 1000, 2000, 4000, 4000]);
        let refused = [4000, 8000, 16_000, 32_000, 60_000, 60_000];
        assert_eq!(pauses(REFUSED), refused);
        assert_eq!(pauses(LONGEST), [4000; 6]);
        retry.reset();
        assert_eq!(retry.pause(LONGEST), FIRST);
    }
}
