//! The cache mode: whether a completed write may still be in a volatile cache.
//!
//! Set by what the guest's driver negotiates and writes into the config space,
//! read for every write. The `writeback` byte outlives a connection, because a
//! front-end that reconnects remembers it and does not say it again. One that
//! asks for it before it negotiates is new, and begins with the default.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};

/// The cache mode of a device; write-through until a driver negotiates otherwise.
#[derive(Debug)]
pub struct CacheMode {
    acked: AtomicU64,
    writeback: AtomicBool,
    write_through: AtomicBool,
}

impl CacheMode {
    /// The mode before any driver: the cache is volatile, and says so, but nobody
    /// has promised to flush it.
    pub fn new() -> Self {
        Self {
            acked: AtomicU64::new(0),
            writeback: AtomicBool::new(true),
            write_through: AtomicBool::new(true),
        }
    }

    /// The driver accepted these features; 0 for a new connection.
    pub fn negotiated(&self, acked: u64) {
        self.acked.store(acked, Ordering::Relaxed);
        if starts_write_through(acked) {
            self.writeback.store(false, Ordering::Relaxed);
        }
        self.update();
    }

    /// The driver wrote the `writeback` byte.
    pub fn set_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Relaxed);
        self.update();
    }

    /// The `writeback` byte, as told to a front-end.
    pub fn tell_writeback(&self) -> bool {
        if self.acked.load(Ordering::Relaxed) == 0 {
            self.set_writeback(true);
        }
        self.writeback.load(Ordering::Relaxed)
    }

    /// The `writeback` byte as it stands.
    pub fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// Whether a write must be durable before it is answered.
    pub fn write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }

    fn update(&self) {
        let writeback = self.writeback.load(Ordering::Relaxed);
        let through = write_through(self.acked.load(Ordering::Relaxed), writeback);
        self.write_through.store(through, Ordering::Relaxed);
    }
}

fn has(acked: u64, bit: u32) -> bool {
    acked & (1 << bit) != 0
}

/// Virtio 1.2, 5.2.6.2: the driver asked for it by clearing `writeback`, or it
/// cannot ask for a flush.
fn write_through(acked: u64, writeback: bool) -> bool {
    if has(acked, VIRTIO_BLK_F_CONFIG_WCE) {
        !writeback
    } else {
        !has(acked, VIRTIO_BLK_F_FLUSH)
    }
}

/// Virtio 1.2, 5.2.5.2: with a driver that can change the cache mode but not
/// flush, `writeback` starts at 0.
fn starts_write_through(acked: u64) -> bool {
    has(acked, VIRTIO_BLK_F_CONFIG_WCE) && !has(acked, VIRTIO_BLK_F_FLUSH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
    const WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;

    #[test]
    fn a_driver_that_cannot_flush_gets_durable_writes() {
        let cache = CacheMode::new();
        assert!(cache.write_through());
        cache.negotiated(FLUSH);
        assert!(!cache.write_through());
        cache.negotiated(0);
        assert!(cache.write_through());
        cache.negotiated(WCE);
        assert!(cache.write_through() && !cache.tell_writeback());
    }

    #[test]
    fn a_driver_can_switch_to_durable_writes_and_back() {
        let cache = CacheMode::new();
        cache.negotiated(FLUSH | WCE);
        assert!(!cache.write_through());
        cache.set_writeback(false);
        assert!(cache.write_through());
        cache.set_writeback(true);
        assert!(!cache.write_through());
    }

    #[test]
    fn the_mode_that_a_driver_has_set_outlives_its_connection() {
        let cache = CacheMode::new();
        cache.negotiated(FLUSH | WCE);
        cache.set_writeback(false);
        cache.negotiated(0);
        cache.negotiated(FLUSH | WCE);
        assert!(cache.write_through() && !cache.tell_writeback());
    }
    #[test]
    fn a_new_front_end_begins_with_the_default() {
        let cache = CacheMode::new();
        cache.negotiated(FLUSH | WCE);
        cache.set_writeback(false);
        cache.negotiated(0);
        assert!(cache.tell_writeback());
        cache.negotiated(FLUSH | WCE);
        assert!(!cache.write_through());
    }
}
