//! Which request a queue takes next: first those that were in flight when the
//! device was lost, in their order, then those in the available ring.
//!
//! Owns the queue's record of requests in flight, if the front-end keeps one, and
//! brings it up to date as the specification says. Read at the start of the
//! ring, not when the front-end hands it over: only then are the ring's indices
//! in place. Whether a request may be submitted is the gate's answer, for those
//! taken again as for new ones.

use std::collections::VecDeque;
use std::sync::Arc;

use super::ring::{Ring, RingError};
use crate::device::guest::memory::Memory;
use crate::device::shared_memory::inflight::{Inflight, Opened, QueueCells, Record};

/// One queue's, for one connection.
pub struct Intake {
    index: usize,
    inflight: Arc<Inflight>,
    started: bool,
    record: Option<Record<QueueCells>>,
    /// Heads of chains to be done again, oldest first.
    again: VecDeque<u16>,
    /// Whether the last one taken was one of those.
    last_was_again: bool,
    /// Where the ring stopped with requests left in the record: its next available entry and
    /// its used index.
    left_at: Option<(u16, u16)>,
}

impl Intake {
    /// Of queue `index`, whose record, if any, is in `inflight`.
    pub fn new(index: usize, inflight: Arc<Inflight>) -> Self {
        Self {
            index,
            inflight,
            started: false,
            record: None,
            again: VecDeque::new(),
            last_was_again: false,
            left_at: None,
        }
    }

    /// How many wait to be done again, the last one taken, if it `waits`, among them.
    pub fn unrepeated(&self, waits: bool) -> usize {
        self.again.len() + usize::from(waits && self.last_was_again)
    }

    /// Whether the ring has been started since it was stopped.
    pub fn started(&self) -> bool {
        self.started
    }

    /// The ring is seen to run.
    pub fn starting(&mut self) {
        self.started = true;
    }

    /// The ring starts. Finds out what there is to be done again.
    ///
    /// # Errors
    /// [`RingError::Record`]: no request can be taken without losing or repeating others.
    pub fn start(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        let Some((cells, entries)) = self.inflight.queue(self.index) else {
            return Ok(());
        };
        let used = ring.used_index();
        let stopped_at = self.left_at.take();
        if stopped_at.is_some_and(|at| at != (ring.next_avail(), used)) {
            log::info!(
                "queue {}: another driver has begun; what the one before left is forgotten",
                self.index
            );
            Record::forget(&cells, entries, used);
        }
        let Opened { record, again } =
            Record::open(cells, entries, ring.size(), used).map_err(RingError::Record)?;
        self.record = Some(record);
        if let Some(again) = again {
            self.resume(ring, again);
        }
        Ok(())
    }

    /// Everything taken has been answered or is in the record. What front-ends say
    /// of a ring whose device died is the used index, as if nothing had been taken.
    fn resume(&mut self, ring: &mut Ring<'_>, again: Vec<u16>) {
        if !again.is_empty() {
            log::info!(
                "queue {}: doing {} requests again that were in flight",
                self.index,
                again.len()
            );
        }
        // At most the size of a ring, which is a u16.
        ring.set_next_avail(ring.used_index().wrapping_add(again.len() as u16));
        self.again = again.into();
        // The last answers may have been published without an interrupt.
        ring.interrupt();
    }

    /// Takes the head of the next chain.
    ///
    /// # Errors
    /// As of [`Ring::take`].
    pub fn take(&mut self, ring: &mut Ring<'_>, memory: &Memory) -> Result<Option<u16>, RingError> {
        let again = self.again.pop_front();
        self.last_was_again = again.is_some();
        if again.is_some() {
            return Ok(again);
        }
        let head = ring.take(memory)?;
        if let (Some(head), Some(record)) = (head, &mut self.record) {
            record.taken(head);
        }
        Ok(head)
    }

    /// Puts the chain at `head` back, the last one taken.
    pub fn put_back(&mut self, ring: &mut Ring<'_>, head: u16) {
        if self.last_was_again {
            self.again.push_front(head);
            return;
        }
        self.untake(ring, head);
    }

    /// Whether the last one taken was in flight when the device was lost.
    pub fn last_was_again(&self) -> bool {
        self.last_was_again
    }

    /// Puts the chain at `head` back if it is the last that the ring gave, and nothing is to be done
    /// again before it. Returns whether it did.
    pub fn put_back_last(&mut self, ring: &mut Ring<'_>, memory: &Memory, head: u16) -> bool {
        let last = self.again.is_empty() && ring.took_last(memory, head).unwrap_or(false);
        if last {
            self.untake(ring, head);
        }
        last
    }

    fn untake(&mut self, ring: &mut Ring<'_>, head: u16) {
        if let Some(record) = &mut self.record {
            record.untaken(head);
        }
        ring.untake();
    }

    /// Whether what is not answered outlives the ring's stop.
    pub fn has_record(&self) -> bool {
        self.record.is_some()
    }

    /// These were taken, oldest first, and are not answered: they are to be done again.
    pub fn give_up(&mut self, heads: Vec<u16>) {
        for head in heads.into_iter().rev() {
            self.again.push_front(head);
        }
    }

    /// The ring stops. What is to be done again goes back into the available ring as far as
    /// it is what was taken last; the rest stays in the record, where the
    /// next start finds it. (The used index tells a front-end where to begin, so
    /// the available ring cannot hold a choice of earlier requests.)
    pub fn stop(&mut self, ring: &mut Ring<'_>, memory: &Memory) {
        while let Some(&head) = self.again.back() {
            if !ring.took_last(memory, head).unwrap_or(false) {
                return;
            }
            self.again.pop_back();
            self.untake(ring, head);
        }
    }

    /// The chain at `head` has a used element.
    pub fn answered(&mut self, head: u16) {
        if let Some(record) = &mut self.record {
            record.answered(head);
        }
    }

    /// The ring's used index is published.
    pub fn published(&mut self, ring: &Ring<'_>) {
        if let Some(record) = &mut self.record {
            record.published(ring.used_index());
        }
    }

    /// The ring is stopped and drained.
    pub fn stopped(&mut self, ring: &Ring<'_>) {
        self.left_at = (!self.again.is_empty()).then(|| (ring.next_avail(), ring.used_index()));
        if !self.again.is_empty() {
            log::warn!(
                "queue {}: stopped with {} requests that wait to be done again; they stay in the \
                 front-end's record, and are lost to one that does not hand it on",
                self.index,
                self.again.len()
            );
        }
        self.again.clear();
        self.record = None;
        self.started = false;
    }
}
