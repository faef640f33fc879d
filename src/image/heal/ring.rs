//! Many reads of an image's files at one time, by io_uring, into a buffer of its own.
//!
//! The only file of the healer with `unsafe` code. Reads may come back short or not
//! at all; whoever asked ([`super::local`]) reads what is missing in the plain way, and
//! finds the reason.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// What direct I/O must be aligned to, on any disk, in bytes.
pub const PAGE: usize = 4096;

/// A page, for its alignment.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// One read: where in which file, and into which bytes of the buffer.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Its place in the list of files.
    pub file: usize,
    /// In bytes.
    pub offset: u64,
    /// The first byte in the buffer.
    pub start: usize,
    /// In bytes.
    pub length: usize,
}

/// The buffer, and the ring that fills it.
pub struct Ring {
    /// `None`: the kernel gives none, or it failed.
    ring: Option<IoUring>,
    buffer: Vec<Page>,
}

impl Ring {
    /// For `depth` reads at one time, into at most `length` bytes.
    pub fn new(depth: u32, length: usize) -> Self {
        let ring = IoUring::new(depth);
        if let Err(error) = &ring {
            log::warn!("no io_uring ({error}): scattered extents are read one by one");
        }
        Self {
            ring: ring.ok(),
            buffer: vec![Page::new_zeroed(); length.div_ceil(PAGE)],
        }
    }

    /// As where the kernel gives none.
    #[cfg(test)]
    pub fn without_io_uring(length: usize) -> Self {
        Self {
            ring: None,
            ..Self::new(1, length)
        }
    }

    /// The buffer.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.as_bytes()
    }

    /// The buffer, to be filled in another way.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut_bytes()
    }

    /// Reads all pieces and returns how many bytes came of each, from its beginning: 0
    /// where a read failed or was not made.
    pub fn read(&mut self, files: &[File], pieces: &[Piece]) -> Vec<usize> {
        let mut came = vec![0; pieces.len()];
        let Some(ring) = &mut self.ring else {
            return came;
        };
        let bytes = self.buffer.as_mut_bytes();
        let (room, base) = (bytes.len(), bytes.as_mut_ptr());
        let mut under_way = 0;
        for (index, piece) in pieces.iter().enumerate() {
            let end = piece.start.checked_add(piece.length);
            let file = files.get(piece.file);
            let (Some(file), Some(..), Ok(length)) = (
                file,
                end.filter(|end| *end <= room),
                piece.length.try_into(),
            ) else {
                continue;
            };
            let place = base.wrapping_add(piece.start);
            let read = opcode::Read::new(Fd(file.as_raw_fd()), place, length)
                .offset(piece.offset)
                .build()
                .user_data(index as u64);
            // SAFETY: the read goes to `length` bytes within `self.buffer`, which nobody
            // touches before this function returns, and which is not freed before the
            // kernel is done with it: either every completion is waited for below, or
            // the buffer is leaked. `files` are open as long.
            match unsafe { ring.submission().push(&read) } {
                Ok(()) => under_way += 1,
                // The others are not made.
                Err(_) => break,
            }
        }
        while under_way > 0 {
            if let Err(error) = ring.submit_and_wait(under_way)
                && error.kind() != io::ErrorKind::Interrupted
            {
                log::error!("io_uring failed, extents are read one by one from now on: {error}");
                self.give_up();
                return vec![0; pieces.len()];
            }
            for entry in ring.completion() {
                under_way = under_way.saturating_sub(1);
                if let Some(came) = came.get_mut(entry.user_data() as usize) {
                    *came = usize::try_from(entry.result()).unwrap_or(0);
                }
            }
        }
        came
    }

    /// The kernel may write to the buffer yet: nobody gets that memory any more.
    fn give_up(&mut self) {
        self.ring = None;
        let buffer = vec![Page::new_zeroed(); self.buffer.len()];
        std::mem::forget(std::mem::replace(&mut self.buffer, buffer));
    }
}
