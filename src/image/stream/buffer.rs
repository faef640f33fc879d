//! The memory of the stream: the words of [`Cells`], and the data of each queue, in a memfd that
//! the daemon makes and the healer maps. All `unsafe` code of the stream is here.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

use super::cells::{Cells, Rings};
use super::recorder::ALIGNMENT;
use super::sync::AtomicU64;

/// Bytes of a slot's share of data for which there is one slot at least.
const DATA_PER_SLOT: u64 = 4096;
/// So many slots a queue is given at least.
const FEW_SLOTS: u64 = 256;
/// The most slots of one queue.
const MAX_SLOTS: u64 = 65536;
/// The most queues.
const MAX_QUEUES: usize = 64;
/// The most bytes of data of one queue.
const MAX_DATA: u64 = 1 << 36;

/// How the memory is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferShape {
    /// The rings.
    pub rings: Rings,
    /// Bytes of data of each queue.
    pub data: u64,
}

impl BufferShape {
    /// For `bytes` of data, shared by so many queues, of which there is one at least.
    pub fn new(bytes: u64, queues: usize) -> Self {
        let queues = queues.clamp(1, MAX_QUEUES);
        let data = (bytes / queues as u64).clamp(ALIGNMENT, MAX_DATA);
        let data = data - data % ALIGNMENT;
        let slots = (data / DATA_PER_SLOT).clamp(FEW_SLOTS, MAX_SLOTS);
        Self {
            rings: Rings { queues, slots },
            data,
        }
    }

    fn is_sensible(&self) -> bool {
        let Rings { queues, slots } = self.rings;
        (1..=MAX_QUEUES).contains(&queues)
            && (1..=MAX_SLOTS).contains(&slots)
            && (ALIGNMENT..=MAX_DATA).contains(&self.data)
            && self.data.is_multiple_of(ALIGNMENT)
    }

    fn data_begins(&self) -> u64 {
        let words = self.rings.words() * size_of::<AtomicU64>();
        (words as u64).next_multiple_of(ALIGNMENT)
    }

    /// Bytes of all of it.
    pub fn bytes(&self) -> u64 {
        self.data_begins() + self.rings.queues as u64 * self.data
    }
}

/// See the module.
#[derive(Debug)]
pub struct StreamBuffer {
    file: File,
    raw: MmapRaw,
    shape: BufferShape,
}

impl StreamBuffer {
    /// A new one, empty.
    ///
    /// # Errors
    /// The system's.
    pub fn make(shape: BufferShape) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("bypass-blk-stream", flags)?);
        file.set_len(shape.bytes())?;
        // Nobody who maps it is to fault because somebody made it shorter.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::over(file, shape)
    }

    /// One that another process has made.
    ///
    /// # Errors
    /// The system's; `InvalidData` for a file that is not of this shape, or could become shorter.
    pub fn over(file: File, shape: BufferShape) -> io::Result<Self> {
        let sealed = fcntl_get_seals(&file)?.contains(SealFlags::SHRINK);
        if !sealed || !shape.is_sensible() || file.metadata()?.len() != shape.bytes() {
            let why = "it is not the memory of a stream of this shape";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let len = usize::try_from(shape.bytes()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let raw = MmapOptions::new().len(len).map_raw(&file)?;
        Ok(Self { file, raw, shape })
    }

    /// The memfd, to be given to another process.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// How it is cut.
    pub fn shape(&self) -> BufferShape {
        self.shape
    }

    /// The words.
    pub fn cells(&self) -> Cells<'_> {
        let words = self.shape.rings.words();
        // SAFETY: the mapping is shared, readable and writable, longer than so many words, lives
        // as long as `self`, and begins at a page. Any bits are a u64. Everybody changes these
        // bytes through 64-bit atomics alone. The file is sealed, so no access faults.
        let words = unsafe { std::slice::from_raw_parts(self.raw.as_ptr().cast(), words) };
        Cells::over(words, self.shape.rings)
    }

    /// Where some bytes of a queue's data are in the mapping, if there are such.
    fn place(&self, queue: usize, range: &Range<u64>) -> Option<(*mut u8, usize)> {
        let within = range.start <= range.end && range.end <= self.shape.data;
        if queue >= self.shape.rings.queues || !within {
            return None;
        }
        let begin = self.shape.data_begins() + queue as u64 * self.shape.data + range.start;
        let begin = usize::try_from(begin).ok()?;
        let len = usize::try_from(range.end - range.start).ok()?;
        // SAFETY: the sum is at most the mapping's length, as checked above.
        Some((unsafe { self.raw.as_mut_ptr().add(begin) }, len))
    }

    /// Puts bytes into a queue's data, whose thread found room for them there. `None`, and
    /// nothing done, if that is outside of it.
    pub fn put(&self, queue: usize, at: u64, bytes: &[u8]) -> Option<()> {
        let (to, len) = self.place(queue, &(at..at.checked_add(bytes.len() as u64)?))?;
        // SAFETY: `to` has room for `len` bytes, which `bytes` has, and is no part of it. Others
        // may read there at the same time, by copies too, and throw away what they read.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, len) };
        Some(())
    }

    /// Copies bytes of a queue's data to the end of `to`; what they are worth the cells say
    /// afterwards. `None`, and nothing done, if that is outside of it.
    pub fn get(&self, queue: usize, at: u64, len: u64, to: &mut Vec<u8>) -> Option<()> {
        let (from, len) = self.place(queue, &(at..at.checked_add(len)?))?;
        to.reserve(len);
        // SAFETY: `from` has `len` bytes, and `to` has room for them behind its end, which is no
        // part of the mapping; they are there when its length says so.
        unsafe {
            std::ptr::copy_nonoverlapping(from, to.as_mut_ptr().add(to.len()), len);
            to.set_len(to.len() + len);
        }
        Some(())
    }
}
