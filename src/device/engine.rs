//! One queue's io_uring: operations on the disk's file, in flight and done.
//!
//! This is the only file of the device with `unsafe` code. What makes it sound:
//! a [`Buffer`] can only be made over memory that it keeps alive itself, and the
//! engine owns the buffer of every operation until the kernel has completed it.
//! It knows nothing of rings or requests; a token links an operation to whoever
//! submitted it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use libc::iovec;
use vm_memory::{GuestMemory, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::bounce::Bounce;
use super::chain::Segment;
use super::disk::{Alignment, Disk};
use super::memory::Memory;

/// The disk's file, registered as the ring's only file.
const FILE: Fixed = Fixed(0);
/// Bytes of zeros that are there to be written, and how often one operation repeats them.
const ZEROES_LEN: usize = 64 * 1024;
const ZEROES_REPEATED: usize = 16;
/// Most bytes that one operation writes from [`Buffer::zeroes`].
pub const MAX_ZEROES: u64 = (ZEROES_LEN * ZEROES_REPEATED) as u64;

#[repr(align(4096))]
struct Zeroes([u8; ZEROES_LEN]);
static ZEROES: Zeroes = Zeroes([0; ZEROES_LEN]);

/// What keeps a buffer's memory alive.
enum Owner {
    #[expect(dead_code, reason = "held for its drop alone")]
    Guest(Arc<Memory>),
    Bounce(Bounce),
    Zeroes,
}

/// A list of vectors, kept for its allocation when it is not part of a buffer.
#[derive(Default)]
pub struct Vectors(Vec<iovec>);

// SAFETY: the pointers in it are only ever dereferenced by the kernel, while the
// list is part of a buffer, and there the buffer's owner, which can go to
// another thread, keeps what they point at mapped.
unsafe impl Send for Vectors {}

impl Vectors {
    fn push(&mut self, base: *mut u8, len: usize) {
        self.0.push(iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
    }
}

/// Memory for one vectored operation, from which its beginning can be taken off.
pub struct Buffer {
    owner: Owner,
    vectors: Vectors,
    /// Vectors that are used up.
    done: usize,
    /// Whether the kernel may change it.
    writable: bool,
}

/// Why guest memory cannot be used directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsuitable {
    /// Address or length do not have the alignment of direct I/O.
    Misaligned,
    /// Not in the guest's memory.
    NotMapped,
    /// More pieces than one system call takes.
    TooManyPieces,
}

/// Most vectors of one system call (`IOV_MAX`).
const MAX_VECTORS: usize = 1024;

impl Buffer {
    /// The guest memory `segments` of `memory`, to be filled by the kernel if
    /// `writable`. `vectors` is an old list to reuse.
    pub fn guest(
        memory: &Arc<Memory>,
        segments: &[Segment],
        writable: bool,
        alignment: Alignment,
        mut vectors: Vectors,
    ) -> Result<Self, Unsuitable> {
        let access = if writable {
            Permissions::Write
        } else {
            Permissions::Read
        };
        vectors.0.clear();
        for segment in segments {
            let slices =
                GuestMemory::get_slices(&**memory, segment.addr, segment.len as usize, access)
                    .map_err(|_| Unsuitable::NotMapped)?;
            for slice in slices {
                let slice = slice.map_err(|_| Unsuitable::NotMapped)?;
                let base = slice.ptr_guard_mut().as_ptr();
                if !base.addr().is_multiple_of(alignment.memory as usize)
                    || !slice.len().is_multiple_of(alignment.offset as usize)
                {
                    return Err(Unsuitable::Misaligned);
                }
                if vectors.0.len() == MAX_VECTORS {
                    return Err(Unsuitable::TooManyPieces);
                }
                vectors.push(base, slice.len());
            }
        }
        Ok(Self {
            owner: Owner::Guest(Arc::clone(memory)),
            vectors,
            done: 0,
            writable,
        })
    }

    /// The first `len` bytes of `bounce`; all of it if it is shorter.
    pub fn bounce(mut bounce: Bounce, len: usize, mut vectors: Vectors) -> Self {
        let bytes = bounce.bytes_mut();
        vectors.0.clear();
        vectors.push(bytes.as_mut_ptr(), len.min(bytes.len()));
        Self {
            owner: Owner::Bounce(bounce),
            vectors,
            done: 0,
            writable: true,
        }
    }

    /// `len` bytes of zeros to be written; [`MAX_ZEROES`] if it is more.
    pub fn zeroes(len: u64, mut vectors: Vectors) -> Self {
        vectors.0.clear();
        let mut left = len.min(MAX_ZEROES) as usize;
        while left > 0 {
            let here = left.min(ZEROES_LEN);
            vectors.push(ZEROES.0.as_ptr().cast_mut(), here);
            left -= here;
        }
        Self {
            owner: Owner::Zeroes,
            vectors,
            done: 0,
            writable: false,
        }
    }

    /// Takes the first `bytes` off, as they have been transferred.
    pub fn advance(&mut self, mut bytes: usize) {
        while let Some(vector) = self.vectors.0.get_mut(self.done) {
            if bytes < vector.iov_len {
                // wrapping_add: the result stays inside the vector's memory.
                vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(bytes).cast();
                vector.iov_len -= bytes;
                return;
            }
            bytes -= vector.iov_len;
            self.done += 1;
        }
    }

    /// The contents of a bounce buffer, from its beginning; nothing for others.
    pub fn bounced(&self) -> &[u8] {
        match &self.owner {
            Owner::Bounce(bounce) => bounce.bytes(),
            _ => &[],
        }
    }

    /// Takes it apart for the next use: the list, and the bounce buffer if it was one.
    pub fn reclaim(self) -> (Vectors, Option<Bounce>) {
        let bounce = match self.owner {
            Owner::Bounce(bounce) => Some(bounce),
            _ => None,
        };
        (self.vectors, bounce)
    }

    fn left(&self) -> &[iovec] {
        self.vectors.0.get(self.done..).unwrap_or_default()
    }
}

/// An operation on the disk's file; offsets and lengths in bytes.
pub enum Operation {
    /// Fill the buffer from `offset` on.
    Read {
        /// Where the bytes are.
        offset: u64,
        /// Where they go; writable.
        buffer: Buffer,
    },
    /// Write the buffer at `offset`; if `durable`, to stable storage.
    Write {
        /// Where the bytes go.
        offset: u64,
        /// What they are.
        buffer: Buffer,
        /// Complete only when they are on stable storage.
        durable: bool,
    },
    /// Make everything written so far durable.
    Sync,
    /// Deallocate; reads as zeros.
    PunchHole {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Become zeros, allocated if possible.
    ZeroRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// An operation the kernel is done with.
pub struct Completion {
    /// As given to [`Engine::push`].
    pub token: usize,
    /// Bytes transferred, or the error number.
    pub result: Result<usize, i32>,
    /// The operation's buffer, if it had one.
    pub buffer: Option<Buffer>,
}

/// What is known of a token's operation.
enum Pending {
    None,
    InFlight(Option<Buffer>),
}

/// One io_uring over one file.
pub struct Engine {
    ring: IoUring,
    pending: Vec<Pending>,
    in_flight: usize,
}

impl Engine {
    /// An engine for `slots` operations at a time, which writes to `wake` when
    /// one is completed.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn new(disk: &Disk, slots: u16, wake: &EventFd) -> io::Result<Self> {
        let ring = IoUring::new(slots.into())?;
        ring.submitter()
            .register_files(&[disk.file().as_raw_fd()])?;
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        Ok(Self {
            ring,
            pending: (0..slots).map(|_| Pending::None).collect(),
            in_flight: 0,
        })
    }

    /// Queues an operation for the next [`submit`](Self::submit). Each `token`,
    /// below the number of slots, has at most one operation in flight.
    ///
    /// # Errors
    /// The operation, if the token or the kind of buffer is wrong or there is no room: a bug in the caller.
    pub fn push(&mut self, token: usize, operation: Operation) -> Result<(), Operation> {
        let Some(pending @ Pending::None) = self.pending.get_mut(token) else {
            return Err(operation);
        };
        if matches!(&operation, Operation::Read { buffer, .. } if !buffer.writable) {
            return Err(operation);
        }
        let entry = entry(&operation).user_data(token as u64);
        // SAFETY: the entry points at the vectors of the operation's buffer, and
        // these at memory which the buffer keeps alive. On success the buffer is
        // kept in `pending` until the completion is reaped; moving it does not
        // move the vectors, which are on the heap. On failure the kernel never
        // sees the entry.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            return Err(operation);
        }
        *pending = Pending::InFlight(match operation {
            Operation::Read { buffer, .. } | Operation::Write { buffer, .. } => Some(buffer),
            _ => None,
        });
        self.in_flight += 1;
        Ok(())
    }

    /// Hands what was pushed to the kernel, in one system call, or none if
    /// nothing was.
    ///
    /// # Errors
    /// What the kernel refused for now; what was pushed stays.
    pub fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next operation that the kernel has completed.
    pub fn reap(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        let token = entry.user_data() as usize;
        let pending = std::mem::replace(self.pending.get_mut(token)?, Pending::None);
        let Pending::InFlight(buffer) = pending else {
            return None;
        };
        self.in_flight -= 1;
        let result = entry.result();
        Some(Completion {
            token,
            result: usize::try_from(result).map_err(|_| result.saturating_neg()),
            buffer,
        })
    }
}

impl Drop for Engine {
    /// Memory that the kernel may still write to must not be freed. The queue has
    /// drained long before; this is the last line of defence.
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                log::error!("cannot wait for I/O in flight, its memory stays allocated: {error}");
                std::mem::forget(std::mem::take(&mut self.pending));
                return;
            }
            while self.reap().is_some() {}
        }
    }
}

