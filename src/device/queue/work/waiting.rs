//! How a queue's thread waits.
//!
//! It sleeps in the queue's io_uring, which looks out for the guest's kick and for this
//! program's own wake-ups too: whatever comes wakes it without a detour, what is to be done next
//! is handed over by the call that sleeps, and nothing is read from the event fds. The event
//! loop that called [`Queue::work`] has no turn meanwhile, and need not: who changes what the
//! queue may do wakes it (`control`, `vring`).
//!
//! On kernels that count each sleep in io_uring as waiting for a disk an idle queue sleeps in
//! the event loop, and kicks are read.
//!
//! It never looks for what is to come instead of sleeping: see docs/measurements.md.

use super::{Next, Queue};
use crate::device::config::Idle;
use crate::device::gate::Gate;
use crate::device::io::engine::Event;
use crate::device::queue::control::CLOSED;
use crate::device::queue::vring::Vring;

/// What the queue's thread has to see to beside its requests.
pub struct Waiting {
    idle: Idle,
    /// The handler knows how to wake the thread.
    introduced: bool,
    /// Which event fd for kicks is looked out for.
    kick: u64,
    /// The guest kicked, and the kick may still be there to be read.
    kicked: bool,
}

impl Waiting {
    pub fn new(idle: Idle) -> Self {
        Self {
            idle,
            introduced: false,
            kick: 0,
            kicked: false,
        }
    }

    /// The engine has seen `event`.
    pub fn note(&mut self, event: Event) {
        self.kicked |= event == Event::Kick;
    }
}

/// Where the thread waits, or that it does not.
enum Place {
    Nowhere,
    Ring,
    EventLoop,
}

impl<G: Gate> Queue<G> {
    /// Does what there is to do after any wake-up, and sleeps where that is best. Returns, when
    /// that is the caller's event loop, whether the queue is closed, and will never have
    /// anything to do again.
    pub fn work(&mut self, vring: &Vring) -> bool {
        if !self.waiting.introduced {
            vring.introduce(&self.control);
            self.waiting.introduced = true;
        }
        loop {
            vring.give_way();
            let next = self.look(vring);
            if self.drained == CLOSED {
                return true;
            }
            if let Some(kick) = vring.changed_kick(&mut self.waiting.kick) {
                self.engine.set_kick(kick);
            }
            match self.place(&next, vring) {
                Place::Nowhere => {}
                Place::EventLoop => return false,
                Place::Ring => {
                    let slept = self.engine.sleep();
                    self.note_refusal(slept);
                }
            }
        }
    }

    fn place(&mut self, next: &Next, vring: &Vring) -> Place {
        let in_ring = self.waiting.idle == Idle::Soonest && self.engine.can_idle();
        let kicked = std::mem::take(&mut self.waiting.kicked);
        match next {
            Next::Round => Place::Nowhere,
            // Neither kicks nor completions are looked at.
            Next::WaitForFrontEnd => Place::EventLoop,
            // Left unread it would wake the event loop again. What it was for may have come
            // after the look.
            Next::Wait if kicked && !in_ring && vring.take_kick() => Place::Nowhere,
            Next::Wait if in_ring || self.engine.must_wake() => Place::Ring,
            Next::Wait => Place::EventLoop,
        }
    }
}
