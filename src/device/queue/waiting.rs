//! How a queue's thread waits: it looks for a while, then it sleeps.
//!
//! While operations are in flight it sleeps in the queue's io_uring, which looks out for
//! the thread's other events too; without any, in the event loop that called
//! [`Queue::work`]. While it looks, the guest is not asked to kick. How long it looks is
//! `polling`'s decision.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::access;
use super::super::control::CLOSED;
use super::super::gate::Gate;
use super::super::polling::Await;
use super::super::ring::Available;
use super::super::vring::Vring;
use super::{Next, Queue};

/// With more in flight than this it is not looked for completions: the disk is busy
/// while the thread is woken, and many are answered at once.
const LOOKED_FOR: usize = 4;

impl<G: Gate> Queue<G> {
    /// Does what there is to do after any wake-up, until nothing is in flight and nothing
    /// to be taken. Returns whether the queue is closed, and will never have anything to
    /// do again.
    pub fn work(&mut self, vring: &Vring) -> bool {
        // The caller has been told of them.
        self.engine.forget_events();
        if let Some(left) = self.left.take() {
            self.polling.came(Await::Request, left.elapsed());
        }
        loop {
            vring.give_way();
            let next = self.look(vring);
            if self.drained == CLOSED {
                return true;
            }
            if std::mem::take(&mut self.events) {
                if self.see_to_events(vring) {
                    // What the event was for may have come after the look.
                    continue;
                }
                // The caller's turn, who is to come back at once: the guest has not been
                // asked to kick, and nobody else looks at what is in flight.
                self.control.wake();
                return false;
            }
            let goes_on = match next {
                Next::Round => true,
                Next::Wait(available) => self.wait(vring, available),
            };
            if !goes_on {
                return false;
            }
        }
    }

    /// Returns whether something may have come; if not, it is the caller's turn to wait.
    fn wait(&mut self, vring: &Vring, available: Option<Available>) -> bool {
        let what = match self.engine.in_flight() {
            0 => Await::Request,
            _ => Await::Completion,
        };
        let begin = Instant::now();
        if self.is_worth_looking(available) {
            let window = self.polling.window(what, begin);
            if !window.is_zero() {
                if !self.submit() {
                    return true;
                }
                if self.poll(begin, window, available) {
                    self.polling.came(what, begin.elapsed());
                    return true;
                }
            }
        }
        if available.is_some() && self.ask_for_kick(vring) {
            return true;
        }
        if what == Await::Request {
            self.left = Some(begin);
            return false;
        }
        let slept = self.engine.sleep(self.control.events());
        self.polling.came(what, begin.elapsed());
        self.note_refusal(slept);
        true
    }

    fn is_worth_looking(&self, available: Option<Available>) -> bool {
        match self.engine.in_flight() {
            0 => available.is_some(),
            in_flight => in_flight <= LOOKED_FOR,
        }
    }

    /// Looks from `begin` on, for `window` at most. Returns whether something came.
    fn poll(&mut self, begin: Instant, window: Duration, available: Option<Available>) -> bool {
        let mut before = begin;
        loop {
            if self.has_news(available) {
                return true;
            }
            let now = Instant::now();
            if self.polling.looked(now - before, now) || now - begin >= window {
                return false;
            }
            before = now;
            std::hint::spin_loop();
        }
    }

    /// Whether there is something to do, as far as memory tells.
    fn has_news(&mut self, available: Option<Available>) -> bool {
        let made_available = available.is_some_and(|Available { at, taken }| {
            let index = access::load::<u16>(self.view.current(), at, Ordering::Relaxed);
            // What is wrong with it is found in the next round.
            index.map(u16::from_le).ok() != Some(taken)
        });
        made_available
            || self.engine.has_completed()
            || self.control.drain_asked(self.drained).is_some()
            || self.view.is_stale()
            || self.log.is_stale()
    }

    /// Asks the guest to kick for the next request, and tells whether there is one.
    fn ask_for_kick(&mut self, vring: &Vring) -> bool {
        let mut ring = vring.open();
        if !ring.running() {
            return true;
        }
        ring.rearm(self.view.current(), self.log.current())
            .unwrap_or_else(|error| {
                self.break_ring(&error);
                true
            })
    }

    /// Takes the event that woke the thread in its sleep, if it is the guest's kick or the
    /// queue's own wake-up. Another one is for the caller.
    fn see_to_events(&mut self, vring: &Vring) -> bool {
        vring.take_kick() || self.control.acknowledge_wake()
    }
}
