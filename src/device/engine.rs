//! One queue's io_uring: operations on the disk's file, in flight and done, and the
//! queue's thread asleep until one is.
//!
//! This and `buffer` are the only files on the way of a request with `unsafe` code.
//! What makes it sound: a [`Buffer`] can only be made over memory that it keeps alive
//! itself, and the engine owns the buffer of every operation until the kernel has
//! completed it. It knows nothing of rings or requests; a token links an operation to
//! whoever submitted it.
//!
//! Made by any thread, then used by one, which the kernel is told: what the disk has
//! completed waits until that thread asks for it, and interrupts nobody.

mod buffer;

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::types::{Fd, Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use super::disk::Disk;

pub use buffer::{Buffer, MAX_ZEROES, Unsuitable, Vectors};

/// The disk's file, registered as the ring's only file.
const FILE: Fixed = Fixed(0);
/// The token of the look-out for events; those of operations are smaller.
const EVENTS: u64 = u64::MAX;

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

/// What [`Engine::reap`] found.
pub enum Reaped {
    /// An operation is over.
    Operation(Completion),
    /// There is something to read from what [`Engine::sleep`] looks out for.
    Events,
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
    /// Made for one thread, which has not introduced itself yet.
    disabled: bool,
    lookout: Lookout,
}

/// Whether the ring looks out for events other than completions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lookout {
    Off,
    On,
    /// What it may report has been seen to in another way.
    Outdated,
}

impl Engine {
    /// An engine for `slots` operations at a time.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn new(disk: &Disk, slots: u16) -> io::Result<Self> {
        // One more, to look out for events.
        let (ring, disabled) = ring(u32::from(slots) + 1)?;
        ring.submitter()
            .register_files(&[disk.file().as_raw_fd()])?;
        Ok(Self {
            ring,
            pending: (0..slots).map(|_| Pending::None).collect(),
            in_flight: 0,
            disabled,
            lookout: Lookout::Off,
        })
    }

    /// Operations that are not reaped yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
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
        if matches!(&operation, Operation::Read { buffer, .. } if !buffer.is_writable()) {
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

    /// Hands what was pushed to the kernel and takes what it has completed, in one
    /// system call, or none if there is neither.
    ///
    /// # Errors
    /// What the kernel refused for now; what was pushed stays.
    pub fn submit(&mut self) -> io::Result<()> {
        while self.has_pushed() {
            self.enter(0)?;
        }
        if self.ring.submission().taskrun() {
            self.enter(0)?;
        }
        Ok(())
    }

    fn has_pushed(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Hands over what was pushed and sleeps until an operation is completed or there is
    /// something to read from `events`, or until a signal.
    ///
    /// # Errors
    /// What the kernel refused for now; what was pushed stays.
    pub fn sleep(&mut self, events: RawFd) -> io::Result<()> {
        if self.lookout == Lookout::Off {
            // There is always room for it: see `new`.
            let entry = opcode::PollAdd::new(Fd(events), libc::POLLIN as u32)
                .build()
                .user_data(EVENTS);
            // SAFETY: the entry points at no memory.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                self.lookout = Lookout::On;
            }
        }
        self.enter(1)
    }

    /// The events have been seen to: if the look-out has something to report, that is over.
    pub fn forget_events(&mut self) {
        if self.lookout == Lookout::On {
            self.lookout = Lookout::Outdated;
        }
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        if self.disabled {
            self.ring.submitter().register_enable_rings()?;
            self.disabled = false;
        }
        match self.ring.submit_and_wait(want) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// The next operation that the kernel has completed, or that there are events.
    pub fn reap(&mut self) -> Option<Reaped> {
        loop {
            let entry = self.ring.completion().next()?;
            if entry.user_data() == EVENTS {
                if std::mem::replace(&mut self.lookout, Lookout::Off) == Lookout::On {
                    return Some(Reaped::Events);
                }
                continue;
            }
            let token = entry.user_data() as usize;
            let pending = std::mem::replace(self.pending.get_mut(token)?, Pending::None);
            let Pending::InFlight(buffer) = pending else {
                return None;
            };
            self.in_flight -= 1;
            let result = entry.result();
            return Some(Reaped::Operation(Completion {
                token,
                result: usize::try_from(result).map_err(|_| result.saturating_neg()),
                buffer,
            }));
        }
    }
}

/// A ring, and whether it must be enabled by the thread that is going to use it. The
/// older the kernel, the more a completion disturbs: from 6.1 on it waits for its
/// thread, from 5.19 on for that thread's next system call.
fn ring(entries: u32) -> io::Result<(IoUring, bool)> {
    let deferred = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_r_disabled()
        .build(entries);
    if let Ok(ring) = deferred {
        return Ok((ring, true));
    }
    let cooperative = IoUring::builder()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    let ring = cooperative.or_else(|_| IoUring::new(entries))?;
    Ok((ring, false))
}

impl Drop for Engine {
    /// Memory that the kernel may still write to must not be freed. The queue has
    /// drained long before; this is the last line of defence. (Of an engine made for one
    /// thread another one cannot wait for anything: the memory stays allocated.)
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
        Operation::Read { offset, buffer } => match buffer.left() {
            [one] => opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                .offset(*offset)
                .build(),
            left => opcode::Readv::new(FILE, left.as_ptr(), left.len() as u32)
                .offset(*offset)
                .build(),
        },
        Operation::Write {
            offset,
            buffer,
            durable,
        } => {
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            match buffer.left() {
                [one] => opcode::Write::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                    .offset(*offset)
                    .rw_flags(flags)
                    .build(),
                left => opcode::Writev::new(FILE, left.as_ptr(), left.len() as u32)
                    .offset(*offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Operation::Sync => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        &Operation::PunchHole { offset, len } => allocate(offset, len, libc::FALLOC_FL_PUNCH_HOLE),
        &Operation::ZeroRange { offset, len } => allocate(offset, len, libc::FALLOC_FL_ZERO_RANGE),
    }
}
