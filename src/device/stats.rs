//! What the queues have done, countable from outside while they work.
//!
//! Each queue's counters lie on cache lines of their own and have one writer,
//! the queue's thread, so counting costs no locked instruction. They live as
//! long as the [`Server`](super::Server) and are not reset by a reconnect.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::request::decode::Status;
use super::request::slot::Kind;

/// A number with one writer.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One queue's counters.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct QueueStats {
    pub(super) reads: Counter,
    pub(super) read_bytes: Counter,
    pub(super) writes: Counter,
    pub(super) written_bytes: Counter,
    pub(super) flushes: Counter,
    pub(super) discards: Counter,
    pub(super) write_zeroes: Counter,
    pub(super) errors: Counter,
    pub(super) in_flight: Counter,
    pub(super) parked: Counter,
    pub(super) held: Counter,
    pub(super) unrepeated: Counter,
    pub(super) starts: Counter,
    timed: Counter,
    timed_ns: Counter,
    /// Rarely written, and by the queue's thread alone.
    dead: Mutex<Option<String>>,
}

impl QueueStats {
    /// The queue does nothing, for this reason, until the guest's driver starts it anew;
    /// or it does.
    pub(super) fn set_dead(&self, why: Option<String>) {
        *lock(&self.dead) = why;
    }

    /// A request of this kind was answered so.
    pub(super) fn count(&self, kind: Kind, status: Status) {
        if status != Status::Ok {
            self.errors.add(1);
            return;
        }
        match kind {
            Kind::Read(bytes) => {
                self.reads.add(1);
                self.read_bytes.add(bytes);
            }
            Kind::Write(bytes) => {
                self.writes.add(1);
                self.written_bytes.add(bytes);
            }
            Kind::Flush => self.flushes.add(1),
            Kind::Discard => self.discards.add(1),
            Kind::WriteZeroes => self.write_zeroes.add(1),
            Kind::Other => {}
        }
    }
}

/// Times a part of one queue's requests, one at a time: the clock costs too much for all.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    running: Option<(usize, Instant)>,
    pause: u8,
}

impl Stopwatch {
    /// Requests left out after one that was timed.
    const PAUSE: u8 = 15;

    /// The request in slot `token` was taken from the ring.
    pub(super) fn begin(&mut self, token: usize) {
        if self.running.is_some() {
            return;
        }
        match self.pause.checked_sub(1) {
            Some(left) => self.pause = left,
            None => {
                self.pause = Self::PAUSE;
                self.running = Some((token, Instant::now()));
            }
        }
    }

    /// The request in slot `token` was answered.
    pub(super) fn end(&mut self, token: usize, stats: &QueueStats) {
        if let Some((_, begin)) = self.running.take_if(|(timed, _)| *timed == token) {
            let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            stats.timed.add(1);
            stats.timed_ns.add(took);
        }
    }
}

/// The counters of all queues.
#[derive(Debug)]
pub struct Stats {
    queues: Vec<QueueStats>,
    dropped: Mutex<Option<String>>,
}

/// One queue's counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueueSnapshot {
    /// Reads completed with success.
    pub reads: u64,
    /// Bytes they read.
    pub read_bytes: u64,
    /// Writes completed with success.
    pub writes: u64,
    /// Bytes they wrote.
    pub written_bytes: u64,
    /// Flushes completed with success.
    pub flushes: u64,
    /// Discards completed with success.
    pub discards: u64,
    /// Write-zeroes completed with success.
    pub write_zeroes: u64,
    /// Requests answered with any other status than success, and malformed
    /// ones that could not be answered at all.
    pub errors: u64,
    /// Requests taken from the guest and not yet answered, the parked ones included.
    pub in_flight: u64,
    /// Requests that wait at the gate.
    pub parked: u64,
    /// Requests that wait for room on the disk.
    pub held: u64,
    /// Requests that were in flight when a device was lost, and wait to be done again,
    /// here or, if the ring has stopped, when it starts with the same record.
    pub unrepeated: u64,
    /// How often the ring was started.
    pub starts: u64,
}

/// All counters at one moment; queues are read one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// One entry per queue.
    pub queues: Vec<QueueSnapshot>,
}

impl Stats {
    pub(super) fn new(queues: u16) -> Self {
        Self {
            queues: (0..queues).map(|_| QueueStats::default()).collect(),
            dropped: Mutex::default(),
        }
    }

    /// Why queue `index` does nothing until the guest's driver starts it anew, if that is so.
    pub fn dead(&self, index: usize) -> Option<String> {
        self.queues
            .get(index)
            .and_then(|queue| lock(&queue.dead).clone())
    }

    /// Why the last front-end was dropped, if no ring has started since.
    pub fn dropped(&self) -> Option<String> {
        lock(&self.dropped).clone()
    }

    /// For whoever serves front-ends: the last one was dropped, for this reason.
    pub fn front_end_dropped(&self, why: String) {
        *lock(&self.dropped) = Some(why);
    }

    pub(super) fn ring_started(&self) {
        *lock(&self.dropped) = None;
    }

    /// The counters of queue `index`.
    pub(super) fn queue(&self, index: usize) -> Option<&QueueStats> {
        self.queues.get(index)
    }

    /// How many requests were timed, and how long they took together.
    pub fn timed(&self) -> (u64, Duration) {
        let sum = |counter: fn(&QueueStats) -> &Counter| {
            self.queues.iter().map(|queue| counter(queue).get()).sum()
        };
        (
            sum(|q| &q.timed),
            Duration::from_nanos(sum(|q| &q.timed_ns)),
        )
    }

    /// Reads all counters.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            queues: self.queues.iter().map(QueueStats::snapshot).collect(),
        }
    }
}

impl QueueStats {
    fn snapshot(&self) -> QueueSnapshot {
        QueueSnapshot {
            reads: self.reads.get(),
            read_bytes: self.read_bytes.get(),
            writes: self.writes.get(),
            written_bytes: self.written_bytes.get(),
            flushes: self.flushes.get(),
            discards: self.discards.get(),
            write_zeroes: self.write_zeroes.get(),
            errors: self.errors.get(),
            in_flight: self.in_flight.get(),
            parked: self.parked.get(),
            held: self.held.get(),
            unrepeated: self.unrepeated.get(),
            starts: self.starts.get(),
        }
    }
}

impl Snapshot {
    /// The sum over all queues.
    pub fn total(&self) -> QueueSnapshot {
        let mut sum = QueueSnapshot::default();
        for queue in &self.queues {
            sum.reads += queue.reads;
            sum.read_bytes += queue.read_bytes;
            sum.writes += queue.writes;
            sum.written_bytes += queue.written_bytes;
            sum.flushes += queue.flushes;
            sum.discards += queue.discards;
            sum.write_zeroes += queue.write_zeroes;
            sum.errors += queue.errors;
            sum.in_flight += queue.in_flight;
            sum.parked += queue.parked;
            sum.held += queue.held;
            sum.unrepeated += queue.unrepeated;
            sum.starts += queue.starts;
        }
        sum
    }
}

/// Nothing in it is half done.
fn lock(text: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}
