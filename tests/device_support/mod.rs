//! What the tests of the device share: a disk on a real file system, a gate that
//! can be closed, a server on a thread, and a front-end that lays out
//! descriptors by hand.
#![allow(dead_code, clippy::unwrap_used)]

pub mod daemon;
pub mod faulty_disk;
pub mod flushing_guest;
pub mod front_end;
pub mod pieces;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bypass_blk::device::gate::{Admission, Gate};
use bypass_blk::device::{
    Config, DeviceError, Disk, EndReason, Idle, Patience, Server, StopHandle,
};
use bypass_blk::image::local::Durability;
use vmm_sys_util::eventfd::EventFd;

pub const DEADLINE: Duration = Duration::from_secs(20);
pub const DISK_SIZE: u64 = 16 << 20;
pub const SERIAL: &str = "bypass-0001";

/// Waits until `condition` holds.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes in which every 512-byte sector differs.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8) ^ ((i / 512) as u8).wrapping_mul(31) ^ seed)
        .collect()
}

/// A temporary image, not on tmpfs.
pub struct Image(tempfile::NamedTempFile);

impl Image {
    pub fn new(contents: u8) -> Self {
        let image = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        image
            .as_file()
            .write_all_at(&vec![contents; DISK_SIZE as usize], 0)
            .unwrap();
        image.as_file().sync_all().unwrap();
        Self(image)
    }

    fn open(&self, write: bool) -> File {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(0o40000) // O_DIRECT
            .open(self.0.path())
            .unwrap()
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn disk(&self, write: bool) -> Disk {
        Disk::new(self.open(write), SERIAL).unwrap()
    }

    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.as_file().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub fn allocated_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.0.as_file().metadata().unwrap().blocks() * 512
    }
}

/// A gate that can be closed, and that counts what it owes.
#[derive(Default)]
pub struct TestGate {
    answer: Mutex<Option<Admission>>,
    /// Bytes of the disk whose changes wait alone.
    closed: Mutex<Range<u64>>,
    must_answer: AtomicBool,
    wakes: Mutex<Vec<Arc<EventFd>>>,
    begun: Mutex<HashMap<(u64, u64), i64>>,
    /// Offsets of the changes let through, in their order.
    order: Mutex<Vec<u64>>,
    pub asked: AtomicU64,
    /// As a session remembers the syncs that failed.
    durability: Durability,
}

impl TestGate {
    pub fn set(&self, answer: Admission) {
        *self.answer.lock().unwrap() = Some(answer);
        self.wake();
    }

    /// Changes of these bytes wait alone from now on, and others do not.
    pub fn close(&self, bytes: Range<u64>) {
        *self.closed.lock().unwrap() = bytes;
        self.wake();
    }

    /// What a ring that stops has taken must be answered.
    pub fn leave(&self) {
        self.must_answer.store(true, Ordering::SeqCst);
    }

    fn wake(&self) {
        for wake in self.wakes.lock().unwrap().iter() {
            wake.write(1).unwrap();
        }
    }

    fn answer(&self) -> Admission {
        self.answer.lock().unwrap().unwrap_or(Admission::Go)
    }

    pub fn order(&self) -> Vec<u64> {
        self.order.lock().unwrap().clone()
    }

    /// Forgets the order so far.
    pub fn forget(&self) {
        self.order.lock().unwrap().clear();
    }

    /// Extents begun more often than ended, or the other way round.
    pub fn unbalanced(&self) -> Vec<((u64, u64), i64)> {
        let begun = self.begun.lock().unwrap();
        begun
            .iter()
            .filter(|(_, n)| **n != 0)
            .map(|(k, n)| (*k, *n))
            .collect()
    }
}

impl Gate for TestGate {
    fn must_answer(&self) -> bool {
        self.must_answer.load(Ordering::SeqCst)
    }

    fn admit_read(&self) -> Admission {
        match self.answer() {
            Admission::Refuse => Admission::Refuse,
            _ => Admission::Go,
        }
    }

    fn begin_write(&self, offset: u64, len: u64) -> Admission {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut answer = self.answer();
        let closed = self.closed.lock().unwrap().clone();
        if answer == Admission::Go && offset < closed.end && closed.start < offset + len {
            answer = Admission::WaitAlone;
        }
        if answer == Admission::Go {
            *self.begun.lock().unwrap().entry((offset, len)).or_default() += 1;
            self.order.lock().unwrap().push(offset);
        }
        answer
    }

    fn end_write(&self, offset: u64, len: u64) {
        *self.begun.lock().unwrap().entry((offset, len)).or_default() -= 1;
    }

    fn begin_sync(&self) -> Admission {
        match self.durability.begin() {
            true => Admission::Go,
            false => Admission::Refuse,
        }
    }

    fn sync_failed(&self, errno: i32) {
        self.durability.fail_with("a flush", errno);
    }

    fn end_sync(&self) -> bool {
        self.durability.end();
        self.durability.failure().is_none()
    }

    fn subscribe(&self, wake: Arc<EventFd>) {
        self.wakes.lock().unwrap().push(wake);
    }
}

/// A device over an image, and the gate in front of it.
pub struct Device {
    pub image: Image,
    pub gate: Arc<TestGate>,
    pub server: Arc<Server<TestGate>>,
}

pub type Serving = JoinHandle<Result<EndReason, DeviceError>>;

impl Device {
    pub fn new() -> Self {
        Self::with(
            true,
            Config {
                num_queues: 2,
                ..Config::default()
            },
        )
    }

    pub fn with_patience(patience: Patience) -> Self {
        Self::new().adjusted(|server| server.with_patience(patience))
    }

    pub fn with_idle(idle: Idle) -> Self {
        Self::new().adjusted(|server| server.with_idle(idle))
    }

    fn adjusted(self, adjust: impl FnOnce(Server<TestGate>) -> Server<TestGate>) -> Self {
        let server = adjust(Arc::into_inner(self.server).unwrap());
        Self {
            server: Arc::new(server),
            ..self
        }
    }

    pub fn read_only() -> Self {
        Self::with(
            false,
            Config {
                num_queues: 1,
                ..Config::default()
            },
        )
    }

    fn with(write: bool, config: Config) -> Self {
        let image = Image::new(0xee);
        let gate = Arc::new(TestGate::default());
        let server = Arc::new(Server::new(image.disk(write), Arc::clone(&gate), config).unwrap());
        Self {
            image,
            gate,
            server,
        }
    }

    /// Serves one connection on a thread.
    pub fn serve(&self) -> (UnixStream, Serving) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, self.serve_this(theirs))
    }

    /// Serves this one on a thread.
    pub fn serve_this(&self, stream: UnixStream) -> Serving {
        let server = Arc::clone(&self.server);
        std::thread::spawn(move || server.serve(stream))
    }

    pub fn stop_handle(&self) -> StopHandle {
        self.server.stop_handle()
    }

    pub fn parked(&self) -> u64 {
        self.server.stats().snapshot().total().parked
    }
}
