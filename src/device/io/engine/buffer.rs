//! Memory that an operation reads or fills, kept alive for as long as the kernel may
//! use it.
//!
//! A [`Buffer`] can only be made over memory that it keeps alive itself. It submits
//! nothing; the engine gives its vectors to the kernel.

use std::sync::Arc;

use libc::iovec;
use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use crate::device::guest::access;
use crate::device::guest::chain::Segment;
use crate::device::guest::memory::Memory;
use crate::device::io::bounce::Bounce;
use crate::device::io::examine::Alignment;

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

    fn add(&mut self, slice: &VolatileSlice<'_>, alignment: Alignment) -> Result<(), Unsuitable> {
        // Alignments are powers of two.
        let unaligned = |value: usize, alignment: u32| value & (alignment as usize - 1) != 0;
        let base = slice.ptr_guard_mut().as_ptr();
        if unaligned(base.addr(), alignment.memory) || unaligned(slice.len(), alignment.offset) {
            return Err(Unsuitable::Misaligned);
        }
        if self.0.len() == MAX_VECTORS {
            return Err(Unsuitable::TooManyPieces);
        }
        self.push(base, slice.len());
        Ok(())
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
    /// One operation goes to one file.
    InSeveralFiles,
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
        let permissions = if writable {
            Permissions::Write
        } else {
            Permissions::Read
        };
        vectors.0.clear();
        for segment in segments {
            let len = segment.len as usize;
            if let Some(slice) = access::slice(memory, segment.addr, len) {
                vectors.add(&slice, alignment)?;
                continue;
            }
            let slices = GuestMemory::get_slices(&**memory, segment.addr, len, permissions)
                .map_err(|_| Unsuitable::NotMapped)?;
            for slice in slices {
                vectors.add(&slice.map_err(|_| Unsuitable::NotMapped)?, alignment)?;
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

    /// Whether the kernel may change it.
    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// What is still to be transferred.
    pub(super) fn left(&self) -> &[iovec] {
        self.vectors.0.get(self.done..).unwrap_or_default()
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
