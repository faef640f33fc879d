//! What an engine can be asked to do to a file, and the kernel's words for it.

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue};

use super::buffer::Buffer;

/// An operation on one of the disk's files; offsets, which are the file's, and lengths in bytes.
pub enum Operation {
    /// Fill the buffer from `offset` on.
    Read {
        /// Index of the file.
        file: u32,
        /// Where the bytes are.
        offset: u64,
        /// Where they go; writable.
        buffer: Buffer,
    },
    /// Write the buffer at `offset`; if `durable`, to stable storage.
    Write {
        /// Index of the file.
        file: u32,
        /// Where the bytes go.
        offset: u64,
        /// What they are.
        buffer: Buffer,
        /// Complete only when they are on stable storage.
        durable: bool,
    },
    /// Make everything written so far to the file durable.
    Sync {
        /// Index of the file.
        file: u32,
    },
    /// Deallocate; reads as zeros.
    PunchHole {
        /// Index of the file.
        file: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Become zeros, allocated if possible.
    ZeroRange {
        /// Index of the file.
        file: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Operation {
    /// Index of the file.
    pub(super) fn file(&self) -> u32 {
        match *self {
            Self::Read { file, .. }
            | Self::Write { file, .. }
            | Self::Sync { file }
            | Self::PunchHole { file, .. }
            | Self::ZeroRange { file, .. } => file,
        }
    }

    /// The kernel's words for it; `file` is as the entry's flags will say.
    pub(super) fn entry(&self, file: Fd) -> squeue::Entry {
        let allocate = |offset, len, mode| {
            opcode::Fallocate::new(file, len)
                .offset(offset)
                .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
                .build()
        };
        match self {
            Self::Read { offset, buffer, .. } => match buffer.left() {
                [one] => opcode::Read::new(file, one.iov_base.cast(), one.iov_len as u32)
                    .offset(*offset)
                    .build(),
                left => opcode::Readv::new(file, left.as_ptr(), left.len() as u32)
                    .offset(*offset)
                    .build(),
            },
            Self::Write {
                offset,
                buffer,
                durable,
                ..
            } => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                match buffer.left() {
                    [one] => opcode::Write::new(file, one.iov_base.cast(), one.iov_len as u32)
                        .offset(*offset)
                        .rw_flags(flags)
                        .build(),
                    left => opcode::Writev::new(file, left.as_ptr(), left.len() as u32)
                        .offset(*offset)
                        .rw_flags(flags)
                        .build(),
                }
            }
            Self::Sync { .. } => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
            &Self::PunchHole { offset, len, .. } => {
                allocate(offset, len, libc::FALLOC_FL_PUNCH_HOLE)
            }
            &Self::ZeroRange { offset, len, .. } => {
                allocate(offset, len, libc::FALLOC_FL_ZERO_RANGE)
            }
        }
    }
}
