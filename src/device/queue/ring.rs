//! A virtqueue's rings in the guest's memory, as the queue's thread uses them.
//!
//! Used elements are written as they come and published once per batch; the guest
//! is interrupted after that, so that the record of requests in flight can be
//! brought up to date in between. Whatever is written is logged if the front-end
//! asked for that. Everything read was written by the guest, and is checked.

use std::io;
use std::num::Wrapping;
use std::sync::MutexGuard;
use std::sync::atomic::{Ordering, fence};

use vhost_user_backend::VringState;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, GuestAddress, GuestMemory, Permissions};

use crate::device::guest::access;
use crate::device::guest::memory::{Memory, MemoryHandle};
use crate::device::shared_memory::inflight::RecordError;
use crate::device::shared_memory::log_switch::QueueLog;

/// Offset of the first entry behind flags and index, in both rings (virtio 1.2, 2.7.6).
const RING_HEADER: u64 = 4;
const INDEX: u64 = 2;
const USED_ELEMENT: u64 = 8;
const AVAIL_ELEMENT: u64 = 2;
const DESCRIPTOR: u64 = 16;
/// Bytes of the event index behind the last entry of both rings.
const EVENT: u64 = 2;

/// What makes a ring unusable until the front-end starts it anew.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The guest made more available than the ring holds.
    #[error("the available index {index} is too far from {next}")]
    AvailIndex {
        /// As read.
        index: u16,
        /// The next entry to take.
        next: u16,
    },
    /// Part of the ring is not in the guest's memory, or misaligned.
    #[error("the ring is not wholly in the guest's memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
    /// An address computed from the ring's overflows.
    #[error("the ring wraps around the end of the address space")]
    Address,
    /// The front-end wants the used ring logged where its log has no room.
    #[error("the log of dirty pages does not cover the used ring's address in it")]
    Log,
    /// The record of requests in flight makes no sense.
    #[error(transparent)]
    Record(RecordError),
}

/// Answers that the guest sees now, and may want to be interrupted for.
#[must_use]
pub struct Published {
    old: Wrapping<u16>,
    new: Wrapping<u16>,
}

/// A locked ring. What is pushed must be published before it is dropped.
pub struct Ring<'a> {
    state: MutexGuard<'a, VringState<MemoryHandle>>,
    /// One past the newest available entry that was looked at.
    taken_at: Wrapping<u16>,
    unpublished: Wrapping<u16>,
}

impl<'a> Ring<'a> {
    /// The ring whose state is locked by `state`.
    pub fn new(state: MutexGuard<'a, VringState<MemoryHandle>>) -> Self {
        Self {
            taken_at: Wrapping(state.get_queue().next_avail()),
            unpublished: Wrapping(0),
            state,
        }
    }

    /// Whether requests may be taken.
    pub fn running(&self) -> bool {
        self.state.is_enabled() && self.queue().ready()
    }

    /// The front-end must start it again.
    pub fn stop(&mut self) {
        self.state.get_queue_mut().set_ready(false);
    }

    /// Whether the whole ring is in the guest's memory.
    pub fn is_within(&self, memory: &Memory) -> bool {
        let queue = self.queue();
        let size = u64::from(queue.size());
        [
            (queue.desc_table(), DESCRIPTOR * size),
            (
                queue.avail_ring(),
                RING_HEADER + AVAIL_ELEMENT * size + EVENT,
            ),
            (queue.used_ring(), used_ring_len(queue.size())),
        ]
        .into_iter()
        .all(|(base, len)| {
            GuestMemory::check_range(memory, GuestAddress(base), len as usize, Permissions::Write)
        })
    }

    /// The descriptor table and its number of entries.
    pub fn descriptors(&self) -> (GuestAddress, u16) {
        (GuestAddress(self.queue().desc_table()), self.queue().size())
    }

    /// Reads how far the guest has made chains available.
    pub fn look(&mut self, memory: &Memory) -> Result<(), RingError> {
        let index = self.load(memory, self.queue().avail_ring(), INDEX, Ordering::Acquire)?;
        let next = self.queue().next_avail();
        if index.wrapping_sub(next) > self.queue().size() {
            return Err(RingError::AvailIndex { index, next });
        }
        self.taken_at = Wrapping(index);
        Ok(())
    }

    /// Takes the head of the next chain among those seen by [`look`](Self::look).
    pub fn take(&mut self, memory: &Memory) -> Result<Option<u16>, RingError> {
        let next = self.queue().next_avail();
        if next == self.taken_at.0 {
            return Ok(None);
        }
        let head = self.available(memory, next)?;
        self.state
            .get_queue_mut()
            .set_next_avail(next.wrapping_add(1));
        Ok(Some(head))
    }

    /// Whether there is something to publish.
    pub fn has_pushed(&self) -> bool {
        self.unpublished.0 != 0
    }

    /// Undoes the last [`take`](Self::take).
    pub fn untake(&mut self) {
        self.set_next_avail(self.queue().next_avail().wrapping_sub(1));
    }

    /// Takes from the available entry `index` on.
    pub fn set_next_avail(&mut self, index: u16) {
        self.state.get_queue_mut().set_next_avail(index);
        self.taken_at = Wrapping(index);
    }

    /// Whether the last entry taken from the available ring is `head`.
    pub fn took_last(&self, memory: &Memory, head: u16) -> Result<bool, RingError> {
        let last = self.next_avail().wrapping_sub(1);
        Ok(self.available(memory, last)? == head)
    }

