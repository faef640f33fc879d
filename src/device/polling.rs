//! How long a queue's thread looks for the next event before it sleeps.
//!
//! To sleep and be woken takes longer than many disks do; to look all the time takes a
//! processor. So a thread looks for as long as events have lately been coming, up to a
//! limit: it learns from each wait. Whoever has nothing to do, or a disk that is slower
//! than the limit, soon does not look at all. Pure: times come from the caller.

use std::time::{Duration, Instant};

/// The first window after one that was of no use.
const FIRST: Duration = Duration::from_micros(8);
/// Two looks lie this far apart only if somebody else had the processor meanwhile.
const TAKEN_AWAY: Duration = Duration::from_micros(50);
/// For so long nobody looks then: the processor is needed.
const HOLD_OFF: Duration = Duration::from_millis(10);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Await {
    /// The disk has nothing to do: a request.
    Request,
    /// An operation's end, or a request.
    Completion,
}

/// One queue's.
#[derive(Debug)]
pub struct Polling {
    limit: Duration,
    request: Duration,
    completion: Duration,
    held_off_until: Option<Instant>,
}

impl Polling {
    /// Looks for at most `limit`; never, if that is zero.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            request: FIRST.min(limit),
            completion: FIRST.min(limit),
            held_off_until: None,
        }
    }

    /// How long to look from `now` on.
    pub fn window(&mut self, what: Await, now: Instant) -> Duration {
        if self.held_off_until.is_some_and(|until| now < until) {
            return Duration::ZERO;
        }
        self.held_off_until = None;
        *self.of(what)
    }

    /// It came `after` so long, whether it was looked or slept for.
    pub fn came(&mut self, what: Await, after: Duration) {
        let limit = self.limit;
        let window = self.of(what);
        if after > limit {
            *window /= 2;
            if *window < FIRST {
                *window = Duration::ZERO;
            }
        } else if after > *window {
            *window = (*window * 2).max(FIRST).max(after).min(limit);
        }
    }

    /// Two looks, the later at `now`, were `apart`. Returns whether to stop looking.
    pub fn looked(&mut self, apart: Duration, now: Instant) -> bool {
        let taken_away = apart >= TAKEN_AWAY;
        if taken_away {
            self.held_off_until = Some(now + HOLD_OFF);
        }
        taken_away
    }

    fn of(&mut self, what: Await) -> &mut Duration {
        match what {
            Await::Request => &mut self.request,
            Await::Completion => &mut self.completion,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn it_looks_for_as_long_as_events_take_to_come() {
        let mut polling = Polling::new(LIMIT);
        let now = Instant::now();
        polling.came(Await::Completion, us(60));
        assert!(polling.window(Await::Completion, now) >= us(60));
        assert_eq!(polling.window(Await::Request, now), FIRST);
    }

    #[test]
    fn a_slow_disk_and_an_idle_guest_are_soon_not_looked_for() {
        let mut polling = Polling::new(LIMIT);
        let now = Instant::now();
        for what in [Await::Request, Await::Completion] {
            polling.came(what, LIMIT);
            assert_eq!(polling.window(what, now), LIMIT);
            let looks = (1..10).find(|_| {
                polling.came(what, LIMIT + us(1));
                polling.window(what, now).is_zero()
            });
            assert!(looks.is_some(), "{what:?} is looked for in vain for ever");
            polling.came(what, us(3));
            assert!(
                polling.window(what, now) >= us(3),
                "{what:?} is faster again"
            );
        }
    }

    #[test]
    fn nobody_looks_for_a_while_after_the_processor_was_taken_away() {
        let mut polling = Polling::new(LIMIT);
        let now = Instant::now();
        assert!(!polling.looked(us(1), now));
        assert!(polling.looked(TAKEN_AWAY, now));
        assert_eq!(polling.window(Await::Request, now), Duration::ZERO);
        assert_eq!(polling.window(Await::Request, now + HOLD_OFF), FIRST);
    }

    #[test]
    fn a_limit_of_zero_never_looks() {
        let mut polling = Polling::new(Duration::ZERO);
        for after in [us(0), us(1), us(100)] {
            polling.came(Await::Request, after);
            let window = polling.window(Await::Request, Instant::now());
            assert_eq!(window, Duration::ZERO);
        }
    }
}
