//! Small reads and writes in the guest's memory, several for each request.
//!
//! What lies in one region, as nearly everything does, is reached directly; the rest as
//! `vm-memory` does it, which is ready for anything and takes three times as long. Every
//! address is the guest's word, and checked.

use std::sync::atomic::Ordering;

use vm_memory::{
    Address, AtomicAccess, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryRegion, MemoryRegionAddress, VolatileMemory, VolatileSlice,
};

use super::memory::Memory;

/// `len` bytes at `addr`, if one region has them all.
#[inline]
pub fn slice(memory: &Memory, addr: GuestAddress, len: usize) -> Option<VolatileSlice<'_>> {
    let region = memory.find_region(addr)?;
    let offset = addr.checked_offset_from(region.start_addr())?;
    region.get_slice(MemoryRegionAddress(offset), len).ok()
}

/// The value at `addr`, which another thread may be changing.
///
/// # Errors
/// Part of it is not in the guest's memory.
#[inline]
pub fn read<T: ByteValued>(memory: &Memory, addr: GuestAddress) -> Result<T, GuestMemoryError> {
    match slice(memory, addr, size_of::<T>()) {
        Some(slice) => Ok(slice.get_ref::<T>(0)?.load()),
        None => memory.read_obj(addr),
    }
}

/// Puts `value` at `addr`.
///
/// # Errors
/// Part of it would not be in the guest's memory.
#[inline]
pub fn write<T: ByteValued>(
    memory: &Memory,
    addr: GuestAddress,
    value: T,
) -> Result<(), GuestMemoryError> {
    match slice(memory, addr, size_of::<T>()) {
        Some(slice) => {
            slice.get_ref::<T>(0)?.store(value);
            Ok(())
        }
        None => memory.write_obj(value, addr),
    }
}

/// Fills `bytes` from `addr` on.
///
/// # Errors
/// Part of them is not in the guest's memory.
#[inline]
pub fn read_slice(
    memory: &Memory,
    addr: GuestAddress,
    bytes: &mut [u8],
) -> Result<(), GuestMemoryError> {
    match slice(memory, addr, bytes.len()) {
        Some(slice) => Ok(slice.read_slice(bytes, 0)?),
        None => memory.read_slice(bytes, addr),
    }
}

/// Puts `bytes` from `addr` on.
///
/// # Errors
/// Part of them would not be in the guest's memory.
#[inline]
pub fn write_slice(
    memory: &Memory,
    addr: GuestAddress,
    bytes: &[u8],
) -> Result<(), GuestMemoryError> {
    match slice(memory, addr, bytes.len()) {
        Some(slice) => Ok(slice.write_slice(bytes, 0)?),
        None => memory.write_slice(bytes, addr),
    }
}

/// Loads the value at `addr` at once.
///
/// # Errors
/// It is not in one piece of the guest's memory, or misaligned.
#[inline]
pub fn load<T: AtomicAccess>(
    memory: &Memory,
    addr: GuestAddress,
    order: Ordering,
) -> Result<T, GuestMemoryError> {
    match slice(memory, addr, size_of::<T>()) {
        Some(slice) => Ok(slice.load(0, order)?),
        None => Bytes::load(memory, addr, order),
    }
}

/// Stores `value` at `addr` at once.
///
/// # Errors
/// It would not be in one piece of the guest's memory, or misaligned.
#[inline]
pub fn store<T: AtomicAccess>(
    memory: &Memory,
    addr: GuestAddress,
    value: T,
    order: Ordering,
) -> Result<(), GuestMemoryError> {
    match slice(memory, addr, size_of::<T>()) {
        Some(slice) => Ok(slice.store(value, 0, order)?),
        None => Bytes::store(memory, value, addr, order),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 0x3000;
    const END: u64 = 0x4000;

    /// Two regions that touch, and nothing before and behind them.
    fn memory() -> Memory {
        let ranges = [(0x1000, 0x2000), (SECOND, 0x1000)];
        Memory::from_ranges(&ranges.map(|(at, len)| (GuestAddress(at), len))).unwrap()
    }

    #[test]
    fn what_is_written_is_read_also_across_regions() {
        let memory = memory();
        for at in [0x1000, 0x1001, SECOND - 8, SECOND - 3, SECOND, END - 8] {
            let value = 0x0123_4567_89ab_cdef ^ at;
            write(&memory, GuestAddress(at), value).unwrap();
            assert_eq!(read::<u64>(&memory, GuestAddress(at)).unwrap(), value);
            assert_eq!(memory.read_obj::<u64>(GuestAddress(at)).unwrap(), value);
            let bytes = value.rotate_left(8).to_ne_bytes();
            write_slice(&memory, GuestAddress(at), &bytes).unwrap();
            let mut read = [0; 8];
            read_slice(&memory, GuestAddress(at), &mut read).unwrap();
            assert_eq!(read, bytes);
        }
    }

    #[test]
    fn what_is_not_wholly_in_memory_is_an_error() {
        let memory = memory();
        for at in [0, 0xff9, END - 7, END, u64::MAX - 3, u64::MAX] {
            let at = GuestAddress(at);
            assert!(slice(&memory, at, 8).is_none());
            assert!(read::<u64>(&memory, at).is_err());
            assert!(write(&memory, at, 1u64).is_err());
            assert!(read_slice(&memory, at, &mut [0; 8]).is_err());
            assert!(write_slice(&memory, at, &[0; 8]).is_err());
            assert!(load::<u64>(&memory, at, Ordering::Relaxed).is_err());
            assert!(store(&memory, at, 1u64, Ordering::Relaxed).is_err());
        }
    }

    #[test]
    fn what_is_to_be_done_at_once_must_be_aligned() {
        let memory = memory();
        store(&memory, GuestAddress(0x1002), 7u16, Ordering::Release).unwrap();
        let at = |addr| load::<u16>(&memory, GuestAddress(addr), Ordering::Acquire);
        assert_eq!(at(0x1002).unwrap(), 7);
        assert!(at(0x1001).is_err());
        assert!(at(SECOND - 1).is_err());
    }
}
