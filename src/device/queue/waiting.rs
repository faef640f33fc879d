//! How a queue's thread waits.
//!
//! While operations are in flight it sleeps in the queue's io_uring, which looks out for
//! the thread's other events too: what the disk completes then wakes it without a detour,
//! and what is to be done next is handed over by the call that sleeps. Without any it
//! sleeps in the event loop that called [`Queue::work`]: in io_uring the kernel would count
//! an idle guest as waiting for its disk.
//!
//! It never looks for what is to come instead of sleeping: see docs/measurements.md.

use super::super::control::CLOSED;
use super::super::gate::Gate;
use super::super::vring::Vring;
use super::{Next, Queue};

impl<G: Gate> Queue<G> {
    /// Does what there is to do after any wake-up, until nothing is in flight and nothing
    /// to be taken. Returns whether the queue is closed, and will never have anything to
    /// do again.
    pub fn work(&mut self, vring: &Vring) -> bool {
        // The caller has been told of them.
        self.engine.forget_events();
        loop {
            vring.give_way();
            let next = self.look(vring);
            if self.drained == CLOSED {
                return true;
            }
            if std::mem::take(&mut self.events) {
                if vring.take_kick() || self.control.acknowledge_wake() {
                    // What the event was for may have come after the look.
                    continue;
                }
                // The caller's turn, who is to come back at once: nobody else looks at what
                // is in flight.
                self.control.wake();
                return false;
            }
            match next {
                Next::Round => {}
                Next::WaitForFrontEnd => return false,
                Next::Wait if self.engine.in_flight() == 0 => return false,
                Next::Wait => {
                    let slept = self.engine.sleep(self.control.events());
                    self.note_refusal(slept);
                }
            }
        }
    }
}
