//! The whole way, in one process: a guest with several queues, the rings, the sender, a network,
//! a peer whose disk forgets what was not synced. Whatever comes in whichever order, these hold:
//!
//! * what the dirty map calls clean is durable at the peer;
//! * what has reached the peer's disk is something that a power cut could have left of the guest's;
//! * once all is quiet, nothing is dirty and both disks are equal.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use crate::image::dirty_map::extent::{Extent, LANES};
use crate::image::dirty_map::{Copied, Peer, Peers};

use super::super::applying::{Applying, Step};
use super::super::buffer::StreamBuffer;
use super::super::cells::Kind;
use super::super::in_order::InOrder;
use super::super::outstanding::{CopyMap, Outstanding};
use super::super::recorder::{Recorder, Room, Ticket};
use super::{small, take};

/// Extents of the disk, each as large as a page.
const EXTENTS: u64 = 6;
const QUEUES: usize = 2;

/// The rule that a world breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A write is submitted though one to the same bytes is under way.
    WritesOverlap,
    /// A flush has no place in the sequence.
    NoFlushes,
    /// The peer says that something is durable before it has synced.
    AckBeforeSync,
    /// The peer applies what comes as it comes.
    NoOrderAtThePeer,
}

struct Map([AtomicU64; 2]);

impl Map {
    fn extent(&self, number: u64) -> Extent<'_> {
        let number = number as usize;
        Extent::new(&self.0[number / LANES], number % LANES)
    }
}

fn peer() -> Peer {
    Peer::new(0).unwrap()
}

impl CopyMap for Map {
    fn begin(&self, extent: u64) -> bool {
        self.extent(extent).begin_copy(peer())
    }

    fn end(&self, extent: u64) -> bool {
        self.extent(extent).end_copy(peer()) == Copied::Cleared
    }

    fn abandon(&self, extent: u64) {
        self.extent(extent).forget_copies(peer().into());
    }
}

/// A write that the guest has asked for.
struct Write {
    queue: usize,
    extents: std::ops::Range<u64>,
    value: u64,
    ticket: Ticket,
}

/// What comes next.
#[derive(Clone, Debug)]
enum Act {
    Write { queue: usize, at: u64, len: u64 },
    Flush(usize),
    Land(usize),
    Send,
    Receive,
    Begin,
    Apply(usize),
    Sync,
    Hear,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        5 => (0..QUEUES, 0..EXTENTS, 1..3_u64)
            .prop_map(|(queue, at, len)| Act::Write { queue, at, len }),
        2 => (0..QUEUES).prop_map(Act::Flush),
        5 => (0..8_usize).prop_map(Act::Land),
        5 => Just(Act::Send),
        5 => Just(Act::Receive),
        5 => Just(Act::Begin),
        5 => (0..8_usize).prop_map(Act::Apply),
        1 => Just(Act::Sync),
        3 => Just(Act::Hear),
    ];
    prop::collection::vec(act, 1..300)
}

struct World {
    broken: Broken,
    buffer: StreamBuffer,
    queues: Vec<Recorder>,
    map: Map,
    reader: InOrder,
    outstanding: Outstanding,
    under_way: Vec<Write>,
    local: [u64; EXTENTS as usize],
    values: u64,
    /// Completed before some flush was asked for: the values, for each flush that was answered.
    flushed: Vec<BTreeSet<u64>>,
    /// Of each write, how many of those flushes were answered before it was asked for.
    asked: BTreeMap<u64, usize>,
    completed: BTreeSet<u64>,
    wire: VecDeque<Step<u64>>,
    applying: Applying<u64>,
    at_the_disk: Vec<(u64, std::ops::Range<u64>, u64)>,
    /// The peer's disk as it is read, and as a power cut leaves it.
    peer: [u64; EXTENTS as usize],
    durable: [u64; EXTENTS as usize],
    /// Values that its disk has seen.
    applied: BTreeSet<u64>,
    answers: VecDeque<u64>,
}

impl World {
    fn new(broken: Broken) -> Self {
        let buffer = small(QUEUES, 64, 128);
        let reader = InOrder::join(buffer.cells(), 0);
        Self {
            broken,
            queues: (0..QUEUES)
                .map(|queue| Recorder::new(queue, buffer.shape().data))
                .collect(),
            map: Map([AtomicU64::new(0), AtomicU64::new(0)]),
            reader,
            outstanding: Outstanding::default(),
            under_way: Vec::new(),
            local: [0; EXTENTS as usize],
            values: 0,
            flushed: Vec::new(),
            asked: BTreeMap::new(),
            completed: BTreeSet::new(),
            wire: VecDeque::new(),
            applying: Applying::new(0),
            at_the_disk: Vec::new(),
            peer: [0; EXTENTS as usize],
            durable: [0; EXTENTS as usize],
            applied: BTreeSet::new(),
            answers: VecDeque::new(),
            buffer,
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Write { queue, at, len } => self.write(queue, at..(at + len).min(EXTENTS)),
            Act::Flush(queue) => self.flush(queue),
            Act::Land(which) if !self.under_way.is_empty() => {
                let write = self.under_way.swap_remove(which % self.under_way.len());
                self.land(write);
            }
            Act::Send => self.send(),
            Act::Receive => {
                let step = self.wire.pop_front();
                step.into_iter().for_each(|step| self.applying.push(step));
            }
            Act::Begin => self.begin(),
            Act::Apply(which) if !self.at_the_disk.is_empty() => {
                let which = which % self.at_the_disk.len();
                let (number, extents, value) = self.at_the_disk.swap_remove(which);
                self.apply(extents, value);
                self.applying.over(number);
                if self.broken == Broken::AckBeforeSync {
                    self.answers.push_back(self.applying.applied());
                }
            }
            Act::Sync => {
                self.durable = self.peer;
                self.answers.push_back(self.applying.applied());
            }
            Act::Hear => {
                if let Some(before) = self.answers.pop_front() {
                    self.outstanding.durable(&self.map, before);
                    self.reader.let_go_before(self.buffer.cells(), before);
                }
            }
            Act::Land(_) | Act::Apply(_) => {}
        }
    }

