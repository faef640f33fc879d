//! A read or a write: straight between the guest's memory and the file, or by a
//! bounce buffer where the guest's memory lacks the alignment of direct I/O.
//!
//! A transfer ends only when every byte has been transferred: what the kernel
//! left out is asked for again.

use std::sync::Arc;

use crate::device::guest::chain::{Chain, Segment, copy_from_guest, copy_to_guest};
use crate::device::guest::memory::Memory;
use crate::device::io::bounce::{BOUNCE_LEN, BouncePool};
use crate::device::io::disk::Alignment;
use crate::device::io::engine::{Buffer, Operation, Unsuitable, Vectors};

use super::decode::{Extent, Status};
use super::outcome::{Outcome, Step, io_error};

/// What a transfer needs of the request it belongs to, and of its queue.
pub struct Guest<'a> {
    /// The map that the request was taken under.
    pub memory: &'a Arc<Memory>,
    /// Its segments.
    pub chain: &'a Chain,
    /// A list to reuse.
    pub vectors: &'a mut Vectors,
    /// The queue's bounce buffers.
    pub pool: &'a mut BouncePool,
}

/// How the bytes go.
enum Route {
    /// Not tried yet.
    Unknown,
    /// Straight; the buffer is here while no operation has it.
    Direct(Option<Buffer>),
    /// By a bounce buffer, piece by piece.
    Bounced,
}

/// One read or write, and how far it is.
pub struct Transfer {
    write: bool,
    extent: Extent,
    done: u64,
    route: Route,
}

impl Transfer {
    /// A transfer that has not begun.
    pub fn new(write: bool, extent: Extent) -> Self {
        Self {
            write,
            extent,
            done: 0,
            route: Route::Unknown,
        }
    }

    /// Whether it changes the disk.
    pub fn is_write(&self) -> bool {
        self.write
    }

    /// The next operation; a write is `durable` when it completes, if asked.
    pub fn next(&mut self, guest: &mut Guest<'_>, alignment: Alignment, durable: bool) -> Step {
        if self.done >= self.extent.len {
            return Step::Done(Status::Ok);
        }
        if matches!(self.route, Route::Unknown) {
            match self.direct(guest, alignment) {
                Ok(buffer) => self.route = Route::Direct(Some(buffer)),
                Err(Unsuitable::Misaligned) => self.route = Route::Bounced,
                Err(unsuitable) => {
                    log::debug!("refused request: its data is {unsuitable:?}");
                    return Step::Done(Status::IoError);
                }
            }
        }
        let buffer = match &mut self.route {
            Route::Direct(buffer) => buffer.take(),
            _ => self.bounce(guest),
        };
        let Some(buffer) = buffer else {
            return Step::Done(Status::IoError);
        };
        let offset = self.extent.offset + self.done;
        Step::Submit(if self.write {
            Operation::Write {
                offset,
                buffer,
                durable,
            }
        } else {
            Operation::Read { offset, buffer }
        })
    }

    fn segments<'a>(&self, guest: &Guest<'a>) -> &'a [Segment] {
        if self.write {
            guest.chain.readable()
        } else {
            guest.chain.writable()
        }
    }

    fn direct(&self, guest: &mut Guest<'_>, alignment: Alignment) -> Result<Buffer, Unsuitable> {
        let segments = self.segments(guest);
        let vectors = std::mem::take(guest.vectors);
        Buffer::guest(guest.memory, segments, !self.write, alignment, vectors)
    }

    /// The next piece in a bounce buffer; `None` if the guest's data is not in
    /// its memory.
    fn bounce(&self, guest: &mut Guest<'_>) -> Option<Buffer> {
        let left = self.extent.len - self.done;
        let len = usize::try_from(left).map_or(BOUNCE_LEN, |left| left.min(BOUNCE_LEN));
        let mut bounce = guest.pool.take();
        if self.write {
            let piece = bounce.bytes_mut().get_mut(..len)?;
            copy_from_guest(guest.memory, self.segments(guest), self.done, piece)?;
        }
        let vectors = std::mem::take(guest.vectors);
        Some(Buffer::bounce(bounce, len, vectors))
    }

    /// Takes an operation's outcome and its buffer back. Gives the answer if the
    /// request failed; otherwise [`next`](Self::next) goes on.
    pub fn completed(
        &mut self,
        outcome: Outcome,
        mut buffer: Buffer,
        guest: &mut Guest<'_>,
    ) -> Option<Status> {
        let bytes = match outcome {
            Outcome::Bytes(0) => return Some(io_error(self.name(), libc::EIO)),
            Outcome::Failed(errno) => return Some(io_error(self.name(), errno)),
            Outcome::Bytes(bytes) => bytes,
            Outcome::Retry => 0,
        };
        match &mut self.route {
            Route::Direct(slot) if self.done + (bytes as u64) < self.extent.len => {
                buffer.advance(bytes);
                *slot = Some(buffer);
            }
            Route::Bounced if !self.write => {
                let read = buffer.bounced().get(..bytes).unwrap_or_default();
                let segments = guest.chain.writable();
                if copy_to_guest(guest.memory, segments, self.done, read).is_none() {
                    return Some(Status::IoError);
                }
                Self::give_back(buffer, guest);
            }
            _ => Self::give_back(buffer, guest),
        }
        self.done += bytes as u64;
        None
    }

    fn give_back(buffer: Buffer, guest: &mut Guest<'_>) {
        let (vectors, bounce) = buffer.reclaim();
        *guest.vectors = vectors;
        if let Some(bounce) = bounce {
            guest.pool.put(bounce);
        }
    }

    fn name(&self) -> &'static str {
        if self.write { "write" } else { "read" }
    }
}
