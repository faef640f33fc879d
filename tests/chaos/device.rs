//! A vhost-user-blk front-end with several requests in flight (crate `blkio`).

use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

/// One queue of a connected device, with one buffer per slot.
pub struct Device {
    queue: Blkioq,
    region: MemoryRegion,
    buffer: usize,
    /// Keeps the connection.
    _driver: Arc<Blkio>,
}

/// What is asked of the device; sizes and places in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Zeroes,
    Discard,
    Flush,
}

impl Device {
    /// Connects to a device's socket, for `slots` requests with buffers of
    /// `buffer` bytes.
    ///
    /// # Errors
    /// When the device refuses or dies meanwhile.
    pub fn connect(socket: &Path, slots: usize, buffer: usize) -> blkio::Result<Device> {
        Self::connect_queues(socket, 1, slots, buffer).map(|mut queues| queues.remove(0))
    }

    /// The same for `queues` queues of one connection, each with slots of its own.
    ///
    /// # Errors
    /// As for one.
    pub fn connect_queues(
        socket: &Path,
        queues: u16,
        slots: usize,
        buffer: usize,
    ) -> blkio::Result<Vec<Device>> {
        let mut driver = Blkio::new("virtio-blk-vhost-user")?;
        driver.set_str("path", &socket.display().to_string())?;
        driver.connect()?;
        driver.set_i32("num-queues", queues.into())?;
        let started = driver.start()?.queues;
        let regions = started.iter().map(|_| {
            let region = driver.alloc_mem_region(slots * buffer)?;
            driver.map_mem_region(&region)?;
            Ok(region)
        });
        let regions = regions.collect::<blkio::Result<Vec<_>>>()?;
        let driver = Arc::new(driver);
        let with_region = started.into_iter().zip(regions);
        let device = |(mut queue, region): (Blkioq, MemoryRegion)| {
            queue.set_completion_fd_enabled(true);
            Device {
                queue,
                region,
                buffer,
                _driver: Arc::clone(&driver),
            }
        };
        Ok(with_region.map(device).collect())
    }

    fn address(&self, slot: usize) -> *mut u8 {
        assert!((slot + 1) * self.buffer <= self.region.len);
        (self.region.addr + slot * self.buffer) as *mut u8
    }

    /// The slot's buffer, which no request may be using.
    pub fn buffer(&mut self, slot: usize, len: usize) -> &mut [u8] {
        assert!(len <= self.buffer);
        // SAFETY: mapped for as long as the device lives, within the slot's part.
        unsafe { std::slice::from_raw_parts_mut(self.address(slot), len) }
    }

    /// Makes a request; its number is the slot's.
    pub fn submit(&mut self, slot: usize, kind: Kind, offset: u64, len: usize) {
        let (address, none) = (self.address(slot), ReqFlags::empty());
        match kind {
            Kind::Read => self.queue.read(offset, address, len, slot, none),
            Kind::Write => self.queue.write(offset, address, len, slot, none),
            Kind::Zeroes => self.queue.write_zeroes(offset, len as u64, slot, none),
            Kind::Discard => self.queue.discard(offset, len as u64, slot, none),
            Kind::Flush => self.queue.flush(slot, none),
        }
    }

    /// Hands over what was submitted and waits for answers, at least for one if
    /// `patience` lasts: slots and results (0 or a negative error number).
    pub fn answers(&mut self, in_flight: usize, patience: Duration) -> Vec<(usize, i32)> {
        let mut answers: Vec<MaybeUninit<Completion>> =
            (0..in_flight).map(|_| MaybeUninit::uninit()).collect();
        let mut timeout = patience;
        let least = in_flight.min(1);
        // An error is a time-out: then nothing was taken.
        let taken = self
            .queue
            .do_io(&mut answers, least, Some(&mut timeout), None)
            .unwrap_or(0);
        let take = |answer: &MaybeUninit<Completion>| {
            // SAFETY: do_io filled those that it counted.
            let answer = unsafe { answer.assume_init_ref() };
            (answer.user_data, answer.ret)
        };
        answers.iter().take(taken).map(take).collect()
    }
}
