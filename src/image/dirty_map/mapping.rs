//! The map's file in memory, and the locks that say who works on it. All `unsafe`
//! code of the dirty map is here.
//!
//! The header is read and written through the file, never through the mapping, so
//! the mapping holds nothing but atomics.

use super::terms::Role;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use memmap2::{MmapOptions, MmapRaw};

use super::geometry::{Geometry, WORDS_AT};
use super::sync::AtomicU64;

/// The words of a map, shared with every process that maps the same file.
pub struct Mapping {
    raw: MmapRaw,
    words: usize,
}

impl Mapping {
    /// Maps the words of `file`.
    ///
    /// # Errors
    ///
    /// The system's, and `UnexpectedEof` for a file shorter than its geometry.
    pub fn of(file: &File, geometry: &Geometry) -> io::Result<Self> {
        if file.metadata()?.len() < geometry.file_len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let words = usize::try_from(geometry.words()).map_err(too_large)?;
        let len = words
            .checked_mul(size_of::<AtomicU64>())
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let raw = MmapOptions::new().offset(WORDS_AT).len(len).map_raw(file)?;
        Ok(Self { raw, words })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is shared, readable and writable, `words * 8` bytes
        // long, lives as long as `self`, and starts at a multiple of 4096 bytes,
        // so aligned for a u64. Any bits are a u64. Other processes change the
        // bytes only through 64-bit atomics, as this one does. The file had that
        // length when it was mapped, has its blocks allocated, and no code makes
        // it shorter, so no access faults.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr().cast(), self.words) }
    }

    /// Writes every word to the disk.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn flush(&self) -> io::Result<()> {
        self.raw.flush()
    }
}

/// A role on a map, until it is dropped or the process is gone: a lock on one
/// byte of the file, owned by an open file description of its own.
pub struct RoleLock {
    _file: File,
}

impl RoleLock {
    /// Takes `role` on the file that `map` is open on; `None` when somebody has it.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn take(map: &File, role: Role) -> io::Result<Option<Self>> {
        let again = format!("/proc/self/fd/{}", map.as_raw_fd());
        let file = File::options().read(true).write(true).open(again)?;
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: match role {
                Role::Session => 0,
                Role::Healer => 1,
            },
            l_len: 1,
            // Must be zero for F_OFD_SETLK (fcntl(2)).
            l_pid: 0,
        };
        // SAFETY: the descriptor is open, and F_OFD_SETLK reads one `flock`, which
        // outlives the call.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
        if result == 0 {
            return Ok(Some(Self { _file: file }));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
            error if error.raw_os_error() == Some(libc::EACCES) => Ok(None),
            error => Err(error),
        }
    }
}
