//! Aligned buffers of our own, for guest buffers that direct I/O cannot take.
//!
//! A request larger than one buffer goes through it piece by piece, so a guest
//! cannot make the process allocate by asking for much at once.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes of one bounce buffer: the largest piece moved at once.
pub const BOUNCE_LEN: usize = 128 * 1024;
/// Buffers that a queue keeps for the next unaligned request.
const KEPT: usize = 8;
const PAGE: usize = 4096;

/// A page, for its alignment.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// One buffer of [`BOUNCE_LEN`] bytes, aligned to 4096.
#[derive(Clone)]
pub struct Bounce(Vec<Page>);

impl Bounce {
    /// A buffer of zeros.
    pub fn new() -> Self {
        Self((0..BOUNCE_LEN / PAGE).map(|_| Page::new_zeroed()).collect())
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The contents, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
}

/// The buffers of one queue that wait for their next use.
#[derive(Default)]
pub struct BouncePool(Vec<Bounce>);

impl BouncePool {
    /// A buffer with any contents.
    pub fn take(&mut self) -> Bounce {
        self.0.pop().unwrap_or_else(Bounce::new)
    }

    /// Gives a buffer back.
    pub fn put(&mut self, bounce: Bounce) {
        if self.0.len() < KEPT {
            self.0.push(bounce);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_for_direct_io() {
        for bounce in [Bounce::new(), BouncePool::default().take()] {
            assert_eq!(bounce.bytes().as_ptr().addr() % 4096, 0);
            assert_eq!(bounce.bytes().len(), BOUNCE_LEN);
        }
    }
}