    /// The available entry that is taken next.
    pub fn next_avail(&self) -> u16 {
        self.queue().next_avail()
    }

    fn available(&self, memory: &Memory, index: u16) -> Result<u16, RingError> {
        let entry = u64::from(index % self.queue().size().max(1));
        let offset = RING_HEADER + AVAIL_ELEMENT * entry;
        self.load(memory, self.queue().avail_ring(), offset, Ordering::Relaxed)
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.queue().size()
    }

    /// The used index, with what is not published yet.
    pub fn used_index(&self) -> u16 {
        self.queue().next_used()
    }

    /// Whether what `log` says of the used ring can be done.
    pub fn check_log(&self, log: &QueueLog) -> Result<(), RingError> {
        if log.covers_used(used_ring_len(self.queue().size())) {
            Ok(())
        } else {
            Err(RingError::Log)
        }
    }

    /// Writes a used element for the chain at `head`, into which `len` bytes
    /// were written. The guest does not see it before [`publish`](Self::publish).
    pub fn push_used(
        &mut self,
        memory: &Memory,
        log: &QueueLog,
        head: u16,
        len: u32,
    ) -> Result<(), RingError> {
        let next = self.queue().next_used();
        let entry = u64::from(next % self.queue().size().max(1));
        let offset = RING_HEADER + USED_ELEMENT * entry;
        let addr = at(self.queue().used_ring(), offset)?;
        // Two little-endian words: the chain's head, and the length.
        let element = u64::from(len) << 32 | u64::from(head);
        access::write(memory, addr, element.to_le()).map_err(RingError::Memory)?;
        log.mark_used(offset, USED_ELEMENT);
        self.state
            .get_queue_mut()
            .set_next_used(next.wrapping_add(1));
        self.unpublished += 1;
        Ok(())
    }

    /// Lets the guest see what was pushed. Returns what [`signal`](Self::signal)
    /// is owed for, if there was anything.
    pub fn publish(
        &mut self,
        memory: &Memory,
        log: &QueueLog,
    ) -> Result<Option<Published>, RingError> {
        if self.unpublished.0 == 0 {
            return Ok(None);
        }
        let new = Wrapping(self.queue().next_used());
        let old = new - std::mem::take(&mut self.unpublished);
        self.store_used(memory, log, INDEX, new.0, Ordering::Release)?;
        Ok(Some(Published { old, new }))
    }

    /// Interrupts the guest for what was published, if it wants that.
    pub fn signal(&self, memory: &Memory, published: &Published) -> Result<(), RingError> {
        // The guest may look at the used index after it has set what is read next.
        fence(Ordering::SeqCst);
        if self.wants_signal(memory, published)? {
            self.interrupt();
        }
        Ok(())
    }

    /// Interrupts the guest.
    pub fn interrupt(&self) {
        match self.state.signal_used_queue() {
            // So full of signals that the guest has one to come.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => log::warn!("cannot signal the guest: {error}"),
            Ok(()) => {}
        }
    }

    /// Virtio 1.2, 2.7.7.2 and 2.7.10.
    fn wants_signal(
        &self,
        memory: &Memory,
        &Published { old, new }: &Published,
    ) -> Result<bool, RingError> {
        let avail = self.queue().avail_ring();
        if self.queue().event_idx_enabled() {
            let offset = RING_HEADER + AVAIL_ELEMENT * u64::from(self.queue().size());
            let event = self.load(memory, avail, offset, Ordering::Relaxed)?;
            Ok(new - Wrapping(event) - Wrapping(1) < new - old)
        } else {
            let flags = self.load(memory, avail, 0, Ordering::Relaxed)?;
            Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
        }
    }

    /// Asks the guest to kick for the next chain, and tells whether there is one
    /// already, for which it will not.
    pub fn rearm(&mut self, memory: &Memory, log: &QueueLog) -> Result<bool, RingError> {
        let next = self.queue().next_avail();
        if self.queue().event_idx_enabled() {
            let offset = RING_HEADER + USED_ELEMENT * u64::from(self.queue().size());
            self.store_used(memory, log, offset, next, Ordering::Relaxed)?;
        } else {
            self.store_used(memory, log, 0, 0, Ordering::Relaxed)?;
        }
        // The guest must see the request for a kick before we look a last time.
        fence(Ordering::SeqCst);
        let index = self.load(memory, self.queue().avail_ring(), INDEX, Ordering::Acquire)?;
        Ok(index != next)
    }

    fn queue(&self) -> &Queue {
        self.state.get_queue()
    }

    fn load(
        &self,
        memory: &Memory,
        base: u64,
        offset: u64,
        order: Ordering,
    ) -> Result<u16, RingError> {
        access::load(memory, at(base, offset)?, order)
            .map(u16::from_le)
            .map_err(RingError::Memory)
    }

    /// Writes a half-word of the used ring.
    fn store_used(
        &self,
        memory: &Memory,
        log: &QueueLog,
        offset: u64,
        value: u16,
        order: Ordering,
    ) -> Result<(), RingError> {
        let to = at(self.queue().used_ring(), offset)?;
        access::store(memory, to, value.to_le(), order).map_err(RingError::Memory)?;
        log.mark_used(offset, size_of::<u16>() as u64);
        Ok(())
    }
}

fn used_ring_len(size: u16) -> u64 {
    RING_HEADER + USED_ELEMENT * u64::from(size) + EVENT
}

fn at(base: u64, offset: u64) -> Result<GuestAddress, RingError> {
    GuestAddress(base)
        .checked_add(offset)
        .ok_or(RingError::Address)
}
