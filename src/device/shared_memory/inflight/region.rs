//! The memory behind the records of all queues: made, handed over, taken back.
//!
//! It is laid out for the largest ring that there can be, whatever the front-end asks for:
//! QEMU asks for its `queue-size`, and up to 11.0 may then set up rings of 1024 entries all
//! the same (`virtio_add_queue` of 10.0.13). A front-end gives back what it got, and the
//! size that it asked for with it, so the layout is read from the memory's length.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{AtomicAccess, Bytes, VolatileMemory};

use crate::device::limits::MAX_QUEUE_SIZE;
use crate::device::shared_memory::mapping::{MapError, Mapping, check_sealed, map};

use super::{Cells, part_len};

/// Each queue's part begins at a multiple of this many bytes; so do libvhost-user's.
const ALIGNMENT: usize = 64;

/// What GET_INFLIGHT_FD asks for and SET_INFLIGHT_FD describes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Bytes of the memory.
    pub len: u64,
    /// Where it begins in its file, in bytes.
    pub offset: u64,
    /// Queues with a part of it.
    pub queues: u16,
    /// Descriptors of each queue that the front-end asked for; there may be room for more.
    pub entries: u16,
}

/// Why memory for the record is refused.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// More queues, or larger ones, than the device has.
    #[error(
        "a record for {queues} queues of {entries} entries was asked for; the device has \
         {max_queues} of up to {MAX_QUEUE_SIZE}"
    )]
    Shape {
        /// Queues as described.
        queues: u16,
        /// Entries of each as described.
        entries: u16,
        /// Queues of the device.
        max_queues: u16,
    },
    /// Too small for what it is said to hold.
    #[error(
        "a record of {len} bytes was given, {needed} are needed for {queues} queues of {entries} entries"
    )]
    Short {
        /// Bytes as described.
        len: u64,
        /// Bytes needed.
        needed: u64,
        /// Queues as described.
        queues: u16,
        /// Entries of each as described.
        entries: u16,
    },
    /// The memory that came with it does not do.
    #[error("the memory of the record is not usable")]
    Map(#[source] MapError),
    /// No memory could be made.
    #[error("cannot make the memory for the record")]
    Make(#[source] io::Error),
}

/// The record that rings started from now on use, for one connection.
pub struct Inflight {
    max_queues: u16,
    region: Mutex<Option<Region>>,
}

#[derive(Clone)]
struct Region {
    memory: Arc<Mapping>,
    queues: u16,
    entries: u16,
}

impl Inflight {
    /// None yet, for a device of so many queues at most.
    pub fn new(max_queues: u16) -> Self {
        Self {
            max_queues,
            region: Mutex::new(None),
        }
    }

    /// Makes memory for the queues asked for, with room for the largest rings, and uses it.
    /// Its file's size is fixed.
    ///
    /// # Errors
    /// A shape that the device does not have, or no memory.
    pub fn make(&self, asked: Description) -> Result<(Description, OwnedFd), InflightError> {
        self.check_shape(asked)?;
        let description = Description {
            len: region_len(asked.queues, MAX_QUEUE_SIZE),
            offset: 0,
            ..asked
        };
        let fd = memory_file(description.len).map_err(InflightError::Make)?;
        let file = File::from(fd.try_clone().map_err(InflightError::Make)?);
        self.set(description, file)?;
        Ok((description, fd))
    }

    /// Uses the memory in `file`, which an earlier process may have written.
    ///
    /// # Errors
    /// A shape that the device does not have, or memory that is too small, may
    /// shrink or cannot be mapped.
    pub fn set(&self, description: Description, file: File) -> Result<(), InflightError> {
        self.check_shape(description)?;
        let Description {
            len,
            offset,
            queues,
            entries,
        } = description;
        let needed = region_len(queues, entries);
        if len < needed {
            return Err(InflightError::Short {
                len,
                needed,
                queues,
                entries,
            });
        }
        let entries = entries_in(len, queues);
        let needed = region_len(queues, entries);
        check_sealed(&file).map_err(InflightError::Map)?;
        let memory = map(file, offset, needed).map_err(InflightError::Map)?;
        *self.region.lock().unwrap_or_else(PoisonError::into_inner) = Some(Region {
            memory: Arc::new(memory),
            queues,
            entries,
        });
        Ok(())
    }

    /// The part of queue `index` and its number of entries, if it has one.
    pub fn queue(&self, index: usize) -> Option<(QueueCells, u16)> {
        let region = self.region.lock().unwrap_or_else(PoisonError::into_inner);
        let region = region.as_ref()?;
        (index < usize::from(region.queues)).then(|| {
            let cells = QueueCells {
                memory: Arc::clone(&region.memory),
                begin: index * stride(region.entries),
            };
            (cells, region.entries)
        })
    }

    fn check_shape(&self, asked: Description) -> Result<(), InflightError> {
        let queues = 1..=self.max_queues;
        let entries = 1..=MAX_QUEUE_SIZE;
        if queues.contains(&asked.queues) && entries.contains(&asked.entries) {
            return Ok(());
        }
        Err(InflightError::Shape {
            queues: asked.queues,
            entries: asked.entries,
            max_queues: self.max_queues,
        })
    }
}

/// Bytes from one queue's part to the next.
fn stride(entries: u16) -> usize {
    part_len(entries).next_multiple_of(ALIGNMENT)
}

fn region_len(queues: u16, entries: u16) -> u64 {
    (usize::from(queues) * stride(entries)) as u64
}

/// The descriptors of each of so many queues for which a record of `len` bytes has room:
/// a power of two, as the sizes of rings are.
fn entries_in(len: u64, queues: u16) -> u16 {
    let mut entries = MAX_QUEUE_SIZE;
    while entries > 1 && region_len(queues, entries) > len {
        entries /= 2;
    }
    entries
}

/// Zeros, in a file that keeps its size.
fn memory_file(len: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("bypass-blk-inflight", flags)?;
    ftruncate(&fd, len)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// One queue's part of the memory.
#[derive(Clone, Debug)]
pub struct QueueCells {
    memory: Arc<Mapping>,
    begin: usize,
}

impl Cells for QueueCells {
    fn load<T: AtomicAccess + Default>(&self, offset: usize) -> T {
        let at = self.begin + offset;
        let loaded = self.memory.as_volatile_slice().load(at, Ordering::Acquire);
        debug_assert!(loaded.is_ok(), "offset {offset} is outside the record");
        loaded.unwrap_or_default()
    }

    /// Release: no store may overtake an earlier one, in the compiler or the processor.
    fn store<T: AtomicAccess + Default>(&self, offset: usize, value: T) {
        let at = self.begin + offset;
        let stored = self
            .memory
            .as_volatile_slice()
            .store(value, at, Ordering::Release);
        debug_assert!(stored.is_ok(), "offset {offset} is outside the record");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflight() -> Inflight {
        Inflight::new(4)
    }

    fn of(queues: u16, entries: u16) -> Description {
        Description {
            queues,
            entries,
            ..Description::default()
        }
    }

    #[test]
    fn each_queue_has_an_aligned_part_of_its_own() {
        let inflight = inflight();
        let (description, fd) = inflight.make(of(3, 128)).unwrap();
        assert_eq!(description.len, 3 * (16 + 1024 * 16 + 48));
        for index in 0..3 {
            let (cells, entries) = inflight.queue(index).unwrap();
            assert_eq!(entries, 1024, "whatever was asked for");
            cells.store(part_len(entries) - 8, index as u64 + 1);
        }
        assert!(inflight.queue(3).is_none());
        // The same memory, given back.
        let again = self::inflight();
        again.set(description, fd.into()).unwrap();
        for index in 0..3 {
            let (cells, entries) = again.queue(index).unwrap();
            assert_eq!(cells.load::<u64>(part_len(entries) - 8), index as u64 + 1);
        }
    }

    #[test]
    fn memory_that_was_laid_out_for_smaller_rings_is_read_as_it_was_written() {
        for asked in [4, 64, 128, 256, 1024] {
            let len = region_len(2, asked);
            let file = File::from(memory_file(len).unwrap());
            let description = Description {
                len,
                ..of(2, asked)
            };
            let inflight = inflight();
            inflight.set(description, file).unwrap();
            assert_eq!(inflight.queue(1).unwrap().1, asked);
        }
    }

    #[test]
    fn memory_that_does_not_do_is_refused() {
        let inflight = inflight();
        for (queues, entries) in [(0, 128), (5, 128), (1, 0), (1, 1025), (u16::MAX, u16::MAX)] {
            let refused = inflight.make(of(queues, entries));
            assert!(matches!(refused, Err(InflightError::Shape { .. })));
        }
        let (good, fd) = inflight.make(of(2, 64)).unwrap();
        let file = || File::from(fd.try_clone().unwrap());
        let short = Description {
            len: region_len(2, 64) - 1,
            ..good
        };
        assert!(matches!(
            inflight.set(short, file()),
            Err(InflightError::Short { .. })
        ));
        for (offset, len) in [
            (4096, good.len),
            (u64::MAX, good.len),
            (u64::MAX - good.len + 1, good.len),
            (1, good.len),
        ] {
            let outside = Description {
                offset,
                len,
                ..good
            };
            assert!(matches!(
                inflight.set(outside, file()),
                Err(InflightError::Map(MapError::Outside { .. }))
            ));
        }
        let growing = tempfile::tempfile().unwrap();
        growing.set_len(good.len).unwrap();
        assert!(matches!(
            inflight.set(good, growing),
            Err(InflightError::Map(MapError::MayShrink))
        ));
        assert!(ftruncate(&fd, 0).is_err(), "the size is fixed");
    }

    #[test]
    fn a_length_beyond_what_is_needed_is_no_reason_to_map_it() {
        let inflight = inflight();
        let (good, fd) = inflight.make(of(2, 64)).unwrap();
        let long = Description {
            len: u64::MAX,
            ..good
        };
        inflight.set(long, fd.into()).unwrap();
    }
}
