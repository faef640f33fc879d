//! The cache mode: whether a completed write may still be in a volatile cache.
//!
//! Set by what the guest's driver negotiates and writes into the config space,
//! read for every write. The `writeback` byte outlives a connection, and with a
//! [keeper](CacheMode::keep_with) the process: a front-end that reconnects goes
//! on as if nothing had happened, and does not say it again. Where it must be
//! lost, it is write-back that is: a guest that believes in write-through never
//! flushes, while one that believes in write-back only waits longer.
//!
//! A reset of the guest keeps the byte, as QEMU keeps its own copy, which is what
//! the next driver reads. A front-end that asks for the byte before it negotiates
//! is new, and begins with the default.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};

/// Stores the byte for the next process, durably.
type Keeper = Box<dyn Fn(bool) -> io::Result<()> + Send + Sync>;

/// The cache mode of a device; write-through until a driver negotiates otherwise.
pub struct CacheMode {
    state: Mutex<CacheState>,
    write_through: AtomicBool,
    keeper: OnceLock<Keeper>,
}

struct CacheState {
    front_end: FrontEndAge,
    acked: u64,
    writeback: bool,
    /// What the next connection begins with.
    kept: bool,
}

/// What is known of the front-end that is connected.
#[derive(PartialEq)]
enum FrontEndAge {
    /// Nothing: it may go on where another connection ended.
    Unknown,
    /// It was told the default, and nothing happened since.
    New,
    /// It knows the byte as it is here.
    Settled,
}

