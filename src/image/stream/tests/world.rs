//! The whole way, in one process: a guest with several queues, the rings, the sender, a network,
//! a peer whose disk forgets what was not synced. Whatever comes in whichever order, these hold:
//!
//! * what the dirty map calls clean is durable at the peer;
//! * a copy that is called consistent is something that a power cut could have left of the guest's;
//! * once all is quiet, nothing is dirty and both disks are equal.

mod checks;
mod map;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::image::dirty_map::Peers;

use super::super::applying::{Applying, OrderedStep};
use super::super::buffer::StreamBuffer;
use super::super::cells::EntryKind;
use super::super::feed::{Feed, Work};
use super::super::recorder::{Change, Recorder, Room};
use super::small;
use map::Map;

/// Extents of the disk, each as large as a page.
const EXTENTS: u64 = 6;
const PAGE: u64 = 4096;
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
    /// Consistent as soon as what was missing is copied.
    ConsistentTooEarly,
    /// Copies are read while writes are under way that were let in before the peer joined.
    EarlyWritesForgotten,
}

/// A write that the guest has asked for. Values are numbered in the order in which they were.
struct Write {
    queue: usize,
    extents: Range<u64>,
    value: u64,
    change: Change,
}

/// What is sent.
enum Message {
    Item(OrderedStep<Vec<u64>>),
    /// With all values that the copy has then.
    Consistent(BTreeSet<u64>),
}

/// What comes next.
#[derive(Clone, Debug)]
enum Act {
    Write {
        queue: usize,
        at: u64,
        len: u64,
    },
    Flush(usize),
    Land(usize),
    Send,
    Receive,
    Begin,
    Apply(usize),
    Sync,
    Hear,
    /// The link breaks, and the peer may join again.
    Break,
    Join,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        10 => (0..QUEUES, 0..EXTENTS, 1..3_u64)
            .prop_map(|(queue, at, len)| Act::Write { queue, at, len }),
        4 => (0..QUEUES).prop_map(Act::Flush),
        10 => (0..8_usize).prop_map(Act::Land),
        12 => Just(Act::Send),
        12 => Just(Act::Receive),
        12 => Just(Act::Begin),
        12 => (0..8_usize).prop_map(Act::Apply),
        3 => Just(Act::Sync),
        6 => Just(Act::Hear),
        1 => Just(Act::Break),
        4 => Just(Act::Join),
    ];
    prop::collection::vec(act, 1..400)
}

struct World {
    broken: Broken,
    buffer: StreamBuffer,
    queues: Vec<Recorder>,
    map: Map,
    feed: Option<Feed>,
    under_way: Vec<Write>,
    local: [u64; EXTENTS as usize],
    /// Of each value, where it was written, and of how many flushes it was asked for after the
    /// answer.
    values: BTreeMap<u64, (Range<u64>, usize)>,
    /// Those with an entry that was not sent.
    unsent: BTreeSet<u64>,
    /// Of each flush, what was completed before it was asked for.
    flushes: Vec<BTreeSet<u64>>,
    completed: BTreeSet<u64>,
    link: VecDeque<Message>,
    applying: Applying<Vec<u64>>,
    received: u64,
    at_the_disk: Vec<(u64, Range<u64>, Vec<u64>)>,
    /// The peer's disk as it is read, and as a power cut leaves it.
    peer: [u64; EXTENTS as usize],
    durable: [u64; EXTENTS as usize],
    /// When it has applied so many items, it is consistent.
    consistent_at: Option<u64>,
    /// Values that it has, from when on it is.
    applied: BTreeSet<u64>,
    answers: VecDeque<u64>,
}

