//! What the kernel says of a file that is to be (part of) a disk: its size, its access mode, what
//! direct I/O on it needs. It changes nothing and does no guest I/O.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::bounce::Bounce;
use crate::device::error::DeviceError;
use crate::device::limits::{MAX_ALIGNMENT, SECTOR};

/// What direct I/O on the file needs, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of buffer addresses.
    pub memory: u32,
    /// Of file offsets and of the length of each buffer: the block size.
    pub offset: u32,
}

/// `/dev/null`, by its numbers (Documentation/admin-guide/devices.txt).
const NULL: (u32, u32) = (1, 3);

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// A regular file.
    Regular,
    /// `/dev/null`, from which nothing can be read.
    Null,
    /// Anything else.
    Other,
}

/// A file, examined.
#[derive(Clone, Copy, Debug)]
pub struct Examined {
    /// What it is.
    pub nature: Nature,
    /// Bytes.
    pub size: u64,
    /// Whether it is open for reading only.
    pub read_only: bool,
    /// The file system that it is on, by its device.
    pub file_system: (u32, u32),
    /// The file system's preferred block, in bytes.
    preferred: u32,
    /// What direct I/O needs, if the kernel tells.
    told: Option<Alignment>,
}

impl Examined {
    /// Asks the kernel.
    pub fn new(file: &File) -> Result<Self, DeviceError> {
        let examine = |errno: Errno| DeviceError::Examine(errno.into());
        let flags = rustix::fs::fcntl_getfl(file).map_err(examine)?;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
        let statx = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted).map_err(examine)?;
        Ok(Self {
            nature: nature(&statx),
            size: statx.stx_size,
            read_only: flags.intersection(OFlags::RWMODE) == OFlags::RDONLY,
            file_system: (statx.stx_dev_major, statx.stx_dev_minor),
            preferred: statx.stx_blksize,
            told: told(&statx),
        })
    }

    /// What direct I/O on `file` needs, which this is of.
    pub fn alignment(&self, file: &File) -> Result<Alignment, DeviceError> {
        let alignment = match self.told {
            Some(told) => told,
            None => probe(file)?,
        };
        match alignment.memory <= MAX_ALIGNMENT && alignment.offset <= MAX_ALIGNMENT {
            true => Ok(alignment),
            false => Err(DeviceError::NoDirectIo),
        }
    }

    /// The file system's preferred block, where it is a sensible one; else `block`.
    pub fn cluster(&self, block: u32) -> u32 {
        const LARGEST: u32 = 1 << 20;
        let preferred = self.preferred;
        if preferred.is_power_of_two() && (block..=LARGEST).contains(&preferred) {
            preferred
        } else {
            block
        }
    }
}

fn nature(statx: &Statx) -> Nature {
    match FileType::from_raw_mode(statx.stx_mode.into()) {
        FileType::RegularFile => Nature::Regular,
        FileType::CharacterDevice if (statx.stx_rdev_major, statx.stx_rdev_minor) == NULL => {
            Nature::Null
        }
        _ => Nature::Other,
    }
}

fn told(statx: &Statx) -> Option<Alignment> {
    let told = StatxFlags::from_bits_retain(statx.stx_mask).contains(StatxFlags::DIOALIGN);
    (told && statx.stx_dio_offset_align != 0).then(|| Alignment {
        memory: statx.stx_dio_mem_align.max(1),
        offset: statx.stx_dio_offset_align.max(SECTOR),
    })
}

/// Kernels before 6.1 do not tell the alignment: find the smallest block that a
/// direct read takes, and use it for memory too. The file must be longer than
/// [`MAX_ALIGNMENT`]: of one that ends before, nothing is read, whatever it needs.
pub fn probe(file: &File) -> Result<Alignment, DeviceError> {
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
