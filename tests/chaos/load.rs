//! A guest's load without a guest: several requests in flight, in bursts and
//! pauses, at random places and at hot ones; whatever is answered goes into the
//! oracle.
//!
//! It never has two requests in flight that touch the same sector, unless both
//! are reads: what such a pair leaves is undefined on any disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::device::Device;
use super::guest::{Guest, MAX_SECTORS, SLOTS};
use super::oracle::{Oracle, SECTOR};
use super::rng::Rng;

/// How long the thread waits for answers at a time.
pub const TICK: Duration = Duration::from_millis(10);
/// What the load is to do.
pub const RUN: u8 = 0;
pub const FINISH: u8 = 1;
const ABANDON: u8 = 2;

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Writes acknowledged.
    pub writes: u64,
    /// Their bytes.
    pub written: u64,
    /// Discards and writes of zeroes acknowledged.
    pub zeroed: u64,
    /// Reads answered, and found right.
    pub reads: u64,
    /// Flushes acknowledged.
    pub flushes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Changes never answered.
    pub open: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.writes += other.writes;
        self.written += other.written;
        self.zeroed += other.zeroed;
        self.reads += other.reads;
        self.flushes += other.flushes;
        self.errors += other.errors;
        self.open += other.open;
    }
}

/// A load at its end.
pub struct Done {
    /// What the disk must hold now.
    pub oracle: Oracle,
    /// What was done.
    pub tally: Tally,
    /// What went wrong: wrong bytes read, requests that were never answered.
    pub complaints: Vec<String>,
}

/// A running load.
pub struct Load {
    mode: Arc<AtomicU8>,
    thread: JoinHandle<Done>,
}

impl Load {
    /// Connects to the device and begins.
    pub fn start(socket: &Path, oracle: Oracle, rng: Rng) -> Load {
        let mode = Arc::new(AtomicU8::new(RUN));
        let (seen, socket) = (Arc::clone(&mode), socket.to_owned());
        let thread = std::thread::spawn(move || run(&socket, oracle, rng, &seen));
        Load { mode, thread }
    }

    /// Ends it in order: every request must be answered, and then a write and a
    /// flush must succeed.
    pub fn finish(self) -> Done {
        self.end(FINISH)
    }

    /// Ends it because the device is dead: takes the answers that are there.
    pub fn abandon(self) -> Done {
        self.end(ABANDON)
    }

    fn end(self, mode: u8) -> Done {
        self.mode.store(mode, Ordering::SeqCst);
        self.thread.join().expect("the load panicked")
    }
}

fn run(socket: &Path, oracle: Oracle, rng: Rng, mode: &AtomicU8) -> Done {
    match Device::connect(socket, SLOTS, MAX_SECTORS * SECTOR) {
        Ok(device) => Guest::new(device, oracle, rng).run(mode),
        Err(error) => {
            let mut complaints = Vec::new();
            // A device may be killed while it is connected to.
            wait_for_end(mode);
            if mode.load(Ordering::SeqCst) == FINISH {
                complaints.push(format!("cannot connect: {error}"));
            }
            Done {
                oracle,
                tally: Tally::default(),
                complaints,
            }
        }
    }
}

fn wait_for_end(mode: &AtomicU8) {
    while mode.load(Ordering::SeqCst) == RUN {
        std::thread::park_timeout(TICK);
    }
}