impl World {
    fn new(broken: Broken) -> Self {
        let buffer = small(QUEUES, 16, 16);
        let queues = 0..QUEUES;
        Self {
            broken,
            queues: queues
                .map(|queue| Recorder::new(queue, buffer.shape().data))
                .collect(),
            map: Map::clean(),
            feed: None,
            under_way: Vec::new(),
            local: [0; EXTENTS as usize],
            values: BTreeMap::new(),
            unsent: BTreeSet::new(),
            flushes: Vec::new(),
            completed: BTreeSet::new(),
            link: VecDeque::new(),
            applying: Applying::new(0),
            received: 0,
            at_the_disk: Vec::new(),
            peer: [0; EXTENTS as usize],
            durable: [0; EXTENTS as usize],
            consistent_at: None,
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
            Act::Receive => self.receive(),
            Act::Begin => self.begin(),
            Act::Apply(which) if !self.at_the_disk.is_empty() => {
                let which = which % self.at_the_disk.len();
                let (number, extents, values) = self.at_the_disk.swap_remove(which);
                self.apply(extents, values);
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
                if let (Some(before), Some(feed)) = (self.answers.pop_front(), &mut self.feed) {
                    feed.durable(self.buffer.cells(), &self.map, before);
                }
            }
            Act::Break => self.cut(),
            Act::Join => self.join(),
            Act::Land(_) | Act::Apply(_) => {}
        }
    }

    fn write(&mut self, queue: usize, extents: Range<u64>) {
        let overlaps =
            |other: &Write| other.extents.start < extents.end && extents.start < other.extents.end;
        if self.broken != Broken::WritesOverlap && self.under_way.iter().any(overlaps) {
            return;
        }
        for extent in extents.clone() {
            assert!(self.map.extent(extent).begin_write(Peers::first(1)));
        }
        let value = self.values.len() as u64 + 1;
        let bytes = (extents.end - extents.start) * PAGE;
        let (cells, recorder) = (self.buffer.cells(), &mut self.queues[queue]);
        let change = match recorder.make_room(cells, bytes) {
            Room::At(place) => {
                let data = value.to_le_bytes().repeat(bytes as usize / 8);
                self.buffer.put(queue, place.data, &data).unwrap();
                self.unsent.insert(value);
                let at = extents.start * PAGE;
                recorder.publish(cells, place, EntryKind::Write, at, bytes)
            }
            Room::NotWanted(change) => change,
            Room::UnderWay => {
                extents.for_each(|extent| assert!(self.map.extent(extent).end_write().is_ok()));
                return;
            }
        };
        self.values
            .insert(value, (extents.clone(), self.flushes.len()));
        self.under_way.push(Write {
            queue,
            extents,
            value,
            change,
        });
    }

    fn land(&mut self, write: Write) {
        for extent in write.extents.clone() {
            self.local[extent as usize] = write.value;
        }
        let (cells, recorder) = (self.buffer.cells(), &mut self.queues[write.queue]);
        recorder.end(cells, write.change, true);
        for extent in write.extents {
            self.map.extent(extent).end_write().unwrap();
        }
        self.completed.insert(write.value);
    }

    /// Asked for and answered at once: whatever is asked for later, is so after the answer.
    fn flush(&mut self, queue: usize) {
        let (cells, recorder) = (self.buffer.cells(), &mut self.queues[queue]);
        if self.broken != Broken::NoFlushes {
            match recorder.make_room(cells, 0) {
                Room::At(place) => {
                    let change = recorder.publish(cells, place, EntryKind::Flush, 0, 0);
                    recorder.end(cells, change, true);
                }
                Room::NotWanted(change) => recorder.end(cells, change, true),
                Room::UnderWay => return,
            }
        }
        self.flushes.push(self.completed.clone());
    }

    fn send(&mut self) {
        let (cells, map) = (self.buffer.cells(), &self.map);
        let Some(feed) = &mut self.feed else { return };
        let mut work = feed.next(cells);
        if work == Work::Nothing
            && self.broken == Broken::EarlyWritesForgotten
            && let Some(missing) = (0..EXTENTS).find(|extent| feed.is_missing(*extent))
        {
            work = Work::Copy(missing..missing + 1);
        }
        match work {
            Work::Entry(entry) => {
                let mut bytes = Vec::new();
                self.buffer
                    .get(entry.queue, entry.data, entry.len, &mut bytes);
                if !feed.is_whole(cells) {
                    return self.cut();
                }
                let extents = entry.offset / PAGE..(entry.offset + entry.len) / PAGE;
                feed.sent_entry(cells, map, &entry, extents.clone());
                self.link.push_back(Message::Item(match entry.kind {
                    EntryKind::Flush => OrderedStep::Flush,
                    _ => {
                        let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                        self.unsent.remove(&value);
                        let values = extents.clone().map(|_| value);
                        OrderedStep::Change(extents.clone(), values.collect())
                    }
                }));
            }
            Work::Copy(extents) => {
                feed.begin_copy(cells, map, extents.clone());
                let values = extents.clone().map(|extent| self.local[extent as usize]);
                let values = values.collect();
                if !feed.is_whole(cells) {
                    return self.cut();
                }
                self.link
                    .push_back(Message::Item(OrderedStep::Change(extents, values)));
                if self.broken == Broken::ConsistentTooEarly && feed.missing() == 0 {
                    self.send_consistent();
                }
            }
            Work::Consistent => self.send_consistent(),
            Work::Nothing => {}
            Work::Behind => self.cut(),
        }
    }

