//! How far the healing of a peer is: counters that only grow, for a status line, a
//! rate and an estimate. What is still to do is told by the dirty map.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counters of one peer, shared by its engines one after the other and by
/// whoever shows them.
#[derive(Debug, Default)]
pub struct Progress {
    read: AtomicU64,
    sent: AtomicU64,
    zeroed: AtomicU64,
    compared: AtomicU64,
    cleared: AtomicU64,
    again: AtomicU64,
}

/// The counters at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Bytes read from the local copy.
    pub bytes_read: u64,
    /// Bytes that were sent and written.
    pub bytes_sent: u64,
    /// Bytes made zero without sending them.
    pub bytes_zeroed: u64,
    /// Bytes whose checksums were compared.
    pub bytes_compared: u64,
    /// Extents that are clean and durable at the peer.
    pub extents_cleared: u64,
    /// Extents that were written to while they were copied, and stay dirty.
    pub extents_again: u64,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, more: Self) {
        self.bytes_read += more.bytes_read;
        self.bytes_sent += more.bytes_sent;
        self.bytes_zeroed += more.bytes_zeroed;
        self.bytes_compared += more.bytes_compared;
        self.extents_cleared += more.extents_cleared;
        self.extents_again += more.extents_again;
    }
}

impl Progress {
    /// The counters now.
    pub fn figures(&self) -> Figures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            bytes_read: get(&self.read),
            bytes_sent: get(&self.sent),
            bytes_zeroed: get(&self.zeroed),
            bytes_compared: get(&self.compared),
            extents_cleared: get(&self.cleared),
            extents_again: get(&self.again),
        }
    }

    pub(super) fn add(&self, more: Figures) {
        let add = |counter: &AtomicU64, count| counter.fetch_add(count, Ordering::Relaxed);
        add(&self.read, more.bytes_read);
        add(&self.sent, more.bytes_sent);
        add(&self.zeroed, more.bytes_zeroed);
        add(&self.compared, more.bytes_compared);
        add(&self.cleared, more.extents_cleared);
        add(&self.again, more.extents_again);
    }
}