    fn write(&mut self, queue: usize, extents: std::ops::Range<u64>) {
        let overlaps = |other: &Write| {
            other.extents.start < extents.end && extents.start < other.extents.end
        };
        if self.broken != Broken::WritesOverlap && self.under_way.iter().any(overlaps) {
            return;
        }
        for extent in extents.clone() {
            assert!(self.map.extent(extent).begin_write(Peers::first(1)));
        }
        let bytes = (extents.end - extents.start) * 4096;
        let cells = self.buffer.cells();
        let Room::At(place) = self.queues[queue].make_room(cells, bytes) else {
            // The ring is large enough for all that comes here, but for what is never heard.
            extents.for_each(|extent| drop(self.map.extent(extent).end_write()));
            return;
        };
        self.values += 1;
        self.asked.insert(self.values, self.flushed.len());
        let data = self.values.to_le_bytes().repeat(bytes as usize / 8);
        self.buffer.put(queue, place.data, &data).unwrap();
        let (at, recorder) = (extents.start * 4096, &mut self.queues[queue]);
        self.under_way.push(Write {
            queue,
            value: self.values,
            ticket: recorder.publish(cells, place, Kind::Write, at, bytes),
            extents,
        });
    }

    fn land(&mut self, write: Write) {
        for extent in write.extents.clone() {
            self.local[extent as usize] = write.value;
        }
        self.queues[write.queue].end(self.buffer.cells(), write.ticket, true);
        for extent in write.extents {
            self.map.extent(extent).end_write().unwrap();
        }
        self.completed.insert(write.value);
    }

    /// Asked for and answered at once: whatever is asked for later, is so after the answer.
    fn flush(&mut self, queue: usize) {
        let cells = self.buffer.cells();
        if self.broken != Broken::NoFlushes {
            let Room::At(place) = self.queues[queue].make_room(cells, 0) else {
                return;
            };
            let ticket = self.queues[queue].publish(cells, place, Kind::Flush, 0, 0);
            self.queues[queue].end(cells, ticket, true);
        }
        self.flushed.push(self.completed.clone());
    }

    fn send(&mut self) {
        let Ok(Some((entry, bytes))) = take(&self.buffer, &mut self.reader) else {
            return;
        };
        let extents = entry.offset / 4096..(entry.offset + entry.len) / 4096;
        let next = || self.buffer.cells().next_number();
        let sent = extents.clone();
        self.outstanding.send(&self.map, entry.number, sent, next);
        self.wire.push_back(match entry.kind {
            Kind::Flush => Step::Flush,
            _ => Step::Change(extents, u64::from_le_bytes(bytes[..8].try_into().unwrap())),
        });
    }

    fn begin(&mut self) {
        if self.broken == Broken::NoOrderAtThePeer
            && let Some((number, extents, value)) = self.applying.begin()
        {
            // Those before it may still be at the disk.
            self.applying.over(number);
            self.at_the_disk.push((number, extents, value));
        } else {
            self.at_the_disk.extend(self.applying.begin());
        }
    }

    fn apply(&mut self, extents: std::ops::Range<u64>, value: u64) {
        for extent in extents {
            self.peer[extent as usize] = value;
        }
        self.applied.insert(value);
    }

    fn check(&self) -> Result<(), String> {
        for extent in 0..EXTENTS {
            let state = self.map.extent(extent).state();
            let at = extent as usize;
            let equal = self.durable[at] == self.local[at];
            if !state.is_dirty(peer()) && state.in_flight() == 0 && !equal {
                return Err(format!("extent {extent} is called clean"));
            }
        }
        for value in &self.applied {
            let flushes = self.asked[value];
            let Some(owed) = flushes.checked_sub(1).map(|last| &self.flushed[last]) else {
                continue;
            };
            if !owed.is_subset(&self.applied) {
                return Err(format!("write {value} has overtaken a flush"));
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), String> {
        for _ in 0..4096 {
            for act in [Act::Land(0), Act::Send, Act::Receive, Act::Begin] {
                self.act(act);
            }
            for act in [Act::Apply(0), Act::Sync, Act::Hear] {
                self.act(act);
            }
            self.check()?;
        }
        let dirty = |extent: &u64| self.map.extent(*extent).state().is_dirty(peer());
        match (0..EXTENTS).find(dirty) {
            Some(extent) => Err(format!("extent {extent} stays dirty")),
            None if self.durable != self.local => Err("the disks differ".to_owned()),
            None => Ok(()),
        }
    }
}

fn run(broken: Broken, acts: Vec<Act>) -> Result<(), String> {
    let mut world = World::new(broken);
    for act in acts {
        world.act(act);
        world.check()?;
    }
    world.finish()
}

proptest! {
    #[test]
    fn a_peer_that_is_streamed_to_can_be_started_and_clean_means_durable(acts in acts()) {
        let ran = run(Broken::Nothing, acts);
        prop_assert!(ran.is_ok(), "{ran:?}");
    }
}

#[test]
fn each_rule_is_needed() {
    for broken in [
        Broken::WritesOverlap,
        Broken::NoFlushes,
        Broken::AckBeforeSync,
        Broken::NoOrderAtThePeer,
    ] {
        let config = ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(2000)
        };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let found = runner.run(&acts(), |acts| {
            run(broken, acts).map_err(TestCaseError::fail)
        });
        assert!(found.is_err(), "{broken:?} is not noticed");
    }
}
