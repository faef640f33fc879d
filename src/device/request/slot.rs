//! One request from the guest, from its descriptors to its status byte.
//!
//! A slot is the state machine between a request and the operations it takes:
//! [`load`](Slot::load) reads the chain, [`next`](Slot::next) gives the next
//! operation, [`completed`](Slot::completed) takes its result. How reads and
//! writes go on is in `transfer`, discards and write-zeroes in `ranges`. A slot
//! submits nothing and asks no gate; that is the queue's part. Slots are reused,
//! and so is what they have allocated.

mod flush;

use std::sync::Arc;
use std::time::Instant;

use vm_memory::{Address, GuestAddress};

use crate::device::guest::access;
use crate::device::guest::chain::{Chain, ChainError, copy_from_guest, copy_to_guest, total_len};
use crate::device::guest::memory::Memory;
use crate::device::io::bounce::BouncePool;
use crate::device::io::disk::Disk;
use crate::device::io::engine::{Buffer, Vectors};
use crate::device::shared_memory::dirty_log::DirtyLog;

use super::decode::{
    Extent, Geometry, HEADER_LEN, MAX_RANGES, RANGE_LEN, Request, Status, parse, parse_discard,
    parse_write_zeroes,
};
use super::outcome::{Outcome, Step, io_error};
use super::ranges::Ranges;
use super::syncs::Syncs;
use super::transfer::{Guest, Transfer};

/// How often an operation is tried again that the kernel did not begin.
const MAX_ATTEMPTS: u8 = 16;

/// What [`Slot::load`] made of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// A request that takes operations, once the gate lets it.
    Ready,
    /// To be answered at once.
    Answer(Status),
    /// Malformed, with no place for a status: give the chain back.
    Unanswerable,
}

/// What a request does to the disk, for the gate.
pub enum Access<'a> {
    /// Reads it.
    Read,
    /// Changes these extents.
    Change(&'a [Extent]),
    /// Makes what was written durable.
    Sync,
    /// None of these.
    Nothing,
}

/// What a request does, for the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read of so many bytes.
    Read(u64),
    /// Write of so many bytes.
    Write(u64),
    /// Flush.
    Flush,
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes,
    /// None of these.
    Other,
}

/// A request was answered, or given back to be taken again: its slot may be free
/// ([`Slots::free`](super::slots::Slots::free)).
#[must_use = "the slot stays taken, and the ring never stops"]
pub struct Settled(());

enum Work {
    Idle,
    Transfer(Transfer),
    Flush(Syncs),
    Ranges(Ranges),
}

/// Room for one request.
pub struct Slot {
    head: u16,
    chain: Chain,
    memory: Option<Arc<Memory>>,
    status_at: Option<GuestAddress>,
    kind: Kind,
    work: Work,
    changes: Vec<Extent>,
    /// Whether changes must be durable when the request is answered.
    durable: bool,
    attempts: u8,
    vectors: Vectors,
    /// Since when it waits for room on the disk.
    pub held_since: Option<Instant>,
    /// Grows with each request that is taken.
    pub order: u64,
}

impl Slot {
    /// An empty slot.
    pub fn new() -> Self {
        Self {
            head: 0,
            chain: Chain::default(),
            memory: None,
            status_at: None,
            kind: Kind::Other,
            work: Work::Idle,
            changes: Vec::new(),
            durable: false,
            attempts: 0,
            vectors: Vectors::default(),
            held_since: None,
            order: 0,
        }
    }

