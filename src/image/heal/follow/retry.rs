//! How long to wait before the next attempt. Pure.

use std::time::Duration;

/// The first pause; doubled after each failure up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(4);

/// Pauses that grow from failure to failure.
#[derive(Debug)]
pub struct Retry(Duration);

impl Default for Retry {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Retry {
    /// Another attempt failed: the pause before the next.
    pub fn pause(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST);
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
        let mut pauses = || -> Vec<u128> { (0..6).map(|_| retry.pause().as_millis()).collect() };
        assert_eq!(pauses(), [250, 500, 1000, 2000, 4000, 4000]);
        retry.reset();
        assert_eq!(retry.pause(), FIRST);
    }
}
