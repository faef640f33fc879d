//! Shared memory that the front-end hands over as a file: the record of requests
//! in flight, the log of a migration.
//!
//! Maps it, and no more: what the bytes mean is its users' business.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion};

/// A shared mapping, readable and writable; every access is checked.
pub type Mapping = MmapRegion<()>;

/// Why a file cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Its size is not known.
    #[error("its file cannot be examined")]
    Examine(#[source] io::Error),
    /// A description that does not fit the file.
    #[error("{len} bytes at offset {offset} are not within its file of {size} bytes")]
    Outside {
        /// Length as described, in bytes.
        len: u64,
        /// Offset as described, in bytes.
        offset: u64,
        /// Size of the file in bytes.
        size: u64,
    },
    /// The mapping could be pulled from under us.
    #[error("its file may shrink (a memfd with F_SEAL_SHRINK is needed)")]
    MayShrink,
    /// The kernel does not map it.
    #[error("it cannot be mapped")]
    Map(#[source] MmapRegionError),
}

/// Maps `len` bytes of `file` from `offset` on, a multiple of the page size.
///
/// # Errors
/// See [`MapError`].
pub fn map(file: File, offset: u64, len: u64) -> Result<Mapping, MapError> {
    let bytes = check_within(&file, offset, len)?;
    Mapping::from_file(FileOffset::new(file, offset), bytes).map_err(MapError::Map)
}

/// Refuses a mapping of more than `file` has: touching the rest would end the
/// process (SIGBUS). Only a regular file has a size to go by (memfds and files on
/// hugetlbfs are such). Returns the length.
///
/// # Errors
/// [`MapError::Outside`], also of an empty mapping.
pub fn check_within(file: impl AsFd, offset: u64, len: u64) -> Result<usize, MapError> {
    let stat = fstat(file).map_err(|errno| MapError::Examine(errno.into()))?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let has_no_size = !FileType::from_raw_mode(stat.st_mode).is_file();
    let within = has_no_size || offset.checked_add(len).is_some_and(|end| end <= size);
    usize::try_from(len)
        .ok()
        .filter(|&bytes| within && bytes > 0)
        .ok_or(MapError::Outside { len, offset, size })
}

/// Refuses a file that could become shorter than what is mapped of it, which
/// would end the process at the next access (SIGBUS).
///
/// # Errors
/// [`MapError::MayShrink`].
pub fn check_sealed(file: &File) -> Result<(), MapError> {
    match fcntl_get_seals(file) {
        Ok(seals) if seals.contains(SealFlags::SHRINK) => Ok(()),
        _ => Err(MapError::MayShrink),
    }
}