impl CacheMode {
    /// The mode before any driver: the cache is volatile, and says so, but nobody
    /// has promised to flush it.
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(CacheState {
                front_end: FrontEndAge::Unknown,
                acked: 0,
                writeback: true,
                kept: true,
            }),
            write_through: AtomicBool::new(true),
            keeper: OnceLock::new(),
        }
    }

    /// Begins with `writeback`, as an earlier process kept it, and keeps what is set
    /// from now on by `keep`. Once, before the first connection.
    pub fn keep_with(
        &self,
        writeback: bool,
        keep: impl Fn(bool) -> io::Result<()> + Send + Sync + 'static,
    ) {
        let mut state = self.state();
        state.kept = writeback;
        state.writeback = writeback;
        // A second keeper would be one of the same file.
        let _ = self.keeper.set(Box::new(keep));
        self.update(&state);
    }

    /// Whether the guest may believe in a volatile cache: the `writeback` byte.
    pub fn writeback(&self) -> bool {
        self.state().writeback
    }

    /// A new connection.
    pub(super) fn connected(&self) {
        let mut state = self.state();
        state.front_end = FrontEndAge::Unknown;
        state.acked = 0;
        state.writeback = state.kept;
        self.update(&state);
    }

    /// The driver accepted these features. By now the front-end has heard the answer to
    /// whatever it set before, so write-back is kept here and not earlier.
    pub(super) fn negotiated(&self, acked: u64) {
        let mut state = self.state();
        state.acked = acked;
        if std::mem::replace(&mut state.front_end, FrontEndAge::Settled) == FrontEndAge::New {
            state.writeback = true;
        }
        if starts_write_through(acked) {
            state.writeback = false;
        }
        if state.writeback && !state.kept {
            match self.keep(true) {
                Ok(()) => state.kept = true,
                Err(error) => log::warn!(
                    "cannot keep that the guest's disk is write-back again; a new daemon will begin with write-through, \
                     which is safe and slower: {error}"
                ),
            }
        }
        self.update(&state);
    }

    /// The driver wrote the `writeback` byte.
    ///
    /// # Errors
    /// Write-through cannot be kept for the next process. It is not in force.
    pub(super) fn set_writeback(&self, writeback: bool) -> io::Result<()> {
        let mut state = self.state();
        if !writeback && state.kept {
            self.keep(false)?;
            state.kept = false;
        }
        state.front_end = FrontEndAge::Settled;
        state.writeback = writeback;
        self.update(&state);
        Ok(())
    }

    /// The `writeback` byte, as told to a front-end.
    pub(super) fn tell_writeback(&self) -> bool {
        let mut state = self.state();
        if state.front_end == FrontEndAge::Unknown {
            state.front_end = FrontEndAge::New;
        }
        state.front_end == FrontEndAge::New || state.writeback
    }

    /// The `writeback` byte as the front-end knows it, which has heard all answers.
    pub(super) fn known(&self) -> Option<bool> {
        let state = self.state();
        match state.front_end {
            FrontEndAge::Unknown => None,
            FrontEndAge::New => Some(true),
            FrontEndAge::Settled => Some(state.writeback),
        }
    }

    /// The front-end of the new connection is one that was paused, when this was
    /// [`known`](Self::known).
    pub(super) fn goes_on(&self, writeback: bool) {
        let mut state = self.state();
        state.front_end = FrontEndAge::Settled;
        state.writeback = writeback;
        self.update(&state);
    }

    /// Whether a write must be durable before it is answered.
    pub(super) fn write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }

    fn keep(&self, writeback: bool) -> io::Result<()> {
        self.keeper.get().map_or(Ok(()), |keep| keep(writeback))
    }

    fn update(&self, state: &CacheState) {
        let through = write_through(state.acked, state.writeback);
        self.write_through.store(through, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    use std::sync::Arc;

    const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
    const WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;

    /// A device whose process can end: the next one has what was kept.
    #[derive(Clone)]
    struct Host(Arc<Mutex<io::Result<bool>>>);

    impl Host {
        fn new() -> Self {
            Self(Arc::new(Mutex::new(Ok(true))))
        }

        fn process(&self) -> CacheMode {
            let (cache, kept) = (CacheMode::new(), self.0.clone());
            let begin = *kept.lock().unwrap().as_ref().unwrap();
            cache.keep_with(begin, move |writeback| {
                let mut kept = kept.lock().unwrap();
                match &mut *kept {
                    Ok(kept) => {
                        *kept = writeback;
                        Ok(())
                    }
                    Err(error) => Err(error.kind().into()),
                }
            });
            cache.connected();
            cache
        }

        /// After a front-end that was connected already has come back.
        fn restarted(&self) -> CacheMode {
            let cache = self.process();
            cache.negotiated(FLUSH | WCE);
            cache
        }
    }

    #[test]
    fn a_driver_that_cannot_flush_gets_durable_writes() {
        let cache = CacheMode::new();
        assert!(cache.write_through());
        cache.negotiated(FLUSH);
        assert!(!cache.write_through());
        cache.connected();
        assert!(cache.write_through());
        cache.negotiated(WCE);
        assert!(cache.write_through() && !cache.tell_writeback());
    }

    #[test]
    fn a_driver_can_switch_to_durable_writes_and_back() {
        let cache = CacheMode::new();
        cache.negotiated(FLUSH | WCE);
        assert!(!cache.write_through());
        cache.set_writeback(false).unwrap();
        assert!(cache.write_through());
        cache.set_writeback(true).unwrap();
        assert!(!cache.write_through());
    }

    #[test]
    fn the_mode_that_a_driver_has_set_outlives_its_connection() {
        let cache = CacheMode::new();
        cache.negotiated(FLUSH | WCE);
        cache.set_writeback(false).unwrap();
        cache.connected();
        cache.negotiated(FLUSH | WCE);
        assert!(cache.write_through() && !cache.tell_writeback());
    }

    #[test]
    fn a_new_front_end_begins_with_the_default() {
        let cache = CacheMode::new();
        cache.negotiated(FLUSH | WCE);
        cache.set_writeback(false).unwrap();
        cache.connected();
        assert!(cache.tell_writeback());
        cache.negotiated(FLUSH | WCE);
        assert!(!cache.write_through());
    }

    #[test]
    fn who_only_asks_for_the_mode_does_not_change_it() {
        let cache = CacheMode::new();
        cache.negotiated(FLUSH | WCE);
        cache.set_writeback(false).unwrap();
        cache.connected();
        assert!(cache.tell_writeback());
        // It was somebody who looked; now the guest's front-end is back.
        cache.connected();
        cache.negotiated(FLUSH | WCE);
        assert!(cache.write_through());
    }

    #[test]
    fn a_mode_that_is_set_before_the_driver_negotiates_holds() {
        let cache = CacheMode::new();
        assert!(cache.tell_writeback());
        cache.set_writeback(false).unwrap();
        assert!(!cache.tell_writeback());
        cache.negotiated(FLUSH | WCE);
        assert!(cache.write_through());
    }

    #[test]
    fn write_through_outlives_the_process_and_a_reset_of_the_guest() {
        let host = Host::new();
        let cache = host.restarted();
        cache.set_writeback(false).unwrap();
        cache.negotiated(FLUSH | WCE);
        assert!(cache.write_through());
        let cache = host.restarted();
        assert!(cache.write_through());
        assert!(host.restarted().write_through());
    }

    #[test]
    fn write_back_is_kept_only_when_the_front_end_has_surely_heard_of_it() {
        let host = Host::new();
        host.restarted().set_writeback(false).unwrap();
        let cache = host.restarted();
        cache.set_writeback(true).unwrap();
        assert!(!cache.write_through());
        // Killed before its answer was read.
        let cache = host.restarted();
        assert!(cache.write_through());
        cache.set_writeback(true).unwrap();
        cache.negotiated(FLUSH | WCE);
        assert!(!host.restarted().write_through());
    }

    #[test]
    fn a_new_front_end_forgets_what_was_kept() {
        let host = Host::new();
        host.restarted().set_writeback(false).unwrap();
        let cache = host.process();
        assert!(cache.tell_writeback());
        cache.negotiated(FLUSH | WCE);
        assert!(!cache.write_through());
        assert!(!host.restarted().write_through());
    }

    #[test]
    fn write_through_that_cannot_be_kept_is_refused() {
        let host = Host::new();
        let cache = host.restarted();
        *host.0.lock().unwrap() = Err(io::ErrorKind::StorageFull.into());
        assert!(cache.set_writeback(false).is_err());
        assert!(cache.writeback() && !cache.write_through());
    }

    /// As an upgrade does: paused there, and going on with another process here.
    fn moved(from: &CacheMode, host: &Host) -> CacheMode {
        let (known, to) = (from.known(), host.process());
        if let Some(writeback) = known {
            to.goes_on(writeback);
        }
        to
    }

    #[test]
    fn a_front_end_that_goes_on_elsewhere_has_the_mode_that_it_knows() {
        let host = Host::new();
        let cache = host.restarted();
        cache.set_writeback(false).unwrap();
        let cache = moved(&cache, &host);
        cache.negotiated(FLUSH | WCE);
        assert!(cache.write_through() && !cache.tell_writeback());
        // What a crash would forget: it has heard of this already.
        cache.set_writeback(true).unwrap();
        let cache = moved(&cache, &host);
        cache.negotiated(FLUSH | WCE);
        assert!(!cache.write_through() && cache.tell_writeback());
        assert!(!host.restarted().write_through());
    }

    #[test]
    fn a_new_front_end_that_goes_on_elsewhere_stays_new_until_it_negotiates() {
        let host = Host::new();
        host.restarted().set_writeback(false).unwrap();
        let cache = host.process();
        assert!(cache.tell_writeback());
        let cache = moved(&cache, &host);
        assert!(host.restarted().write_through(), "it has not used the disk");
        cache.negotiated(FLUSH | WCE);
        assert!(!cache.write_through());
        assert_eq!(host.process().known(), None);
    }
}
