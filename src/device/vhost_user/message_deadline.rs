//! How long a front-end may keep the next in line waiting while nothing complete comes
//! from it. One that has said something and is between two messages may be silent for ever.
//!
//! Used by the relay, which tells what has arrived and when. Has no clock of its own.

use std::time::{Duration, Instant};

use crate::device::error::DeviceError;

/// A front-end says something as soon as it is connected, and sends each message at once.
/// This is much longer than a busy host holds one up.
pub const MESSAGE_LIMIT: Duration = Duration::from_secs(10);

/// The limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// From when it is served until its first message is complete; `None`: nobody else is
    /// in line.
    pub first: Option<Duration>,
    /// From the first byte of a message that was seen to its last.
    pub message: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first: Some(MESSAGE_LIMIT),
            message: MESSAGE_LIMIT,
        }
    }
}

/// What one front-end owes, and since when.
#[derive(Debug)]
pub struct Owed {
    patience: Patience,
    /// Its first message.
    first: Option<Instant>,
    /// The rest of a message.
    rest: Option<Instant>,
}

impl Owed {
    /// It is served from `now` on. One that is `established` has said something before.
    pub fn new(patience: Patience, established: bool, now: Instant) -> Self {
        Self {
            patience,
            first: (!established).then_some(now),
            rest: None,
        }
    }

    /// A message has come as far as part of it.
    pub fn has_part(&mut self, now: Instant) {
        self.rest.get_or_insert(now);
    }

    /// A message has come as a whole.
    pub fn has_whole(&mut self) {
        (self.first, self.rest) = (None, None);
    }

    /// How long it may still be silent; `None`: for ever.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let left = |(since, limit): (Instant, Duration)| {
            let gone = now.saturating_duration_since(since);
            limit.saturating_sub(gone)
        };
        self.first().into_iter().chain(self.rest()).map(left).min()
    }

    /// What to say of it if nothing is left.
    pub fn overdue(&self, now: Instant) -> Option<DeviceError> {
        let over = |(since, limit): (Instant, Duration)| {
            let over = now.saturating_duration_since(since) >= limit;
            over.then_some(limit)
        };
        let silent = |limit| DeviceError::Silent { limit };
        let stalled = |limit| DeviceError::Stalled { limit };
        let first = self.first().and_then(over).map(silent);
        first.or_else(|| self.rest().and_then(over).map(stalled))
    }

    fn first(&self) -> Option<(Instant, Duration)> {
        self.first.zip(self.patience.first)
    }

    fn rest(&self) -> Option<(Instant, Duration)> {
        self.rest.map(|since| (since, self.patience.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        first: Some(Duration::from_secs(7)),
        message: Duration::from_secs(3),
    };

    fn seconds(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    /// Moments, in seconds.
    fn clock() -> impl Fn(u64) -> Instant {
        let begin = Instant::now();
        move |seconds| begin + Duration::from_secs(seconds)
    }

    fn is_silent(error: Option<DeviceError>) -> bool {
        matches!(error, Some(DeviceError::Silent { limit }) if Some(limit) == PATIENCE.first)
    }

    fn is_stalled(error: Option<DeviceError>) -> bool {
        matches!(error, Some(DeviceError::Stalled { limit }) if limit == PATIENCE.message)
    }

    #[test]
    fn a_new_front_end_owes_its_first_message_and_an_idle_one_nothing() {
        let at = clock();
        let mut owed = Owed::new(PATIENCE, false, at(0));
        assert_eq!(owed.left(at(2)), seconds(5));
        assert!(owed.overdue(at(6)).is_none());
        assert_eq!(owed.left(at(7)), seconds(0));
        assert!(is_silent(owed.overdue(at(7))));
        owed.has_whole();
        let established = Owed::new(PATIENCE, true, at(0));
        for idle in [owed, established] {
            assert_eq!(idle.left(at(100_000)), None);
            assert!(idle.overdue(at(100_000)).is_none());
        }
    }

    #[test]
    fn the_rest_of_a_message_is_due_from_its_first_part_on() {
        let at = clock();
        let mut owed = Owed::new(PATIENCE, true, at(0));
        for now in 50..53 {
            owed.has_part(at(now));
        }
        assert_eq!(owed.left(at(52)), seconds(1));
        assert!(owed.overdue(at(52)).is_none());
        assert!(is_stalled(owed.overdue(at(53))));
        owed.has_whole();
        owed.has_part(at(60));
        assert_eq!(owed.left(at(60)), seconds(3));
    }

    #[test]
    fn parts_of_a_first_message_win_no_time() {
        let at = clock();
        let mut owed = Owed::new(PATIENCE, false, at(0));
        owed.has_part(at(6));
        assert_eq!(owed.left(at(6)), seconds(1));
        assert!(is_silent(owed.overdue(at(7))));
    }

    #[test]
    fn a_front_end_whom_nobody_waits_behind_may_be_silent_but_not_stop_in_a_message() {
        let at = clock();
        let first = None;
        let mut owed = Owed::new(Patience { first, ..PATIENCE }, false, at(0));
        assert_eq!(owed.left(at(100_000)), None);
        owed.has_part(at(0));
        assert!(is_stalled(owed.overdue(at(3))));
    }
}