    /// Index of the chain's first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the request does, once loaded.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the request does to the disk.
    pub fn access(&self) -> Access<'_> {
        match &self.work {
            Work::Transfer(transfer) if !transfer.is_write() => Access::Read,
            Work::Transfer(_) | Work::Ranges(_) => Access::Change(&self.changes),
            Work::Flush(_) => Access::Sync,
            Work::Idle => Access::Nothing,
        }
    }

    /// Whether the request is answered only when something is on stable storage.
    pub fn syncs(&self) -> bool {
        match self.access() {
            Access::Sync => true,
            Access::Change(_) => self.durable,
            Access::Read | Access::Nothing => false,
        }
    }

    /// Reads the chain at `head` of a descriptor table and its entries. With
    /// `durable` the request's changes are on stable storage when it is answered.
    pub fn load(
        &mut self,
        memory: &Arc<Memory>,
        descriptors: (GuestAddress, u16),
        head: u16,
        disk: &Disk,
        durable: bool,
    ) -> Loaded {
        self.head = head;
        self.work = Work::Idle;
        self.kind = Kind::Other;
        self.changes.clear();
        self.durable = durable;
        self.attempts = 0;
        self.held_since = None;
        self.memory = Some(Arc::clone(memory));
        let walked = self.chain.walk(memory, descriptors.0, descriptors.1, head);
        self.status_at = match walked {
            Ok(()) | Err(ChainError::Order | ChainError::TooLong) => {
                self.chain.take_status(memory).ok()
            }
            Err(_) => None,
        };
        let header = walked.and_then(|()| self.chain.take_header(memory));
        match (header, self.status_at) {
            (Ok(header), Some(_)) => self.interpret(&header, memory, disk),
            (Err(error), Some(_)) => {
                log::debug!("malformed request: {error}");
                Loaded::Answer(Status::IoError)
            }
            (header, None) => {
                let error = header.err().unwrap_or(ChainError::NoStatus);
                log::debug!("malformed request, returned without an answer: {error}");
                Loaded::Unanswerable
            }
        }
    }

    fn interpret(&mut self, header: &[u8; HEADER_LEN], memory: &Memory, disk: &Disk) -> Loaded {
        let geometry = Geometry::from(disk);
        let readable = total_len(self.chain.readable());
        let writable = total_len(self.chain.writable());
        let request = match parse(header, readable, writable, &geometry) {
            Ok(request) => request,
            Err(error) => {
                log::debug!("refused request: {error}");
                return Loaded::Answer(error.status());
            }
        };
        match request {
            Request::Read(extent) => self.transfer(false, extent),
            Request::Write(extent) => self.transfer(true, extent),
            Request::Flush => {
                self.kind = Kind::Flush;
                self.work = Work::Flush(Syncs::default());
                Loaded::Ready
            }
            Request::GetId => self.answer_id(memory, disk),
            Request::Discard(len) => self.ranges(len, memory, &geometry, Kind::Discard),
            Request::WriteZeroes(len) => self.ranges(len, memory, &geometry, Kind::WriteZeroes),
        }
    }

    fn transfer(&mut self, write: bool, extent: Extent) -> Loaded {
        if write {
            self.changes.push(extent);
            self.kind = Kind::Write(extent.len);
        } else {
            self.kind = Kind::Read(extent.len);
        }
        self.work = Work::Transfer(Transfer::new(write, extent));
        Loaded::Ready
    }

    fn answer_id(&self, memory: &Memory, disk: &Disk) -> Loaded {
        let serial = disk.serial();
        let room = usize::try_from(total_len(self.chain.writable())).unwrap_or(usize::MAX);
        let fits = serial.get(..room.min(serial.len())).unwrap_or_default();
        match copy_to_guest(memory, self.chain.writable(), 0, fits) {
            Some(()) => Loaded::Answer(Status::Ok),
            None => Loaded::Answer(Status::IoError),
        }
    }

    fn ranges(&mut self, len: usize, memory: &Memory, geometry: &Geometry, kind: Kind) -> Loaded {
        let mut room = [0; RANGE_LEN * MAX_RANGES as usize];
        let Some(bytes) = room.get_mut(..len).and_then(|bytes| {
            copy_from_guest(memory, self.chain.readable(), 0, bytes).map(|()| bytes)
        }) else {
            return Loaded::Answer(Status::IoError);
        };
        let parsed = if kind == Kind::Discard {
            parse_discard(bytes, geometry, &mut self.changes)
        } else {
            parse_write_zeroes(bytes, geometry, &mut self.changes)
        };
        match parsed {
            Err(error) => {
                log::debug!("refused request: {error}");
                self.changes.clear();
                Loaded::Answer(error.status())
            }
            Ok(range_kind) => {
                self.kind = kind;
                self.work = Work::Ranges(Ranges::new(range_kind, self.durable));
                Loaded::Ready
            }
        }
    }

    /// The next operation of a loaded request.
    pub fn next(&mut self, disk: &Disk, pool: &mut BouncePool) -> Step {
        match (&mut self.work, &self.memory) {
            (Work::Idle, _) | (Work::Transfer(_), None) => Step::Done(Status::IoError),
            (Work::Flush(_), _) if !disk.is_whole() => Step::SyncFiles,
            (Work::Flush(syncs), _) => {
                let operation = syncs.next(disk);
                operation.map_or(Step::Done(Status::Ok), Step::Submit)
            }
            (Work::Ranges(ranges), _) => ranges.next(&self.changes, &mut self.vectors, disk),
            (Work::Transfer(transfer), Some(memory)) => {
                let mut guest = Guest {
                    memory,
                    chain: &self.chain,
                    vectors: &mut self.vectors,
                    pool,
                };
                transfer.next(&mut guest, disk, self.durable)
            }
        }
    }

    /// Takes the result of the operation last given: bytes, or an error number.
    pub fn completed(
        &mut self,
        result: Result<usize, i32>,
        buffer: Option<Buffer>,
        disk: &Disk,
        pool: &mut BouncePool,
    ) -> Step {
        let full = self.wants_room(&result);
        let outcome = match full {
            Some(_) => Outcome::Retry,
            None => self.outcome(result),
        };
        let unsynced = match outcome {
            Outcome::Failed(errno) if self.fails_to_sync(errno) => Some(errno),
            _ => None,
        };
        if !disk.is_whole() {
            self.count_change(disk);
        }
        let answer = match (&mut self.work, &self.memory, buffer) {
            (Work::Transfer(transfer), Some(memory), Some(buffer)) => {
                let mut guest = Guest {
                    memory,
                    chain: &self.chain,
                    vectors: &mut self.vectors,
                    pool,
                };
                transfer.completed(outcome, buffer, &mut guest, disk)
            }
            (Work::Ranges(ranges), _, buffer) => {
                if let Some(buffer) = buffer {
                    self.vectors = buffer.reclaim().0;
                }
                ranges.completed(outcome, &self.changes, disk)
            }
            (Work::Flush(syncs), ..) => match outcome {
                Outcome::Bytes(_) => {
                    syncs.succeeded(disk);
                    None
                }
                Outcome::Retry => None,
                Outcome::Failed(errno) => Some(io_error("flush", errno)),
            },
            (Work::Idle | Work::Transfer(_), ..) => Some(Status::IoError),
        };
        if let Some(errno) = full {
            return Step::Full(errno);
        }
        match (answer, unsynced) {
            (Some(_), Some(errno)) => Step::Unsynced(errno),
            (Some(status), None) => Step::Done(status),
            (None, _) => self.next(disk, pool),
        }
    }

    /// A flush has to see to the file to which the operation that has ended may have done
    /// something, unless that was durable at once.
    fn count_change(&self, disk: &Disk) {
        let changed = match &self.work {
            Work::Transfer(transfer) if transfer.is_write() && !self.durable => {
                Some(transfer.position())
            }
            Work::Ranges(ranges) if !ranges.is_syncing() => ranges.position(&self.changes),
            Work::Transfer(_) | Work::Ranges(_) | Work::Flush(_) | Work::Idle => None,
        };
        if let Some(position) = changed {
            disk.files().changed(disk.spot(position).file);
        }
    }

    /// The error number, if it says that the disk has no room for a change.
    fn wants_room(&self, result: &Result<usize, i32>) -> Option<i32> {
        let changes = match &self.work {
            Work::Transfer(transfer) => transfer.is_write(),
            Work::Ranges(ranges) => !ranges.is_syncing(),
            Work::Flush(_) | Work::Idle => false,
        };
        match result {
            Err(errno @ (libc::ENOSPC | libc::EDQUOT)) if changes => Some(*errno),
            _ => None,
        }
    }

    /// Whether an operation that failed so was to make something durable. A write that was to
    /// be durable does not tell which half of it failed, but for what happens before the
    /// disk has anything to do with it.
    fn fails_to_sync(&self, errno: i32) -> bool {
        match &self.work {
            Work::Flush(_) => true,
            Work::Ranges(ranges) => ranges.is_syncing(),
            Work::Transfer(transfer) if transfer.is_write() => {
                self.durable && !matches!(errno, libc::EFAULT | libc::EINVAL | libc::ENOMEM)
            }
            Work::Transfer(_) | Work::Idle => false,
        }
    }

    fn outcome(&mut self, result: Result<usize, i32>) -> Outcome {
        match result {
            Err(libc::EAGAIN | libc::EINTR) if self.attempts < MAX_ATTEMPTS => {
                self.attempts += 1;
                Outcome::Retry
            }
            Err(errno) => Outcome::Failed(errno),
            Ok(bytes) => {
                self.attempts = 0;
                Outcome::Bytes(bytes)
            }
        }
    }

    /// Lets go of a request that is not answered here: whoever starts the ring next takes it again.
    pub fn abandon(&mut self) -> Settled {
        self.work = Work::Idle;
        self.held_since = None;
        (self.memory, self.status_at) = (None, None);
        Settled(())
    }

    /// Writes the status and lets go of the guest's memory; marks in `log` what was
    /// written there for this request, by whomever. Returns the bytes written into
    /// the chain, for the used element.
    pub fn answer(&mut self, status: Status, log: Option<&DirtyLog>) -> (u32, Settled) {
        self.work = Work::Idle;
        let (Some(memory), Some(status_at)) = (self.memory.take(), self.status_at.take()) else {
            return (0, Settled(()));
        };
        let answered = access::write(&memory, status_at, status as u8);
        if let Some(log) = log {
            // All that may have been written: a read that failed may have left a part.
            for segment in self.chain.writable() {
                log.mark(segment.addr.raw_value(), segment.len.into());
            }
            log.mark(status_at.raw_value(), 1);
        }
        let written = match answered {
            Ok(()) => u32::try_from(total_len(self.chain.writable()) + 1).unwrap_or(u32::MAX),
            Err(_) => 0,
        };
        (written, Settled(()))
    }
}
