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
use std::time::{Duration, Instant};

use super::device::{Device, Kind};
use super::oracle::{Oracle, SECTOR, ZEROES};
use super::rng::Rng;

/// Requests in flight at most.
const SLOTS: usize = 16;
/// The longest write or read in sectors: 256 KiB.
const MAX_SECTORS: usize = 512;
/// The longest range that is zeroed or discarded, in sectors: 1 MiB.
const MAX_ZEROED: usize = 2048;
/// Hot spots, and the length of each in sectors.
const HOT_SPOTS: usize = 4;
const HOT_SECTORS: usize = 1024;
/// How long the thread waits for answers at a time.
const TICK: Duration = Duration::from_millis(10);
/// The pause after a refused request.
const AFTER_ERROR: Duration = Duration::from_millis(200);
/// How long a device that is alive and has its bricks may take for an answer:
/// a brick may hold a lock of a cut-off connection for a while.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the load is to do.
const RUN: u8 = 0;
const FINISH: u8 = 1;
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

/// A request in flight; flushes have no sectors.
#[derive(Clone, Copy, Debug)]
struct Request {
    kind: Kind,
    first: usize,
    sectors: usize,
    version: u64,
}

impl Request {
    fn bytes(&self) -> usize {
        self.sectors * SECTOR
    }

    fn changes(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::Zeroes | Kind::Discard)
    }

    fn excludes(&self, other: &Request) -> bool {
        let apart =
            self.first + self.sectors <= other.first || other.first + other.sectors <= self.first;
        !apart && (self.changes() || other.changes())
    }
}

struct Guest {
    device: Device,
    slots: [Option<Request>; SLOTS],
    hot: [usize; HOT_SPOTS],
    rng: Rng,
    burst: u64,
    idle_until: Instant,
    done: Done,
}

impl Guest {
    fn new(device: Device, oracle: Oracle, mut rng: Rng) -> Self {
        let room = (oracle.sectors() - HOT_SECTORS) as u64;
        Self {
            device,
            slots: [None; SLOTS],
            hot: std::array::from_fn(|_| rng.below(room) as usize),
            rng,
            burst: 0,
            idle_until: Instant::now(),
            done: Done {
                oracle,
                tally: Tally::default(),
                complaints: Vec::new(),
            },
        }
    }

    fn run(mut self, mode: &AtomicU8) -> Done {
        loop {
            match mode.load(Ordering::SeqCst) {
                RUN => self.keep_busy(),
                FINISH => {
                    self.finish();
                    break;
                }
                _ => break,
            }
        }
        self.reap(Duration::ZERO);
        for request in self.slots.into_iter().flatten().filter(Request::changes) {
            self.done.tally.open += 1;
            let Request {
                first,
                sectors,
                version,
                ..
            } = request;
            self.done.oracle.leave_open(first, sectors, version);
        }
        self.done
    }

    fn keep_busy(&mut self) {
        if Instant::now() >= self.idle_until {
            if self.burst == 0 {
                self.burst = *self.rng.pick(&[1, 32, 512, 2048]);
            }
            while self.burst > 0 && self.submit_next() {
                self.burst -= 1;
            }
            if self.burst == 0 {
                let (from, to) = *self.rng.pick(&[(1, 20), (1, 20), (1, 50), (50, 1500)]);
                self.idle_until = Instant::now() + self.rng.millis(from, to);
            }
        }
        self.reap(TICK);
    }

    /// Submits a random request; `false` when there is no room for one.
    fn submit_next(&mut self) -> bool {
        let Some(slot) = self.slots.iter().position(Option::is_none) else {
            return false;
        };
        let request = self.next_request();
        if self
            .slots
            .iter()
            .flatten()
            .any(|other| request.excludes(other))
        {
            // Another place next time.
            return true;
        }
        self.submit(slot, request);
        true
    }

