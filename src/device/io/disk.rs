//! The file behind the device, and what direct I/O on it needs.
//!
//! The caller opens the file; this module asks the kernel for its size, its
//! access mode and its alignments, and refuses what cannot be served. It does
//! no guest I/O.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use rustix::io::Errno;

use super::bounce::Bounce;
use crate::device::error::DeviceError;
use crate::device::limits::{MAX_ALIGNMENT, SECTOR, SERIAL_LEN};

/// What direct I/O on the file needs, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of buffer addresses.
    pub memory: u32,
    /// Of file offsets and of the length of each buffer: the block size.
    pub offset: u32,
}

/// One local file, offered as a disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    size: AtomicU64,
    read_only: bool,
    serial: [u8; SERIAL_LEN],
    alignment: Alignment,
    cluster: u32,
}

impl Disk {
    /// Examines `file`, which must be open with `O_DIRECT`, for reading and
    /// writing or for reading only. Opened for reading only, the disk is
    /// offered as read-only. `serial` is what the guest sees, at most 20 bytes.
    ///
    /// # Errors
    /// Not a regular file; a size that is not a positive multiple of the block
    /// size; no direct I/O in blocks of 512 to 4096 bytes; a serial too long.
    pub fn new(file: File, serial: &str) -> Result<Self, DeviceError> {
        let examine = |errno: Errno| DeviceError::Examine(errno.into());
        let flags = rustix::fs::fcntl_getfl(&file).map_err(examine)?;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
        let statx = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, wanted).map_err(examine)?;
        if FileType::from_raw_mode(statx.stx_mode.into()) != FileType::RegularFile {
            return Err(DeviceError::NotRegular);
        }
        let told = StatxFlags::from_bits_retain(statx.stx_mask).contains(StatxFlags::DIOALIGN);
        let alignment = if told && statx.stx_dio_offset_align != 0 {
            Alignment {
                memory: statx.stx_dio_mem_align.max(1),
                offset: statx.stx_dio_offset_align.max(SECTOR),
            }
        } else {
            probe(&file)?
        };
        if alignment.memory > MAX_ALIGNMENT || alignment.offset > MAX_ALIGNMENT {
            return Err(DeviceError::NoDirectIo);
        }
        let size = statx.stx_size;
        if size == 0 || !size.is_multiple_of(alignment.offset.into()) {
            return Err(DeviceError::Size {
                size,
                block: alignment.offset,
            });
        }
        Ok(Self {
            read_only: flags.intersection(OFlags::RWMODE) == OFlags::RDONLY,
            serial: serial_field(serial)?,
            cluster: cluster(statx.stx_blksize, alignment.offset),
            file,
            size: AtomicU64::new(size),
            alignment,
        })
    }

    /// Size in bytes; a multiple of the block size.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The file has grown to `size` bytes, a multiple of the block size: requests may go
    /// that far from now on. A disk never shrinks.
    pub(in crate::device) fn grow(&self, size: u64) {
        self.size.fetch_max(size, Ordering::AcqRel);
    }

    /// Whether the guest may not write.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// What direct I/O on the file needs.
    pub fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// Bytes of the guest's logical block.
    pub fn block_size(&self) -> u32 {
        self.alignment.offset
    }

    /// Bytes of the file system's block: the unit in which holes are punched
    /// and that is best written as a whole. At least the block size.
    pub(in crate::device) fn cluster(&self) -> u32 {
        self.cluster
    }

    /// The serial, padded with zeros.
    pub(in crate::device) fn serial(&self) -> &[u8; SERIAL_LEN] {
        &self.serial
    }

    /// The file, for the I/O engine.
    pub(in crate::device) fn file(&self) -> &File {
        &self.file
    }
}

/// Kernels before 6.1 do not tell the alignment: find the smallest block that a
/// direct read takes, and use it for memory too.
fn probe(file: &File) -> Result<Alignment, DeviceError> {
    let mut buffer = Bounce::new();
    let mut block = SECTOR;
    while block <= MAX_ALIGNMENT {
        let room = buffer
            .bytes_mut()
            .get_mut(..block as usize)
            .ok_or(DeviceError::NoDirectIo)?;
        // The offset of one block, so that a file offset of this alignment is tried too.
        match rustix::io::pread(file.as_fd(), room, block.into()) {
            Ok(_) => {
                return Ok(Alignment {
                    memory: block,
                    offset: block,
                });
            }
            Err(Errno::INVAL) => block *= 2,
            Err(errno) => return Err(DeviceError::Examine(errno.into())),
        }
    }
    Err(DeviceError::NoDirectIo)
}

/// The file system's preferred block, where it is a sensible one.
fn cluster(preferred: u32, block: u32) -> u32 {
    const LARGEST: u32 = 1 << 20;
    if preferred.is_power_of_two() && (block..=LARGEST).contains(&preferred) {
        preferred
    } else {
        block
    }
}

fn serial_field(serial: &str) -> Result<[u8; SERIAL_LEN], DeviceError> {
    let mut field = [0; SERIAL_LEN];
    field
        .get_mut(..serial.len())
        .ok_or(DeviceError::Serial { len: serial.len() })?
        .copy_from_slice(serial.as_bytes());
    Ok(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    fn image(size: u64) -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        image.as_file().set_len(size).unwrap();
        image
    }

    fn direct(image: &tempfile::NamedTempFile, write: bool) -> File {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_DIRECT)
            .open(image.path())
            .unwrap()
    }

    #[test]
    fn the_probe_finds_what_the_kernel_tells() {
        let image = image(1 << 20);
        let disk = Disk::new(direct(&image, true), "").unwrap();
        assert_eq!(probe(disk.file()).unwrap().offset, disk.block_size());
    }

    #[test]
    fn a_file_opened_for_reading_is_a_read_only_disk() {
        let image = image(1 << 20);
        assert!(Disk::new(direct(&image, false), "").unwrap().read_only());
        assert!(!Disk::new(direct(&image, true), "").unwrap().read_only());
    }

    #[test]
    fn sizes_that_are_no_whole_blocks_are_refused() {
        for size in [0, 511, 1000] {
            let refused = Disk::new(direct(&image(size), true), "");
            assert!(matches!(refused, Err(DeviceError::Size { .. })), "{size}");
        }
    }

    #[test]
    fn a_folder_is_refused() {
        let folder = File::open("/var/tmp").unwrap();
        assert!(matches!(
            Disk::new(folder, ""),
            Err(DeviceError::NotRegular)
        ));
    }

    #[test]
    fn a_serial_longer_than_its_field_is_refused() {
        let image = image(4096);
        assert!(Disk::new(direct(&image, true), "12345678901234567890").is_ok());
        assert!(matches!(
            Disk::new(direct(&image, true), "123456789012345678901"),
            Err(DeviceError::Serial { len: 21 })
        ));
    }
}
