//! The guest's memory as one queue sees it.
//!
//! The front-end may replace the map at any time. A queue adopts a new map
//! between two rounds only, and each request holds on to the map it was taken
//! under, so memory is unmapped only when no operation on it is in flight. The reference count of a map is private to its queue, so
//! holding on to it touches no cache line of another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

/// Nothing on the map records writes: the queues log what they know they wrote,
/// and what the kernel wrote for them (see `logging`).
pub type DirtyBitmap = ();
/// One map of the guest's memory.
pub type Memory = GuestMemoryMmap<DirtyBitmap>;
/// The map in force, replaced by the protocol handler.
pub type MemoryHandle = GuestMemoryAtomic<Memory>;

/// Counts what the front-end has set anew, the map or the log, so that a queue
/// sees a change with one load.
#[derive(Debug, Default)]
pub struct Epoch(AtomicU64);

impl Epoch {
    /// Something new is in force.
    pub fn advance(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// The newest.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// One queue's view.
pub struct View {
    handle: MemoryHandle,
    epoch: Arc<Epoch>,
    seen: u64,
    current: Arc<Memory>,
}

impl View {
    /// A view of the map in `handle`, whose changes `epoch` counts.
    pub fn new(handle: MemoryHandle, epoch: Arc<Epoch>) -> Self {
        Self {
            seen: epoch.now(),
            current: Arc::new((*handle.memory()).clone()),
            handle,
            epoch,
        }
    }

    /// Whether there is a newer map than the current one.
    pub fn is_stale(&self) -> bool {
        self.epoch.now() != self.seen
    }

    /// Adopts the newest map. Returns whether it is a new one.
    pub fn refresh(&mut self) -> bool {
        let now = self.epoch.now();
        if now == self.seen {
            return false;
        }
        self.seen = now;
        self.current = Arc::new((*self.handle.memory()).clone());
        true
    }

    /// The map as of the last [`refresh`](Self::refresh).
    pub fn current(&self) -> &Arc<Memory> {
        &self.current
    }
}
