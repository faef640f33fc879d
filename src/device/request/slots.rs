//! A queue's room for requests. Whoever takes a slot owes the guest an answer: the slot is free
//! again only in exchange for a [`Settled`], which [`Slot::answer`] and [`Slot::abandon`] alone
//! give. What a queue loses between the two is found when its ring stops
//! ([`Slots::first_taken`]).

use super::slot::{Settled, Slot};

/// The slots of one queue, each known by its token.
pub struct Slots {
    slots: Vec<Slot>,
    /// Tokens of those without a request.
    free: Vec<usize>,
}

// Called for each request, by code that is instantiated in other crates: hence `inline`.
impl Slots {
    /// As many empty ones as the queue has entries.
    pub fn new(size: u16) -> Self {
        Self {
            slots: (0..size).map(|_| Slot::new()).collect(),
            free: (0..usize::from(size)).rev().collect(),
        }
    }

    /// Is there room for another request?
    #[inline]
    pub fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// How many requests there are.
    #[inline]
    pub fn taken(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a slot for a request.
    #[inline]
    pub fn take(&mut self) -> Option<(usize, &mut Slot)> {
        let token = self.free.pop()?;
        Some((token, self.slots.get_mut(token)?))
    }

    /// The slot of a token.
    #[inline]
    pub fn get(&self, token: usize) -> Option<&Slot> {
        self.slots.get(token)
    }

    /// The slot of a token.
    #[inline]
    pub fn get_mut(&mut self, token: usize) -> Option<&mut Slot> {
        self.slots.get_mut(token)
    }

    /// The request in this slot is settled.
    #[inline]
    pub fn free(&mut self, token: usize, _: Settled) {
        self.free.push(token);
    }

    /// One that has a request. Looks at all of them.
    pub fn first_taken(&self) -> Option<usize> {
        (0..self.slots.len()).find(|token| !self.free.contains(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::request::decode::Status;

    #[test]
    fn a_request_that_is_not_settled_keeps_its_slot_and_is_found() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.first_taken(), None);
        let (lost, _) = slots.take().unwrap();
        let (answered, slot) = slots.take().unwrap();
        let (_, settled) = slot.answer(Status::Ok, None);
        slots.free(answered, settled);
        assert_eq!((slots.taken(), slots.first_taken()), (1, Some(lost)));
        let settled = slots.get_mut(lost).unwrap().abandon();
        slots.free(lost, settled);
        assert_eq!((slots.taken(), slots.first_taken()), (0, None));
    }
}
