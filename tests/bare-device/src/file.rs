//! The file behind the device, or the nothing.
//!
//! The library serves regular files only, and stays so: this is the one place that makes
//! a [`Disk`] of something else, and it has this program's only `unsafe` code.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use bypass_blk::device::Disk;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// A disk on the file at `path`; of `size` bytes where that is a character device, which
/// has none of its own.
///
/// # Errors
/// The file cannot be opened or served; a character device without a size, or a file
/// with one.
pub fn disk(path: &Path, size: Option<u64>) -> Result<Disk, Box<dyn Error>> {
    let open = |flags| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags);
        let opened = options.open(path);
        opened.map_err(|error| format!("{}: {error}", path.display()))
    };
    let is_device = std::fs::metadata(path).is_ok_and(|of| of.file_type().is_char_device());
    match (is_device, size) {
        (true, Some(size)) => over_device(&open(0)?, size),
        (true, None) => Err(format!("{} has no size: give one", path.display()).into()),
        (false, None) => Ok(Disk::new(open(libc::O_DIRECT)?, "")?),
        (false, Some(_)) => Err(format!("{} has a size of its own", path.display()).into()),
    }
}

/// The library examines an empty file in memory, of this size; what it then uses under
/// that file's number is the device.
fn over_device(device: &File, size: u64) -> Result<Disk, Box<dyn Error>> {
    let stand_in = File::from(memfd_create("stand-in", MemfdFlags::CLOEXEC)?);
    ftruncate(&stand_in, size)?;
    let number = stand_in.as_raw_fd();
    let disk = Disk::new(stand_in, "")?;
    replace(number, device)?;
    Ok(disk)
}

/// Lets the open descriptor `number` stand for `file`.
fn replace(number: RawFd, file: &File) -> io::Result<()> {
    // SAFETY: it touches no memory. The number stays open and stays its owner's; only what
    // is behind it changes, and nobody has mapped that.
    match unsafe { libc::dup3(file.as_raw_fd(), number, libc::O_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    #[test]
    fn a_device_becomes_a_disk_of_the_size_asked_for() {
        let disk = disk(Path::new("/dev/zero"), Some(SIZE)).unwrap();
        assert_eq!(disk.size(), SIZE);
        assert!(!disk.read_only());
    }

    #[test]
    fn only_what_has_no_size_takes_one() {
        assert!(disk(Path::new("/dev/zero"), None).is_err());
        assert!(disk(Path::new("/proc/self/exe"), Some(SIZE)).is_err());
    }
}
