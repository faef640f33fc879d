//! Descriptor chains: from a head index to the memory segments of a request.
//!
//! Knows the shape of chains (virtio 1.2, section 2.7) and nothing of what
//! requests mean. Everything read here was written by the guest: every index,
//! length and flag is checked, and what is wrong has a name.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, GuestAddress};

use super::access;
use super::memory::Memory;

/// Most segments of a request: the data that one vectored system call can take
/// (`IOV_MAX`), and header and status. The descriptor of an indirect table is none.
pub const MAX_SEGMENTS: usize = 1026;
/// Most entries of an indirect table: no chain may be longer than the largest ring that
/// there can be (virtio 1.2, 2.7.5.3.1 and 2.7).
const MAX_TABLE: u16 = 32768;
/// Bytes of one descriptor.
const DESCRIPTOR_LEN: u32 = 16;

/// Contiguous guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first byte.
    pub addr: GuestAddress,
    /// Its length in bytes, never 0.
    pub len: u32,
}

/// Why a chain is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A head or next index outside its table.
    #[error("descriptor index {index} in a table of {len}")]
    Index {
        /// The index.
        index: u16,
        /// Entries of the table.
        len: u16,
    },
    /// The descriptor is not in guest memory.
    #[error("the descriptor table is outside the guest's memory")]
    Table,
    /// It comes back to where it was.
    #[error("the chain is a loop")]
    Loop,
    /// More segments than a request may have.
    #[error("the chain has more than {MAX_SEGMENTS} segments")]
    TooLong,
    /// An indirect table inside another, or followed by a descriptor.
    #[error("an indirect descriptor where none may be")]
    Indirect,
    /// The length of an indirect table is no number of descriptors that a chain may have.
    #[error("an indirect table of {len} bytes")]
    IndirectLength {
        /// Its length in bytes.
        len: u32,
    },
    /// A device-readable descriptor after a device-writable one.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// A buffer's end does not fit the address space.
    #[error("a buffer wraps around the end of the address space")]
    Address,
    /// The device-readable part is shorter than a request header.
    #[error("the request header is cut short")]
    NoHeader,
    /// There is no device-writable byte for the status.
    #[error("there is no room for the status")]
    NoStatus,
}

/// The segments of one chain, reused from request to request.
#[derive(Debug, Default)]
pub struct Chain {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Chain {
    /// Walks the chain that starts at `head` of the descriptor table at `table`
    /// with `table_len` entries. Empty descriptors are skipped.
    ///
    /// After [`ChainError::Order`] the chain holds all its segments, after
    /// [`ChainError::TooLong`] the last device-writable one, so that its status can be
    /// taken; after any other error it must not be used.
    ///
    /// # Errors
    /// Whatever makes it malformed; see [`ChainError`].
    pub fn walk(
        &mut self,
        memory: &Memory,
        table: GuestAddress,
        table_len: u16,
        head: u16,
    ) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let (mut table, mut table_len, mut index) = (table, table_len, head);
        let (mut indirect, mut in_order, mut too_long) = (false, true, false);
        // Of each table no chain has more descriptors than there are.
        let mut left = table_len;
        while left > 0 {
            left -= 1;
            let descriptor = read_descriptor(memory, table, table_len, index)?;
            if descriptor.refers_to_indirect_table() {
                if indirect || descriptor.has_next() {
                    return Err(ChainError::Indirect);
                }
                (table, table_len, index) = (descriptor.addr(), indirect_len(descriptor.len())?, 0);
                (indirect, left) = (true, table_len);
                continue;
            }
            if descriptor.len() > 0 {
                let segment = segment(&descriptor)?;
                too_long |= self.readable.len() + self.writable.len() == MAX_SEGMENTS;
                match (descriptor.is_write_only(), too_long) {
                    (true, false) => self.writable.push(segment),
                    (true, true) => self.keep_last(segment),
                    (false, false) => {
                        self.readable.push(segment);
                        in_order &= self.writable.is_empty();
                    }
                    (false, true) => {}
                }
            }
            if !descriptor.has_next() {
                return match (too_long, in_order) {
                    (true, _) => Err(ChainError::TooLong),
                    (_, false) => Err(ChainError::Order),
                    _ => Ok(()),
                };
            }
            index = descriptor.next();
        }
        Err(ChainError::Loop)
    }

    /// There is room for no more of them; the status is at the end of the last.
    fn keep_last(&mut self, writable: Segment) {
        self.writable.pop();
        self.writable.push(writable);
    }

    /// Takes the first `N` bytes off the device-readable part.
    ///
    /// # Errors
    /// [`ChainError::NoHeader`] if it is shorter or outside the guest's memory.
    pub fn take_header<const N: usize>(&mut self, memory: &Memory) -> Result<[u8; N], ChainError> {
        let mut header = [0; N];
        copy_from_guest(memory, &self.readable, 0, &mut header).ok_or(ChainError::NoHeader)?;
        trim_front(&mut self.readable, N as u32);
        Ok(header)
    }