    fn next_request(&mut self) -> Request {
        let kind = match self.rng.below(20) {
            0 => Kind::Flush,
            1 => Kind::Zeroes,
            2 => Kind::Discard,
            3..=5 => Kind::Read,
            _ => Kind::Write,
        };
        let limit = match kind {
            Kind::Flush => 0,
            Kind::Zeroes | Kind::Discard => MAX_ZEROED,
            Kind::Read | Kind::Write => MAX_SECTORS,
        };
        let sectors = match limit {
            0 => 0,
            limit => {
                // As many short ones as long ones.
                let bits = self.rng.below(u64::from(usize::ilog2(limit)) + 1);
                1 + self.rng.below(1 << bits) as usize
            }
        };
        let hot = *self.rng.pick(&self.hot);
        let first = match self.rng.chance(1, 2) {
            _ if kind == Kind::Flush => 0,
            true => hot + self.rng.below(HOT_SECTORS as u64) as usize,
            false => self.rng.below(self.done.oracle.sectors() as u64) as usize,
        };
        Request {
            kind,
            first: first.min(self.done.oracle.sectors() - sectors),
            sectors,
            version: ZEROES,
        }
    }

    fn submit(&mut self, slot: usize, mut request: Request) {
        if request.kind == Kind::Write {
            let buffer = self.device.buffer(slot, request.bytes());
            request.version = self.done.oracle.next_version(request.first, buffer);
        }
        let offset = (request.first * SECTOR) as u64;
        self.device
            .submit(slot, request.kind, offset, request.bytes());
        self.slots[slot] = Some(request);
    }

    fn in_flight(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Takes answers, waiting for the first one.
    fn reap(&mut self, patience: Duration) {
        let in_flight = self.in_flight();
        if in_flight == 0 {
            let idle = self.idle_until.saturating_duration_since(Instant::now());
            std::thread::park_timeout(idle.min(patience));
            return;
        }
        for (slot, result) in self.device.answers(in_flight, patience) {
            if let Some(request) = self.slots[slot].take() {
                self.answered(slot, request, result);
            }
        }
    }

    fn answered(&mut self, slot: usize, request: Request, result: i32) {
        let Request {
            kind,
            first,
            sectors,
            version,
            ..
        } = request;
        let Done {
            oracle,
            tally,
            complaints,
        } = &mut self.done;
        if result != 0 {
            tally.errors += 1;
            self.idle_until = Instant::now() + AFTER_ERROR;
            if request.changes() {
                oracle.leave_open(first, sectors, version);
            }
            return;
        }
        match kind {
            Kind::Flush => tally.flushes += 1,
            Kind::Read => {
                tally.reads += 1;
                let bytes = self.device.buffer(slot, request.bytes());
                if let Err(wrong) = oracle.check(first, bytes) {
                    complaints.push(format!("the device read wrong bytes: {wrong}"));
                }
            }
            Kind::Write => {
                tally.writes += 1;
                tally.written += request.bytes() as u64;
                oracle.acknowledge(first, sectors, version);
            }
            Kind::Zeroes | Kind::Discard => {
                tally.zeroed += 1;
                oracle.acknowledge(first, sectors, ZEROES);
            }
        }
    }

    /// Waits for all answers.
    fn drain(&mut self) {
        let begin = Instant::now();
        while self.in_flight() > 0 {
            self.reap(TICK);
            if begin.elapsed() > PATIENCE {
                let stuck: Vec<_> = self.slots.iter().flatten().collect();
                self.done
                    .complaints
                    .push(format!("never answered in {PATIENCE:?}: {stuck:?}"));
                return;
            }
        }
    }

    /// All answers, and then a write and a flush that succeed: with every brick
    /// back, writes that failed for want of a quorum work again.
    fn finish(&mut self) {
        self.drain();
        for kind in [Kind::Write, Kind::Flush] {
            let begin = Instant::now();
            loop {
                if self.in_flight() > 0 {
                    return;
                }
                let errors = self.done.tally.errors;
                let request = Request {
                    kind,
                    first: if kind == Kind::Write { self.hot[0] } else { 0 },
                    sectors: usize::from(kind == Kind::Write),
                    version: ZEROES,
                };
                self.submit(0, request);
                self.drain();
                if self.done.tally.errors == errors {
                    break;
                }
                if begin.elapsed() > PATIENCE {
                    let text = format!("{kind:?} still fails {PATIENCE:?} after the last fault");
                    self.done.complaints.push(text);
                    return;
                }
                std::thread::park_timeout(AFTER_ERROR);
            }
        }
    }
}
