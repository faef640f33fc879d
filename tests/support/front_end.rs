//! A vhost-user-blk front-end without a guest (crate `blkio`), one request at a
//! time.

use std::path::Path;
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

use super::{PATIENCE, pattern};

/// The longest request in bytes.
pub const MAX_REQUEST: usize = 1 << 20;

const MIB: usize = 1 << 20;

/// A connected front-end with one queue.
pub struct FrontEnd {
    queue: Blkioq,
    region: MemoryRegion,
    /// Keeps the connection.
    _driver: Blkio,
}

/// A request that did not succeed.
#[derive(Debug, PartialEq, Eq)]
pub enum Failed {
    /// The device answered with an error.
    Error(i32),
    /// The device did not answer in time; it still may.
    NoAnswer,
}

impl FrontEnd {
    /// Connects to a device's socket.
    pub fn connect(socket: &Path) -> FrontEnd {
        let mut driver = Blkio::new("virtio-blk-vhost-user").unwrap();
        driver.set_str("path", socket.to_str().unwrap()).unwrap();
        driver.connect().unwrap();
        driver.set_i32("num-queues", 1).unwrap();
        let mut queues = driver.start().unwrap().queues;
        let mut queue = queues.remove(0);
        queue.set_completion_fd_enabled(true);
        let region = driver.alloc_mem_region(MAX_REQUEST).unwrap();
        driver.map_mem_region(&region).unwrap();
        FrontEnd {
            queue,
            region,
            _driver: driver,
        }
    }

    /// Writes at byte `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8], patience: Duration) -> Result<(), Failed> {
        assert!(data.len() <= MAX_REQUEST);
        // SAFETY: the region is mapped, this long, and no request uses it now.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), self.region.addr as *mut u8, data.len())
        };
        let buffer = self.region.addr as *const u8;
        self.queue
            .write(offset, buffer, data.len(), 0, ReqFlags::empty());
        self.finish(patience)
    }

    /// Reads at byte `offset`.
    pub fn read(&mut self, offset: u64, len: usize, patience: Duration) -> Result<Vec<u8>, Failed> {
        assert!(len <= MAX_REQUEST);
        self.queue.read(
            offset,
            self.region.addr as *mut u8,
            len,
            0,
            ReqFlags::empty(),
        );
        self.finish(patience)?;
        // SAFETY: the region is mapped, this long, and no request uses it now.
        Ok(unsafe { std::slice::from_raw_parts(self.region.addr as *const u8, len) }.to_vec())
    }

    /// Makes everything written durable.
    pub fn flush(&mut self, patience: Duration) -> Result<(), Failed> {
        self.queue.flush(0, ReqFlags::empty());
        self.finish(patience)
    }

    /// Waits for the answer of a request that did not come in time before.
    pub fn finish(&mut self, patience: Duration) -> Result<(), Failed> {
        let mut completions = [const { std::mem::MaybeUninit::<Completion>::uninit() }];
        let mut timeout = Some(patience);
        match self
            .queue
            .do_io(&mut completions, 1, timeout.as_mut(), None)
        {
            Ok(1) => {
                // SAFETY: do_io filled the one that it counted.
                let answer = unsafe { completions[0].assume_init_ref() };
                if answer.ret == 0 {
                    Ok(())
                } else {
                    Err(Failed::Error(answer.ret))
                }
            }
            Ok(_) => Err(Failed::NoAnswer),
            Err(_) => Err(Failed::NoAnswer),
        }
    }
}

/// Writes a mebibyte of [`pattern`].
pub fn write(disk: &mut FrontEnd, seed: u64, mebibyte: u64) {
    let at = mebibyte * MIB as u64;
    disk.write(at, &pattern(seed, at, MIB), PATIENCE).unwrap();
}

/// Is that what is there?
pub fn assert_reads(disk: &mut FrontEnd, seed: u64, mebibyte: u64) {
    let at = mebibyte * MIB as u64;
    let read = disk.read(at, MIB, PATIENCE).unwrap();
    let right = read == pattern(seed, at, MIB);
    assert!(right, "mebibyte {mebibyte}");
}