    /// Takes the last byte off the device-writable part: the status (virtio
    /// 1.2, 5.2.6).
    ///
    /// # Errors
    /// [`ChainError::NoStatus`] if there is none, or none in the guest's memory.
    pub fn take_status(&mut self, memory: &Memory) -> Result<GuestAddress, ChainError> {
        let last = self.writable.last_mut().ok_or(ChainError::NoStatus)?;
        last.len -= 1;
        let status = last.addr.unchecked_add(last.len.into());
        if last.len == 0 {
            self.writable.pop();
        }
        access::slice(memory, status, 1)
            .map(|_| status)
            .ok_or(ChainError::NoStatus)
    }

    /// What the device reads: the data of a write.
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// What the device writes: the room for the data of a read.
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }
}

fn segment(descriptor: &Descriptor) -> Result<Segment, ChainError> {
    let (addr, len) = (descriptor.addr(), descriptor.len());
    addr.checked_add(u64::from(len).saturating_sub(1))
        .ok_or(ChainError::Address)?;
    Ok(Segment { addr, len })
}

fn read_descriptor(
    memory: &Memory,
    table: GuestAddress,
    table_len: u16,
    index: u16,
) -> Result<Descriptor, ChainError> {
    if index >= table_len {
        return Err(ChainError::Index {
            index,
            len: table_len,
        });
    }
    let addr = table
        .checked_add(u64::from(index) * u64::from(DESCRIPTOR_LEN))
        .ok_or(ChainError::Table)?;
    access::read(memory, addr).map_err(|_| ChainError::Table)
}

fn indirect_len(bytes: u32) -> Result<u16, ChainError> {
    u16::try_from(bytes / DESCRIPTOR_LEN)
        .ok()
        .filter(|&len| bytes.is_multiple_of(DESCRIPTOR_LEN) && (1..=MAX_TABLE).contains(&len))
        .ok_or(ChainError::IndirectLength { len: bytes })
}

fn trim_front(segments: &mut Vec<Segment>, mut bytes: u32) {
    let mut whole = 0;
    for segment in segments.iter_mut() {
        if bytes < segment.len {
            segment.addr = segment.addr.unchecked_add(bytes.into());
            segment.len -= bytes;
            break;
        }
        bytes -= segment.len;
        whole += 1;
    }
    segments.drain(..whole);
}

/// Sum of the segments' lengths in bytes.
pub fn total_len(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Fills `bytes` from `segments`, from byte `skip` of them on. `None` if they
/// are too short or outside the guest's memory.
pub fn copy_from_guest(
    memory: &Memory,
    segments: &[Segment],
    skip: u64,
    bytes: &mut [u8],
) -> Option<()> {
    let mut rest = bytes;
    for (addr, len) in pieces(segments, skip, rest.len()) {
        let (piece, after) = rest.split_at_mut_checked(len)?;
        access::read_slice(memory, addr, piece).ok()?;
        rest = after;
    }
    rest.is_empty().then_some(())
}

/// Puts `bytes` into `segments`, from byte `skip` of them on. `None` if they
/// are too short or outside the guest's memory.
pub fn copy_to_guest(memory: &Memory, segments: &[Segment], skip: u64, bytes: &[u8]) -> Option<()> {
    let mut rest = bytes;
    for (addr, len) in pieces(segments, skip, rest.len()) {
        let (piece, after) = rest.split_at_checked(len)?;
        access::write_slice(memory, addr, piece).ok()?;
        rest = after;
    }
    rest.is_empty().then_some(())
}

/// Puts `len` zeros into `segments`, as [`copy_to_guest`] does bytes.
pub fn zero_guest(memory: &Memory, segments: &[Segment], skip: u64, len: usize) -> Option<()> {
    static ZEROES: [u8; 4096] = [0; 4096];
    let mut done = 0;
    for (mut addr, here) in pieces(segments, skip, len) {
        let mut left = here;
        while left > 0 {
            let zeroes = ZEROES.get(..left.min(ZEROES.len()))?;
            access::write_slice(memory, addr, zeroes).ok()?;
            addr = addr.checked_add(zeroes.len() as u64)?;
            left -= zeroes.len();
        }
        done += here;
    }
    (done == len).then_some(())
}

/// The contiguous pieces of bytes `skip..skip + len` of the segments, as far as
/// they reach.
fn pieces(
    segments: &[Segment],
    mut skip: u64,
    mut len: usize,
) -> impl Iterator<Item = (GuestAddress, usize)> {
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.len.into());
        skip -= skipped;
        let here = usize::try_from(u64::from(segment.len) - skipped)
            .unwrap_or(usize::MAX)
            .min(len);
        len -= here;
        (here > 0).then(|| (segment.addr.unchecked_add(skipped), here))
    })
}

#[cfg(test)]
mod tests;
