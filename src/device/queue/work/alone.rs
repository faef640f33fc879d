//! Requests that wait at the gate alone ([`Admission::WaitAlone`]): the queue goes on with others, and
//! asks for these again in every round. So also when the gate's event fd has fired, which wakes the queue.
//!
//! Others that were taken later may be answered before them; requests that are in flight together have
//! no order, so a guest that needs one waits for the answer first. A request that waits owes
//! the gate nothing.
//!
//! When the ring stops they are let go like those that wait for room: left in the front-end's record
//! of requests in flight, from where those that were taken last go back into the available ring.
//! Without a record, or when nobody here is going to start the ring again, those taken last go
//! back all the same, and the others are waited for: for [`LONGEST_STOP`] at most, as the front-end
//! stands still meanwhile; then they fail.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

#[cfg(doc)]
use crate::device::gate::Admission;
use crate::device::gate::Gate;
use crate::device::queue::ring::{Ring, RingError};
use crate::device::request::decode::Status;

use super::Queue;

/// How long a ring that stops waits for the gate.
const LONGEST_STOP: Duration = Duration::from_secs(5);

/// One of them.
#[derive(Clone, Copy, Debug)]
struct Waiter {
    /// Its slot.
    token: usize,
    /// It was in flight when a device was lost.
    again: bool,
}

/// Those of a queue, oldest first.
#[derive(Debug, Default)]
pub struct Alone {
    waiters: VecDeque<Waiter>,
    /// Since when a stop waits for them.
    stopping: Option<Instant>,
}

impl Alone {
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// How many of them were in flight when a device was lost.
    pub fn unrepeated(&self) -> usize {
        self.waiters.iter().filter(|waiter| waiter.again).count()
    }

    /// The request in this slot has to wait, the last one taken.
    pub fn add(&mut self, token: usize, again: bool) {
        self.waiters.push_back(Waiter { token, again });
    }

    /// The slots of all, which wait here no longer.
    pub fn take(&mut self) -> impl Iterator<Item = usize> {
        let waiters = std::mem::take(self).waiters;
        waiters.into_iter().map(|waiter| waiter.token)
    }

    /// Whether none waits, so that a stop has nothing to wait for.
    fn is_over(&mut self) -> bool {
        let over = self.waiters.is_empty();
        if over {
            self.stopping = None;
        }
        over
    }

    /// How long a stop that waits for them goes on waiting.
    fn patience(&mut self) -> Duration {
        let since = *self.stopping.get_or_insert_with(Instant::now);
        LONGEST_STOP.saturating_sub(since.elapsed())
    }
}

impl<G: Gate> Queue<G> {
    /// Asks the gate for all of them again.
    pub(super) fn retry_alone(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        let mut result = Ok(());
        for waiter in std::mem::take(&mut self.alone.waiters) {
            // One that now is to wait with all others has let others pass already.
            let asked = self.admit_or(ring, waiter.token, |queue, _| {
                queue.alone.waiters.push_back(waiter);
            });
            // None is forgotten for what befell another.
            result = result.and(asked);
        }
        result
    }

    /// The ring stops, with nothing in the kernel any more, and nothing that waits may be left in a
    /// record. Goes on until none waits.
    pub(super) fn end_alone(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        if !self.broken {
            self.intake.stop(ring, self.view.current());
            while let Some(&Waiter { token, .. }) = self.alone.waiters.back() {
                let head = self.slots.get(token).map(|slot| slot.head());
                let memory = self.view.current();
                if !head.is_some_and(|head| self.intake.put_back_last(ring, memory, head)) {
                    break;
                }
                self.alone.waiters.pop_back();
                self.abandon(token);
            }
            self.retry_alone(ring)?;
        }
        if self.alone.is_over() {
            return Ok(());
        }
        let patience = self.alone.patience();
        if !self.broken && !patience.is_zero() {
            self.engine.set_alarm(patience);
            return Ok(());
        }
        let waiters: Vec<_> = self.alone.take().collect();
        log::error!(
            "queue {}: stopped with {} writes that the gate let wait for {LONGEST_STOP:?}; they fail",
            self.index,
            waiters.len()
        );
        self.fail_all(ring, waiters, || Status::IoError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stop_waits_as_long_as_the_one_before() {
        let mut alone = Alone::default();
        alone.add(1, false);
        assert!(!alone.is_over());
        assert!(alone.patience() > Duration::ZERO);
        alone.stopping = Instant::now().checked_sub(LONGEST_STOP);
        assert_eq!(alone.patience(), Duration::ZERO);
        // The gate has let it go.
        alone.waiters.clear();
        assert!(alone.is_over());
        alone.add(2, false);
        assert!(alone.patience() > Duration::ZERO);
    }
}
