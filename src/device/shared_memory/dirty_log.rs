//! The log of guest pages that were written (`VHOST_USER_SET_LOG_BASE`), in
//! memory shared with the front-end, which reads and clears it while it migrates
//! the guest.
//!
//! One bit per page of 4 KiB of guest-physical addresses (vhost-user
//! specification, "Migration"). Whoever writes marks: first the write, then the
//! mark, so that a page whose bit was cleared too early gets its bit again. What
//! is written and when is `log_switch`'s and the queue's business.

use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, VolatileMemory};

use super::mapping::{MapError, Mapping, map};
use crate::device::guest::memory::Memory;

/// Bytes of guest memory per bit (`VHOST_LOG_PAGE`).
const PAGE: u64 = 4096;
const PAGES_PER_BYTE: u64 = 8;

/// Why a log is refused.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The memory that came with it does not do.
    #[error("the memory of the log of dirty pages is not usable")]
    Map(#[source] MapError),
    /// It has no room for all of the guest's memory.
    #[error("a log of {len} bytes has no bit for the guest's memory at {addr:#x}")]
    Small {
        /// Bytes of the log.
        len: u64,
        /// The first address of the guest's memory that is not covered.
        addr: u64,
    },
}

/// One log; see the module.
#[derive(Debug)]
pub struct DirtyLog {
    memory: Mapping,
}

impl DirtyLog {
    /// The log in `len` bytes of `file` from `offset` on.
    ///
    /// # Errors
    /// [`LogError::Map`].
    pub fn new(file: File, offset: u64, len: u64) -> Result<Self, LogError> {
        let memory = map(file, offset, len).map_err(LogError::Map)?;
        Ok(Self { memory })
    }

    /// Marks the pages of `len` bytes at `addr` of which the last write is done.
    /// What the log does not cover is left out: see [`covers`](Self::covers).
    pub fn mark(&self, addr: u64, len: u64) {
        for (byte, bits) in bits(addr, len) {
            let Some(cell) = usize::try_from(byte)
                .ok()
                .and_then(|byte| self.memory.get_atomic_ref::<AtomicU8>(byte).ok())
            else {
                return;
            };
            // Release: whoever sees the bit sees what was written to the page.
            cell.fetch_or(bits, Ordering::Release);
        }
    }

    /// Whether there is a bit for each of `len` bytes at `addr`.
    pub fn covers(&self, addr: u64, len: u64) -> bool {
        let end = self.len().saturating_mul(PAGES_PER_BYTE * PAGE);
        addr.checked_add(len).is_some_and(|last| last <= end)
    }

    /// Checks that it covers all of `memory`.
    ///
    /// # Errors
    /// [`LogError::Small`].
    pub fn check(&self, memory: &Memory) -> Result<(), LogError> {
        for region in memory.iter() {
            let addr = region.start_addr().raw_value();
            if !self.covers(addr, region.len()) {
                let end = self.len().saturating_mul(PAGES_PER_BYTE * PAGE);
                return Err(LogError::Small {
                    len: self.len(),
                    addr: addr.max(end),
                });
            }
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.memory.len() as u64
    }
}

/// The log's bytes for `len` bytes at `addr`, and the bits in each: page *n* is
/// bit *n* % 8 of byte *n* / 8. An end beyond the address space is cut off.
fn bits(addr: u64, len: u64) -> impl Iterator<Item = (u64, u8)> {
    let last = addr.saturating_add(len.saturating_sub(1)) / PAGE;
    let mut page = addr / PAGE;
    let mut more = len > 0;
    std::iter::from_fn(move || {
        if !more {
            return None;
        }
        let byte = page / PAGES_PER_BYTE;
        let end = last.min(byte * PAGES_PER_BYTE + PAGES_PER_BYTE - 1);
        let from = u8::MAX << (page % PAGES_PER_BYTE);
        let to = u8::MAX >> (PAGES_PER_BYTE - 1 - end % PAGES_PER_BYTE);
        more = end < last;
        page = end + 1;
        Some((byte, from & to))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;
    use vm_memory::GuestAddress;

    fn log(len: u64) -> (DirtyLog, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        let log = DirtyLog::new(file.try_clone().unwrap(), 0, len).unwrap();
        (log, file)
    }

    fn marked(file: &File, page: u64) -> bool {
        let mut byte = [0];
        file.read_exact_at(&mut byte, page / 8).unwrap();
        byte[0] & 1 << (page % 8) != 0
    }

    /// Bytes of the log in these tests, and of the memory that it covers.
    const LEN: u64 = 32;
    const COVERED: u64 = LEN * 8 * PAGE;

    proptest! {
        #[test]
        fn exactly_the_pages_that_were_touched_are_marked(
            page in 0..LEN * 8,
            within in prop_oneof![Just(0), Just(1), Just(PAGE - 1), 0..PAGE],
            len in prop_oneof![
                Just(0), Just(1), Just(PAGE - 1), Just(PAGE), Just(PAGE + 1), Just(8 * PAGE),
                Just(u64::MAX), 0..40 * PAGE,
            ],
        ) {
            let addr = page * PAGE + within;
            let (log, file) = log(LEN);
            log.mark(addr, len);
            let end = addr.saturating_add(len);
            for page in 0..LEN * 8 {
                let touched = page * PAGE < end && addr < (page + 1) * PAGE && len > 0;
                prop_assert_eq!(marked(&file, page), touched, "page {}", page);
            }
            prop_assert_eq!(log.covers(addr, len), addr.checked_add(len).is_some_and(|end| end <= COVERED));
        }

        #[test]
        fn marks_outside_the_log_harm_nobody(addr in COVERED.., len in any::<u64>()) {
            // What would be taken for a log that covers all of the address space.
            let pages = bits(addr, len.min(64 * PAGE)).map(|(_, bits)| u64::from(bits.count_ones()));
            prop_assert!(pages.sum::<u64>() <= 65);
            let (log, file) = log(LEN);
            log.mark(addr, len);
            prop_assert!((0..LEN * 8).all(|page| !marked(&file, page)));
        }
    }

    #[test]
    fn marks_of_others_stay() {
        let (log, file) = log(1);
        file.write_all_at(&[0b1000_0001], 0).unwrap();
        log.mark(2 * PAGE, 1);
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [0b1000_0101]);
    }

    #[test]
    fn a_log_that_does_not_cover_the_guest_is_refused() {
        let (log, _file) = log(2);
        let memory = |ranges: &[(u64, usize)]| {
            let ranges: Vec<_> = ranges.iter().map(|&(a, l)| (GuestAddress(a), l)).collect();
            Memory::from_ranges(&ranges).unwrap()
        };
        let end = 16 * PAGE;
        assert!(log.check(&memory(&[(0, end as usize)])).is_ok());
        let more = memory(&[(0, 4096), (end - 4096, 8192)]);
        assert!(matches!(
            log.check(&more),
            Err(LogError::Small { len: 2, addr }) if addr == end
        ));
        let short = tempfile::tempfile().unwrap();
        short.set_len(4095).unwrap();
        for (offset, len) in [(0, 4096), (0, 0), (4096, 1), (1, u64::MAX)] {
            let file = short.try_clone().unwrap();
            assert!(matches!(
                DirtyLog::new(file, offset, len),
                Err(LogError::Map(MapError::Outside { .. }))
            ));
        }
    }
}
