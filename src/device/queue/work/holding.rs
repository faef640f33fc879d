//! Requests for which the local disk has no room: they are kept, and tried again until it has.
//!
//! The guest gets no error for a full disk, which its file system would take for a broken one. A
//! request that waits owes the gate nothing: before each try it is asked again. Only the
//! oldest is tried, after 100 ms and then less and less often, down to once a second, as each
//! try costs a full file system much; when it comes through, all others are tried. What comes
//! new from the ring is tried once: it may go where there is room already. Flushes and reads
//! go on; a flush promises nothing of a write that was not answered.
//!
//! When the ring stops, what waits is put back, where it can be, or stays in the front-end's
//! record of requests in flight, and is done when the ring starts again ([`super::Intake`]).
//! Without a record, or when nobody here is going to start it, it fails.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::device::gate::Gate;
use crate::device::queue::ring::{Ring, RingError};
use crate::device::request::decode::{Extent, Status};
use crate::device::request::outcome::io_error;
use crate::device::request::slot::Access;

use super::Queue;

/// The first pause before a request is tried again.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest one.
const LONGEST: Duration = Duration::from_secs(1);

/// Which requests of a queue wait, by their slots, and which of them is tried.
#[derive(Debug)]
pub struct Holding {
    /// Oldest first.
    waiting: VecDeque<usize>,
    tried: Option<usize>,
    pause: Duration,
    /// The pause is over.
    due: bool,
}

impl Holding {
    pub fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            tried: None,
            pause: SHORTEST,
            due: false,
        }
    }

    /// How many wait, but for the one that is tried.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// There is no room for the request in this slot.
    fn add(&mut self, token: usize) {
        if self.tried == Some(token) {
            self.tried = None;
            self.pause = (self.pause * 2).min(LONGEST);
            self.waiting.push_front(token);
        } else {
            self.waiting.push_back(token);
        }
    }

    /// After which pause the oldest is to be tried; `None`: none waits, or it is under way.
    fn pause(&self) -> Option<Duration> {
        (!self.waiting.is_empty() && self.tried.is_none()).then_some(self.pause)
    }

    /// The pause is over.
    pub fn pause_over(&mut self) {
        self.due = true;
    }

    /// The one to try, if it is time.
    fn take_oldest(&mut self) -> Option<usize> {
        if !std::mem::take(&mut self.due) || self.tried.is_some() {
            return None;
        }
        self.tried = self.waiting.pop_front();
        self.tried
    }

    /// Those that wait, but for the one that is tried, and are like that.
    fn take_if(&mut self, such: impl Fn(usize) -> bool) -> Vec<usize> {
        let (taken, left) = self.waiting.drain(..).partition(|&token| such(token));
        self.waiting = left;
        taken.into()
    }

    /// It could not be tried, for another reason than a full disk.
    fn put_back(&mut self, token: usize) {
        self.tried = None;
        self.waiting.push_front(token);
    }

    /// The request in this slot is answered. Returns those that are to be tried now: all, if
    /// this one shows that there is room.
    pub fn answered(&mut self, token: usize, status: Status) -> VecDeque<usize> {
        if self.tried != Some(token) {
            return VecDeque::new();
        }
        self.tried = None;
        match status {
            Status::Ok => {
                self.pause = SHORTEST;
                std::mem::take(&mut self.waiting)
            }
            _ => VecDeque::new(),
        }
    }
}

impl<G: Gate> Queue<G> {
    /// Keeps an admitted request for which there is no room.
    pub(super) fn hold(&mut self, token: usize, errno: i32) {
        let Some(slot) = self.slots.get_mut(token) else {
            return;
        };
        let mut first = Extent { offset: 0, len: 0 };
        if let Access::Change(extents) = slot.access() {
            for extent in extents {
                self.shared.gate.end_write(extent.offset, extent.len);
            }
            first = extents.first().copied().unwrap_or(first);
        }
        if slot.syncs() {
            // What it makes durable is not written yet.
            let _ = self.shared.gate.end_sync();
        }
        if slot.held_since.is_none() {
            slot.held_since = Some(Instant::now());
            self.shared.space.wait(&self.shared.disk, first, errno);
        }
        self.holding.add(token);
    }

