//! A virtqueue: the state that the protocol handler sets, and the ring as the
//! queue's thread uses it.
//!
//! [`Vring`] is what `vhost-user-backend` asks for; the stock state inside is
//! only its store. The queue's thread locks it once per wake-up ([`Vring::open`])
//! and works on the open [`Ring`]: used elements are written as they come and
//! published and signalled once per batch. The lock is shared with the protocol
//! handler alone, never between queues.

use std::fs::File;
use std::io;
use std::num::Wrapping;
use std::sync::MutexGuard;
use std::sync::atomic::{Ordering, fence};

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions};

use super::memory::{Memory, MemoryHandle};

/// Offset of the first entry behind flags and index, in both rings (virtio 1.2, 2.7.6).
const RING_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;
const AVAIL_ELEMENT: u64 = 2;
const DESCRIPTOR: u64 = 16;
/// Bytes of the event index behind the last entry of both rings.
const EVENT: u64 = 2;

/// One virtqueue, shared by the protocol handler and the queue's thread.
#[derive(Clone)]
pub struct Vring(VringMutex<MemoryHandle>);

impl Vring {
    /// Locks the ring for a batch.
    pub fn open(&self) -> Ring<'_> {
        let state = self.0.get_mut();
        Ring {
            taken_at: Wrapping(state.get_queue().next_avail()),
            unpublished: Wrapping(0),
            state,
        }
    }

    fn running(&self) -> bool {
        self.0.get_ref().get_queue().ready()
    }
}

impl<'a> VringStateGuard<'a, MemoryHandle> for Vring {
    type G = MutexGuard<'a, VringState<MemoryHandle>>;
}

impl<'a> VringStateMutGuard<'a, MemoryHandle> for Vring {
    type G = MutexGuard<'a, VringState<MemoryHandle>>;
}

impl VringT<MemoryHandle> for Vring {
    fn new(mem: MemoryHandle, max_queue_size: u16) -> Result<Self, QueueError> {
        VringMutex::new(mem, max_queue_size).map(Self)
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<MemoryHandle>> {
        self.0.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<MemoryHandle>> {
        self.0.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.0.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.0.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.0.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.0.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.0.set_queue_info(desc, avail, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.queue_next_avail()
    }

    /// Only while the ring is stopped: a running one knows better.
    fn set_queue_next_avail(&self, base: u16) {
        if self.running() {
            log::warn!("the front-end set the base of a running ring: ignored");
        } else {
            self.0.set_queue_next_avail(base);
        }
    }

    /// The handler reads the used index from the guest's memory and sets it here,
    /// in two steps. On a running ring (QEMU sends the addresses again when
    /// migration logging starts) used elements may have been published between
    /// the two, so only a stopped ring takes it.
    fn set_queue_next_used(&self, idx: u16) {
        if !self.running() {
            self.0.set_queue_next_used(idx);
        }
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.0.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.0.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.0.set_queue_ready(ready);
    }

    /// A second kick on a running ring replaces the first: not being ready makes
    /// the handler register it.
    fn set_kick(&self, file: Option<File>) {
        if let Some(file) = &file {
            never_wait_for(file);
            self.0.set_queue_ready(false);
        }
        self.0.set_kick(file);
    }

    /// Never an error, which would silently end the thread: a kick that cannot be
    /// read is still a reason to look at the ring.
    fn read_kick(&self) -> io::Result<bool> {
        match self.0.read_kick() {
            Ok(enabled) => Ok(enabled),
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    log::warn!("cannot read the kick of a ring: {error}");
                }
                Ok(self.0.get_ref().is_enabled())
            }
        }
    }

    /// An event fd that holds all it can hold must not stop the queue's thread.
    fn set_call(&self, file: Option<File>) {
        file.iter().for_each(never_wait_for);
        self.0.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.0.set_err(file);
    }
}

/// Reading and writing the front-end's event fd never waits for the front-end.
fn never_wait_for(event: &File) {
    if let Err(error) = rustix::io::ioctl_fionbio(event, true) {
        log::warn!("cannot make an event fd of a ring non-blocking: {error}");
    }
}

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
}

