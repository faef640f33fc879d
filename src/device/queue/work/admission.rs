//! Which requests may go on now: the gate is asked, and who must wait is parked.

use super::Queue;
use crate::device::gate::{Admission, Gate};
use crate::device::queue::ring::{Ring, RingError};
use crate::device::request::decode::Status;
use crate::device::request::slot::{Access, Slot};

impl<G: Gate> Queue<G> {
    /// Asks the gate, and starts, parks or refuses the request.
    pub(super) fn admit(&mut self, ring: &mut Ring<'_>, token: usize) -> Result<(), RingError> {
        self.admit_or(ring, token, |queue| queue.parked = Some(token))
    }

    /// Asks the gate, and starts or refuses the request; one that has to wait goes where
    /// `waits` puts it.
    pub(super) fn admit_or(
        &mut self,
        ring: &mut Ring<'_>,
        token: usize,
        waits: impl FnOnce(&mut Self),
    ) -> Result<(), RingError> {
        let Some(slot) = self.slots.get_mut(token) else {
            return Ok(());
        };
        match ask(&*self.shared.gate, slot) {
            Admission::Go => {
                let next = slot.next(&self.shared.disk, &mut self.pool);
                self.go_on(ring, token, next, true)
            }
            Admission::Wait => {
                waits(self);
                Ok(())
            }
            Admission::Refuse => self.finish(ring, token, Status::IoError, false),
        }
    }

    pub(super) fn retry_parked(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        match self.parked.take() {
            Some(token) => self.admit(ring, token),
            None => Ok(()),
        }
    }

    /// Once the kernel is done with the others, puts back what waits: the parked request,
    /// which was the last taken, and what there is no room for.
    pub(super) fn put_back(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        if self.engine.in_flight() > 0 {
            return Ok(());
        }
        if let Some(token) = self.parked.take()
            && let Some(slot) = self.slots.get_mut(token)
        {
            self.intake.put_back(ring, slot.head());
            let settled = slot.abandon();
            self.slots.free(token, settled);
        }
        self.let_go_of_held(ring)?;
        self.answer_lost(ring)?;
        self.intake.stop(ring, self.view.current());
        Ok(())
    }

    /// The ring stops, and every request is answered or given back by now. One that is not
    /// was lost in this program: its guest gets an error instead of silence, and the ring can
    /// stop. The map keeps what it may have changed.
    fn answer_lost(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        while self.slots.taken() > 0
            && let Some(token) = self.slots.first_taken()
        {
            log::error!(
                "queue {}: a request was lost on its way and fails; this is a fault of bypass-blk, please report it",
                self.index
            );
            debug_assert!(false, "a request was neither answered nor given back");
            self.finish(ring, token, Status::IoError, false)?;
        }
        Ok(())
    }
}

/// Whoever changes several extents gets them all or none; what must be durable besides is
/// asked for last, as it never waits.
fn ask<G: Gate>(gate: &G, slot: &Slot) -> Admission {
    match slot.access() {
        Access::Read => gate.admit_read(),
        Access::Nothing => Admission::Go,
        Access::Sync => gate.begin_sync(),
        Access::Change(extents) => {
            for (index, extent) in extents.iter().enumerate() {
                let answer = gate.begin_write(extent.offset, extent.len);
                if answer != Admission::Go {
                    for begun in extents.iter().take(index) {
                        gate.end_write(begun.offset, begun.len);
                    }
                    return answer;
                }
            }
            let answer = match slot.syncs() {
                true => gate.begin_sync(),
                false => Admission::Go,
            };
            if answer != Admission::Go {
                for begun in extents {
                    gate.end_write(begun.offset, begun.len);
                }
            }
            answer
        }
    }
}