    /// Tries the oldest one, if it is time, and sees to it that it will be.
    pub(super) fn try_held(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        if self.holding.due {
            self.fail_overdue(ring)?;
        }
        if let Some(token) = self.holding.take_oldest() {
            self.try_again(ring, token)?;
        }
        if let Some(pause) = self.holding.pause() {
            self.engine.set_alarm(pause);
        }
        Ok(())
    }

    /// Those that have waited too long.
    fn fail_overdue(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        let Some(limit) = self.shared.space.limit() else {
            return Ok(());
        };
        let slots = &self.slots;
        let since = |token: usize| slots.get(token).and_then(|slot| slot.held_since);
        let overdue = |token| since(token).is_some_and(|since| since.elapsed() >= limit);
        let tokens = self.holding.take_if(overdue);
        self.fail_all(ring, tokens, no_room)
    }

    fn try_again(&mut self, ring: &mut Ring<'_>, token: usize) -> Result<(), RingError> {
        self.admit_or(ring, token, |queue, _| queue.holding.put_back(token))
    }

    /// There is room again.
    pub(super) fn try_all(
        &mut self,
        ring: &mut Ring<'_>,
        tokens: VecDeque<usize>,
    ) -> Result<(), RingError> {
        let mut result = Ok(());
        for token in tokens {
            // None is forgotten for what befell another.
            let tried = self.try_again(ring, token);
            result = result.and(tried);
        }
        result
    }

    /// The ring stops, with nothing in the kernel any more. Returns those that wait here, which do
    /// no longer.
    pub(super) fn end_holding(&mut self) -> Vec<usize> {
        let holding = std::mem::replace(&mut self.holding, Holding::new());
        holding.waiting.into()
    }

    /// Nobody is going to do these.
    pub(super) fn fail_held(
        &mut self,
        ring: &mut Ring<'_>,
        mut tokens: Vec<usize>,
    ) -> Result<(), RingError> {
        tokens.sort_unstable_by_key(|&token| self.slots.get(token).map(|slot| slot.order));
        self.fail_all(ring, tokens, no_room)
    }

    /// Answers all of these so, though they were not done.
    pub(super) fn fail_all(
        &mut self,
        ring: &mut Ring<'_>,
        tokens: Vec<usize>,
        status: impl Fn() -> Status,
    ) -> Result<(), RingError> {
        let mut result = Ok(());
        for token in tokens {
            let finished = self.finish(ring, token, status(), false);
            result = result.and(finished);
        }
        result
    }
}

fn no_room() -> Status {
    io_error("a write that waited for room", libc::ENOSPC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_tried_less_and_less_often_and_the_others_when_it_came_through() {
        let mut holding = Holding::new();
        assert_eq!(holding.pause(), None);
        (1..=3).for_each(|token| holding.add(token));
        let mut pauses = Vec::new();
        for _ in 0..6 {
            pauses.push(holding.pause().unwrap_or_default().as_millis());
            assert_eq!(holding.take_oldest(), None, "too early");
            holding.pause_over();
            assert_eq!(holding.take_oldest(), Some(1));
            assert_eq!(holding.pause(), None, "it is under way");
            holding.add(1);
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        assert!(holding.answered(7, Status::Ok).is_empty(), "a new one");
        holding.pause_over();
        assert_eq!(holding.take_oldest(), Some(1));
        assert_eq!(holding.answered(1, Status::Ok), [2, 3]);
        assert_eq!(holding.pause(), None);
    }

    #[test]
    fn when_the_one_that_is_tried_fails_the_next_takes_its_place() {
        let mut holding = Holding::new();
        (1..=2).for_each(|token| holding.add(token));
        holding.pause_over();
        assert_eq!(holding.take_oldest(), Some(1));
        assert!(holding.answered(1, Status::IoError).is_empty());
        assert!(holding.pause().is_some());
        holding.pause_over();
        assert_eq!(holding.take_oldest(), Some(2));
    }
}