/// A locked ring. What is pushed must be published before it is dropped.
pub struct Ring<'a> {
    state: MutexGuard<'a, VringState<MemoryHandle>>,
    /// One past the newest available entry that was looked at.
    taken_at: Wrapping<u16>,
    unpublished: Wrapping<u16>,
}

impl Ring<'_> {
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
            (queue.used_ring(), RING_HEADER + USED_ELEMENT * size + EVENT),
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
        let index: u16 = self.load(memory, self.queue().avail_ring(), 2, Ordering::Acquire)?;
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
        let entry = u64::from(next % self.queue().size().max(1));
        let offset = RING_HEADER + AVAIL_ELEMENT * entry;
        let head = self.load(memory, self.queue().avail_ring(), offset, Ordering::Relaxed)?;
        self.state
            .get_queue_mut()
            .set_next_avail(next.wrapping_add(1));
        Ok(Some(head))
    }

    /// Undoes the last [`take`](Self::take).
    pub fn untake(&mut self) {
        let next = self.queue().next_avail();
        self.state
            .get_queue_mut()
            .set_next_avail(next.wrapping_sub(1));
    }

    /// Writes a used element for the chain at `head`, into which `len` bytes
    /// were written. The guest does not see it before [`publish`](Self::publish).
    pub fn push_used(&mut self, memory: &Memory, head: u16, len: u32) -> Result<(), RingError> {
        let next = self.queue().next_used();
        let entry = u64::from(next % self.queue().size().max(1));
        let addr = at(self.queue().used_ring(), RING_HEADER + USED_ELEMENT * entry)?;
        // Two little-endian words: the chain's head, and the length.
        let element = u64::from(len) << 32 | u64::from(head);
        memory
            .write_obj(element.to_le(), addr)
            .map_err(RingError::Memory)?;
        self.state
            .get_queue_mut()
            .set_next_used(next.wrapping_add(1));
        self.unpublished += 1;
        Ok(())
    }

    /// Lets the guest see what was pushed, and interrupts it if it wants that.
    pub fn publish(&mut self, memory: &Memory) -> Result<(), RingError> {
        if self.unpublished.0 == 0 {
            return Ok(());
        }
        let new = Wrapping(self.queue().next_used());
        let old = new - std::mem::take(&mut self.unpublished);
        self.store(
            memory,
            self.queue().used_ring(),
            2,
            new.0,
            Ordering::Release,
        )?;
        // The guest may look at the used index after it has set what is read next.
        fence(Ordering::SeqCst);
        if self.wants_signal(memory, old, new)? {
            match self.state.signal_used_queue() {
                // So full of signals that the guest has one to come.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => log::warn!("cannot signal the guest: {error}"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Virtio 1.2, 2.7.7.2 and 2.7.10.
    fn wants_signal(
        &self,
        memory: &Memory,
        old: Wrapping<u16>,
        new: Wrapping<u16>,
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
    pub fn rearm(&mut self, memory: &Memory) -> Result<bool, RingError> {
        let next = self.queue().next_avail();
        let used = self.queue().used_ring();
        if self.queue().event_idx_enabled() {
            let offset = RING_HEADER + USED_ELEMENT * u64::from(self.queue().size());
            self.store(memory, used, offset, next, Ordering::Relaxed)?;
        } else {
            self.store(memory, used, 0, 0, Ordering::Relaxed)?;
        }
        // The guest must see the request for a kick before we look a last time.
        fence(Ordering::SeqCst);
        let index = self.load(memory, self.queue().avail_ring(), 2, Ordering::Acquire)?;
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
        memory
            .load(at(base, offset)?, order)
            .map(u16::from_le)
            .map_err(RingError::Memory)
    }

    fn store(
        &self,
        memory: &Memory,
        base: u64,
        offset: u64,
        value: u16,
        order: Ordering,
    ) -> Result<(), RingError> {
        memory
            .store(value.to_le(), at(base, offset)?, order)
            .map_err(RingError::Memory)
    }
}

fn at(base: u64, offset: u64) -> Result<GuestAddress, RingError> {
    GuestAddress(base)
        .checked_add(offset)
        .ok_or(RingError::Address)
}

#[cfg(test)]
mod tests;