    fn send_consistent(&mut self) {
        if let Some(feed) = &mut self.feed {
            feed.sent_consistent();
        }
        let all: BTreeSet<_> = self.values.keys().copied().collect();
        let has = &all - &self.unsent;
        self.link.push_back(Message::Consistent(has));
    }

    fn receive(&mut self) {
        match self.link.pop_front() {
            Some(Message::Item(step)) => {
                self.received += 1;
                self.applying.push(step);
            }
            Some(Message::Consistent(has)) => {
                self.consistent_at = Some(self.received);
                self.applied.extend(has);
            }
            None => {}
        }
    }

    fn begin(&mut self) {
        if let Some((number, extents, values)) = self.applying.begin() {
            if self.broken == Broken::NoOrderAtThePeer {
                // Those before it may still be at the disk.
                self.applying.over(number);
            }
            self.at_the_disk.push((number, extents, values));
        }
    }

    fn apply(&mut self, extents: Range<u64>, values: Vec<u64>) {
        self.applied.extend(&values);
        for (extent, value) in extents.zip(values) {
            self.peer[extent as usize] = value;
        }
    }

    /// What is on its way to the peer is lost; what has reached it is applied before it joins.
    fn cut(&mut self) {
        if let Some(feed) = self.feed.take() {
            feed.give_up(self.buffer.cells(), &self.map);
        }
        self.link.clear();
        self.answers.clear();
    }

    fn join(&mut self) {
        let is_idle = self.applying.waiting() == 0 && self.at_the_disk.is_empty();
        if self.feed.is_some() || !is_idle {
            return;
        }
        (self.consistent_at, self.received) = (None, 0);
        // What was said to the connection before says nothing to this one.
        self.answers.clear();
        self.applied.clear();
        self.applying = Applying::new(0);
        self.unsent.clear();
        let map = &self.map;
        let dirty = || (0..EXTENTS).filter(|extent| map.is_dirty(*extent));
        self.feed = Some(Feed::begin(self.buffer.cells(), 0, (EXTENTS, PAGE), dirty));
    }

    fn finish(&mut self) -> Result<(), String> {
        for _ in 0..400 {
            for act in [Act::Join, Act::Land(0), Act::Send, Act::Receive, Act::Begin] {
                self.act(act);
            }
            for act in [Act::Apply(0), Act::Sync, Act::Hear] {
                self.act(act);
            }
            self.check()?;
        }
        match (0..EXTENTS).find(|extent| self.map.is_dirty(*extent)) {
            Some(extent) => Err(format!("extent {extent} stays dirty")),
            None if self.durable != self.local => Err("the disks differ".to_owned()),
            None if !self.is_consistent() => Err("it never becomes consistent".to_owned()),
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
    fn a_copy_that_is_called_consistent_can_be_started_and_clean_means_durable(acts in acts()) {
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
        Broken::ConsistentTooEarly,
        Broken::EarlyWritesForgotten,
    ] {
        let config = ProptestConfig {
            failure_persistence: None,
            max_shrink_iters: 0,
            ..ProptestConfig::with_cases(4000)
        };
        let found = TestRunner::new(config).run(&acts(), |acts| {
            run(broken, acts).map_err(TestCaseError::fail)
        });
        assert!(found.is_err(), "{broken:?} is not noticed");
    }
}
