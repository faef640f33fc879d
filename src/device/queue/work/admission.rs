//! Which requests may go on now: the gate is asked, and who must wait is parked.

use super::Queue;
use crate::device::gate::{Admission, Gate};
use crate::device::queue::ring::{Ring, RingError};
use crate::device::request::decode::Status;
use crate::device::request::slot::{Access, Slot};

impl<G: Gate> Queue<G> {
    /// Asks the gate, and starts, parks or refuses the request.
    pub(super) fn admit(&mut self, ring: &mut Ring<'_>, token: usize) -> Result<(), RingError> {
        self.admit_or(ring, token, |queue, alone| match alone {
            true => {
                let again = queue.intake.last_was_again();
                queue.alone.add(token, again);
            }
            false => queue.parked = Some(token),
        })
    }

    /// Asks the gate, and starts or refuses the request; one that has to wait goes where
    /// `waits` puts it, which is told whether it waits alone.
    pub(super) fn admit_or(
        &mut self,
        ring: &mut Ring<'_>,
        token: usize,
        waits: impl FnOnce(&mut Self, bool),
    ) -> Result<(), RingError> {
        let Some(slot) = self.slots.get_mut(token) else {
            return Ok(());
        };
        match ask(&*self.shared.gate, slot) {
            Admission::Go => {
                let next = slot.next(&self.shared.disk, &mut self.pool);
                self.go_on(ring, token, next, true)
            }
            answer @ (Admission::Wait | Admission::WaitAlone) => {
                waits(self, answer == Admission::WaitAlone);
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

    /// Once the kernel is done with the others, lets go of what waits: puts back the parked request,
    /// which was the last taken; what waits alone, or for room, see there.
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
        // What stays in the record is done when the ring starts again.
        let kept = !self.broken && !self.shared.gate.must_answer() && self.intake.has_record();
        let mut tokens = self.end_holding();
        if kept {
            tokens.extend(self.alone.take());
            self.leave_in_record(tokens);
        } else {
            self.fail_held(ring, tokens)?;
            self.end_alone(ring)?;
        }
        if self.engine.in_flight() > 0 || self.alone.len() > 0 {
            return Ok(());
        }
        self.answer_lost(ring)?;
        self.intake.stop(ring, self.view.current());
        Ok(())
    }

    /// Whoever has the record next does these again.
    fn leave_in_record(&mut self, mut tokens: Vec<usize>) {
        tokens.sort_unstable_by_key(|&token| self.slots.get(token).map(|slot| slot.order));
        let heads = tokens.iter().filter_map(|&token| self.abandon(token));
        let heads = heads.collect();
        self.intake.give_up(heads);
    }

    /// Frees the slot of a request that is not answered here; returns the head of its chain.
    pub(super) fn abandon(&mut self, token: usize) -> Option<u16> {
        let slot = self.slots.get_mut(token)?;
        if slot.held_since.is_some() {
            self.shared.space.wait_over();
        }
        let (head, settled) = (slot.head(), slot.abandon());
        self.slots.free(token, settled);
        Some(head)
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
