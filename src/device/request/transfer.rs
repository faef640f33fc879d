//! A read or a write: straight between the guest's memory and the file, or by a
//! bounce buffer where the guest's memory lacks the alignment of direct I/O, or where the
//! bytes are in more than one file.
//!
//! A transfer ends only when every byte has been transferred: what the kernel
//! left out is asked for again. Where a read meets the end of a file that is shorter than its
//! piece of the disk, the rest of that piece is zeros; the kernel says so by a read of
//! nothing, or of no whole number of blocks.

use std::sync::Arc;

use crate::device::guest::chain::{Chain, Segment, copy_from_guest, copy_to_guest, zero_guest};
use crate::device::guest::memory::Memory;
use crate::device::io::bounce::{BOUNCE_LEN, BouncePool};
use crate::device::io::disk::{Disk, FileSpot};
use crate::device::io::engine::{Buffer, Operation, Unsuitable, Vectors};
use crate::device::io::examine::Alignment;

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

    /// The byte of the disk where the next operation begins, or the one under way did.
    pub fn position(&self) -> u64 {
        self.extent.offset + self.done
    }

    /// The next operation; a write is `durable` when it completes, if asked.
    pub fn next(&mut self, guest: &mut Guest<'_>, disk: &Disk, durable: bool) -> Step {
        if self.done >= self.extent.len {
            return Step::Done(Status::Ok);
        }
        let spot = disk.spot(self.position());
        if matches!(self.route, Route::Unknown) {
            match self.direct(guest, disk.alignment(), spot) {
                Ok(buffer) => self.route = Route::Direct(Some(buffer)),
                Err(Unsuitable::Misaligned | Unsuitable::InSeveralFiles) => {
                    self.route = Route::Bounced;
                }
                Err(unsuitable) => {
                    log::debug!("refused request: its data is {unsuitable:?}");
                    return Step::Done(Status::IoError);
                }
            }
        }
        let buffer = match &mut self.route {
            Route::Direct(buffer) => buffer.take(),
            _ => self.bounce(guest, spot),
        };
        let Some(buffer) = buffer else {
            return Step::Done(Status::IoError);
        };
        let FileSpot { file, offset, .. } = spot;
        Step::Submit(if self.write {
            Operation::Write {
                file,
                offset,
                buffer,
                durable,
            }
        } else {
            Operation::Read {
                file,
                offset,
                buffer,
            }
        })
    }

    fn segments<'a>(&self, guest: &Guest<'a>) -> &'a [Segment] {
        if self.write {
            guest.chain.readable()
        } else {
            guest.chain.writable()
        }
    }

    /// All of it, if it is in one file.
    fn direct(
        &self,
        guest: &mut Guest<'_>,
        alignment: Alignment,
        spot: FileSpot,
    ) -> Result<Buffer, Unsuitable> {
        if spot.left < self.extent.len {
            return Err(Unsuitable::InSeveralFiles);
        }
        let segments = self.segments(guest);
        let vectors = std::mem::take(guest.vectors);
        Buffer::guest(guest.memory, segments, !self.write, alignment, vectors)
    }

    /// What is next in a bounce buffer, within one file; `None` if the guest's data is not in
    /// its memory.
    fn bounce(&self, guest: &mut Guest<'_>, spot: FileSpot) -> Option<Buffer> {
        let left = spot.left.min(self.extent.len - self.done);
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
        disk: &Disk,
    ) -> Option<Status> {
        let bytes = match outcome {
            Outcome::Bytes(bytes) if self.met_end(bytes, disk) => {
                return self.fill(bytes, buffer, guest, disk);
            }
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
            _ => {
                if !self.take_back(bytes, buffer, guest) {
                    return Some(Status::IoError);
                }
            }
        }
        self.done += bytes as u64;
        None
    }

    /// Whether an operation that moved so many bytes read as far as its file goes, and more of the
    /// disk belongs there.
    fn met_end(&self, bytes: usize, disk: &Disk) -> bool {
        !disk.is_whole()
            && !self.write
            && (bytes == 0 || !bytes.is_multiple_of(disk.block_size() as usize))
    }

    /// After a read of so many `bytes` that met the end of its file: what else was asked of this
    /// piece of the disk becomes zeros.
    fn fill(
        &mut self,
        bytes: usize,
        buffer: Buffer,
        guest: &mut Guest<'_>,
        disk: &Disk,
    ) -> Option<Status> {
        let spot = disk.spot(self.position());
        let asked = spot.left.min(self.extent.len - self.done);
        let filled = self.take_back(bytes, buffer, guest)
            && usize::try_from(asked).is_ok_and(|asked| {
                let (skip, len) = (self.done + bytes as u64, asked.saturating_sub(bytes));
                zero_guest(guest.memory, guest.chain.writable(), skip, len).is_some()
            });
        self.done += asked;
        (!filled).then_some(Status::IoError)
    }

    /// Takes the buffer of an operation back that moved so many `bytes`, and gives the guest those
    /// of a read by a bounce buffer. Returns whether that was possible.
    fn take_back(&self, bytes: usize, buffer: Buffer, guest: &mut Guest<'_>) -> bool {
        let mut given = Some(());
        if matches!(self.route, Route::Bounced) && !self.write {
            let read = buffer.bounced().get(..bytes).unwrap_or_default();
            given = copy_to_guest(guest.memory, guest.chain.writable(), self.done, read);
        }
        Self::give_back(buffer, guest);
        given.is_some()
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