fn entry(operation: &Operation) -> squeue::Entry {
    let allocate = |offset, len, mode| {
        opcode::Fallocate::new(FILE, len)
            .offset(offset)
            .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
            .build()
    };
    match operation {
        Operation::Read { offset, buffer } => {
            let left = buffer.left();
            opcode::Readv::new(FILE, left.as_ptr(), left.len() as u32)
                .offset(*offset)
                .build()
        }
        Operation::Write {
            offset,
            buffer,
            durable,
        } => {
            let left = buffer.left();
            opcode::Writev::new(FILE, left.as_ptr(), left.len() as u32)
                .offset(*offset)
                .rw_flags(if *durable { libc::RWF_DSYNC } else { 0 } as _)
                .build()
        }
        Operation::Sync => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        &Operation::PunchHole { offset, len } => allocate(offset, len, libc::FALLOC_FL_PUNCH_HOLE),
        &Operation::ZeroRange { offset, len } => allocate(offset, len, libc::FALLOC_FL_ZERO_RANGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(buffer: &Buffer) -> Vec<usize> {
        buffer.left().iter().map(|vector| vector.iov_len).collect()
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped() {
        let mut buffer = Buffer::zeroes(3 * ZEROES_LEN as u64, Vectors::default());
        buffer.advance(ZEROES_LEN + 512);
        assert_eq!(lengths(&buffer), [ZEROES_LEN - 512, ZEROES_LEN]);
        let base = buffer.left()[0].iov_base.addr();
        assert_eq!(base, ZEROES.0.as_ptr().addr() + 512);
        buffer.advance(2 * ZEROES_LEN);
        assert!(buffer.left().is_empty());
    }

    #[test]
    fn one_operation_writes_no_more_zeroes_than_its_limit() {
        let buffer = Buffer::zeroes(u64::MAX, Vectors::default());
        assert_eq!(lengths(&buffer).iter().sum::<usize>() as u64, MAX_ZEROES);
    }
}
