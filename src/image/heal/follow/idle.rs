//! How long copies must be equal and untouched before their marks are removed.
//!
//! Each mark costs the guest's next write a round trip to every brick. A guest that
//! writes again right after is asked less and less often. Pure: the caller says
//! what time it is.

use std::time::Duration;

/// The shortest idle time.
const SHORTEST: Duration = Duration::from_millis(250);
/// The longest.
const LONGEST: Duration = Duration::from_secs(10);
/// Marks that are back within this time need not have gone.
const SOON: Duration = Duration::from_secs(10);
/// Without such marks for this long, the idle time is the shortest again.
const CALM: Duration = Duration::from_secs(60);

/// The idle time, as the guest's habits have made it.
#[derive(Debug)]
pub struct IdleTime {
    time: Duration,
    /// When marks were removed that have not come back.
    unmarked: Option<Duration>,
    /// When marks were last back too soon.
    too_soon: Option<Duration>,
}

impl Default for IdleTime {
    fn default() -> Self {
        Self {
            time: SHORTEST,
            unmarked: None,
            too_soon: None,
        }
    }
}

impl IdleTime {
    /// How long to wait at present.
    pub fn at(&mut self, now: Duration) -> Duration {
        let calm = |since: Duration| now.saturating_sub(since) >= CALM;
        if self.too_soon.is_some_and(calm) {
            (self.time, self.too_soon) = (SHORTEST, None);
        }
        self.time
    }

    /// Marks were removed.
    pub fn unmarked(&mut self, now: Duration) {
        self.unmarked = Some(now);
    }

    /// Marks that were removed are back.
    pub fn marked_again(&mut self, now: Duration) {
        let since = self.unmarked.take();
        if since.is_some_and(|since| now.saturating_sub(since) <= SOON) {
            self.time = (self.at(now) * 2).min(LONGEST);
            self.too_soon = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Marks go and are back after `pause`.
    fn round(idle: &mut IdleTime, now: &mut Duration, pause: Duration) -> u128 {
        idle.unmarked(*now);
        *now += pause;
        idle.marked_again(*now);
        idle.at(*now).as_millis()
    }

    #[test]
    fn doubles_each_time_that_marks_are_back_soon_up_to_a_limit() {
        let (mut idle, mut now) = (IdleTime::default(), SECOND);
        let times: Vec<_> = (0..7).map(|_| round(&mut idle, &mut now, SECOND)).collect();
        assert_eq!(times, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
    }

    #[test]
    fn a_guest_that_rests_long_enough_changes_nothing() {
        let (mut idle, mut now) = (IdleTime::default(), SECOND);
        assert_eq!(round(&mut idle, &mut now, SOON + SECOND), 250);
        assert_eq!(round(&mut idle, &mut now, SOON), 500);
        assert_eq!(round(&mut idle, &mut now, SOON + SECOND), 500);
    }

    #[test]
    fn falls_back_after_a_minute_without_and_no_sooner() {
        let (mut idle, mut now) = (IdleTime::default(), SECOND);
        round(&mut idle, &mut now, SECOND);
        round(&mut idle, &mut now, SECOND);
        assert_eq!(idle.at(now + CALM - SECOND).as_millis(), 1000);
        assert_eq!(idle.at(now + CALM).as_millis(), 250);
    }

    #[test]
    fn marks_that_were_never_removed_do_not_count() {
        let mut idle = IdleTime::default();
        idle.marked_again(SECOND);
        idle.unmarked(SECOND);
        idle.marked_again(SECOND);
        idle.marked_again(SECOND);
        assert_eq!(idle.at(SECOND).as_millis(), 500);
    }

    proptest! {
        #[test]
        fn stays_within_its_limits(events in prop::collection::vec((0u8..3, 0u64..100_000), 0..200)) {
            let mut idle = IdleTime::default();
            let mut now = Duration::ZERO;
            for (event, pause) in events {
                now += Duration::from_millis(pause);
                match event {
                    0 => idle.unmarked(now),
                    1 => idle.marked_again(now),
                    _ => {}
                }
                prop_assert!((SHORTEST..=LONGEST).contains(&idle.at(now)));
            }
        }
    }
}
