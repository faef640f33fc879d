//! The rings: one order, nothing lost, nobody waited for.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::buffer::{BufferShape, StreamBuffer};
use super::super::cells::EntryKind;
use super::super::in_order::{InOrder, NextEntry};
use super::super::recorder::{Change, Recorder, Room};
use super::{Left, record, small, take};

fn is_not_wanted(room: Room) -> bool {
    matches!(room, Room::NotWanted(_))
}

#[test]
fn nothing_is_recorded_while_nobody_follows() {
    let buffer = small(1, 4, 4);
    let mut queue = Recorder::new(0, buffer.shape().data);
    assert!(is_not_wanted(queue.make_room(buffer.cells(), 512)));
    assert_eq!(buffer.cells().next_number(), 0);
}

#[test]
fn what_is_under_way_is_not_given_out_nor_what_comes_after_it() {
    let buffer = small(2, 4, 4);
    let mut queues = [0, 1].map(|queue| Recorder::new(queue, buffer.shape().data));
    let mut reader = InOrder::join(buffer.cells(), 0);
    let first = record(&buffer, (0, &mut queues[0]), 0, &[1; 512]).unwrap();
    let second = record(&buffer, (1, &mut queues[1]), 512, &[2; 512]).unwrap();
    queues[1].end(buffer.cells(), second, true);
    assert_eq!(take(&buffer, &mut reader), Ok(None));
    queues[0].end(buffer.cells(), first, false);
    let (entry, _) = take(&buffer, &mut reader).unwrap().unwrap();
    assert!(!entry.landed && entry.offset == 0);
    let (entry, bytes) = take(&buffer, &mut reader).unwrap().unwrap();
    assert!(entry.landed && entry.offset == 512 && bytes == [2; 512]);
}

#[test]
fn who_holds_the_oldest_entry_of_a_full_ring_is_left_behind_and_nobody_else() {
    let buffer = small(1, 4, 4);
    let mut queue = Recorder::new(0, buffer.shape().data);
    let mut slow = InOrder::join(buffer.cells(), 0);
    let mut fast = InOrder::join(buffer.cells(), 1);
    for n in 0..5 {
        let change = record(&buffer, (0, &mut queue), n * 4096, &[n as u8; 4096]).unwrap();
        queue.end(buffer.cells(), change, true);
        let (entry, bytes) = take(&buffer, &mut fast).unwrap().unwrap();
        assert_eq!((entry.offset, bytes), (n * 4096, vec![n as u8; 4096]));
        fast.let_go_before(buffer.cells(), entry.number + 1);
    }
    assert_eq!(slow.next(buffer.cells()), NextEntry::Behind);
    assert_eq!(fast.next(buffer.cells()), NextEntry::Nothing);
    // It begins anew where it comes in.
    let mut slow = InOrder::join(buffer.cells(), 0);
    let change = record(&buffer, (0, &mut queue), 9 * 4096, &[9; 4096]).unwrap();
    queue.end(buffer.cells(), change, true);
    let (entry, _) = take(&buffer, &mut slow).unwrap().unwrap();
    assert_eq!(entry.offset, 9 * 4096);
}

#[test]
fn writes_under_way_that_fill_the_ring_leave_nobody_behind() {
    let buffer = small(1, 4, 2);
    let mut queue = Recorder::new(0, buffer.shape().data);
    let mut reader = InOrder::join(buffer.cells(), 0);
    let first = record(&buffer, (0, &mut queue), 0, &[1; 8192]).unwrap();
    assert_eq!(queue.make_room(buffer.cells(), 512), Room::UnderWay);
    queue.end(buffer.cells(), first, true);
    assert!(take(&buffer, &mut reader).unwrap().is_some());
    // What was sent and is not durable is held, too: the peer is the one who is late then.
    assert!(is_not_wanted(queue.make_room(buffer.cells(), 512)));
    assert_eq!(take(&buffer, &mut reader), Err(Left));
}

#[test]
fn what_is_larger_than_the_ring_leaves_all_behind() {
    let buffer = small(1, 4, 2);
    let mut queue = Recorder::new(0, buffer.shape().data);
    let mut reader = InOrder::join(buffer.cells(), 0);
    assert!(is_not_wanted(queue.make_room(buffer.cells(), 8193)));
    assert_eq!(reader.next(buffer.cells()), NextEntry::Behind);
    assert!(is_not_wanted(queue.make_room(buffer.cells(), u64::MAX)));
}

#[test]
fn a_follower_who_is_gone_holds_nobody_up() {
    let buffer = small(1, 4, 4);
    let mut queue = Recorder::new(0, buffer.shape().data);
    InOrder::join(buffer.cells(), 0).leave(buffer.cells());
    assert!(is_not_wanted(queue.make_room(buffer.cells(), 512)));
}

#[test]
fn a_peer_that_joins_waits_for_changes_under_way_and_for_none_that_never_were() {
    let buffer = small(1, 4, 2);
    let mut queue = Recorder::new(0, buffer.shape().data);
    let Room::NotWanted(unrecorded) = queue.make_room(buffer.cells(), 512) else {
        panic!("nobody follows");
    };
    let first = InOrder::join(buffer.cells(), 0);
    assert!(!first.is_settled(buffer.cells()));
    let recorded = record(&buffer, (0, &mut queue), 0, &[1; 8192]).unwrap();
    let second = InOrder::join(buffer.cells(), 1);
    queue.end(buffer.cells(), unrecorded, true);
    assert!(first.is_settled(buffer.cells()));
    assert!(
        !second.is_settled(buffer.cells()),
        "its entry is not the second one's"
    );
    queue.end(buffer.cells(), recorded, true);
    assert!(second.is_settled(buffer.cells()));
    // One for which there is no room yet, and whose guest goes away.
    let third = record(&buffer, (0, &mut queue), 0, &[1; 8192]).unwrap();
    assert_eq!(queue.make_room(buffer.cells(), 512), Room::UnderWay);
    queue.end(buffer.cells(), third, true);
    assert!(!InOrder::join(buffer.cells(), 2).is_settled(buffer.cells()));
    queue.not_begun(buffer.cells());
    assert!(InOrder::join(buffer.cells(), 2).is_settled(buffer.cells()));
}

#[test]
fn memory_of_another_shape_or_that_could_shrink_is_refused() {
    let buffer = StreamBuffer::make(BufferShape::new(1 << 20, 2)).unwrap();
    let file = || buffer.file().try_clone().unwrap();
    assert!(StreamBuffer::over(file(), buffer.shape()).is_ok());
    assert!(StreamBuffer::over(file(), BufferShape::new(1 << 20, 1)).is_err());
    let loose = tempfile::tempfile().unwrap();
    loose.set_len(buffer.shape().bytes()).unwrap();
    assert!(StreamBuffer::over(loose, buffer.shape()).is_err());
    assert!(buffer.get(2, 0, 1, &mut Vec::new()).is_none());
    assert!(
        buffer
            .get(0, buffer.shape().data, 1, &mut Vec::new())
            .is_none()
    );
    assert!(buffer.put(0, u64::MAX, &[1]).is_none());
}

/// What happens next.
#[derive(Clone, Debug)]
enum Act {
    Write {
        queue: usize,
        len: usize,
    },
    Flush(usize),
    /// The one of those under way ends.
    End(usize),
    Take,
    /// The peer says that it has so many of those taken.
    Durable(u64),
    Join,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0..3_usize, 1..9000_usize).prop_map(|(queue, len)| Act::Write { queue, len }),
        1 => (0..3_usize).prop_map(Act::Flush),
        6 => (0..8_usize).prop_map(Act::End),
        6 => Just(Act::Take),
        3 => (1..8_u64).prop_map(Act::Durable),
        1 => Just(Act::Join),
    ];
    prop::collection::vec(act, 1..200)
}

/// All that was recorded since the peer joined, and what it has of it.
struct World {
    buffer: StreamBuffer,
    queues: Vec<Recorder>,
    under_way: Vec<(usize, Change)>,
    reader: InOrder,
    /// What the reader is to be given, in order.
    expected: VecDeque<(EntryKind, u64, Vec<u8>)>,
    taken: u64,
    durable: u64,
    /// Numbers the writes.
    writes: u64,
}

impl World {
    fn new() -> Self {
        let buffer = small(3, 8, 6);
        let queues = (0..3).map(|queue| Recorder::new(queue, buffer.shape().data));
        let reader = InOrder::join(buffer.cells(), 2);
        Self {
            queues: queues.collect(),
            under_way: Vec::new(),
            reader,
            expected: VecDeque::new(),
            taken: 0,
            durable: 0,
            writes: 0,
            buffer,
        }
    }

    fn act(&mut self, act: Act) {
        let cells = self.buffer.cells();
        match act {
            Act::Write { queue, len } => {
                self.writes += 1;
                let bytes = vec![self.writes as u8; len];
                let recorder = (queue, &mut self.queues[queue]);
                if let Some(ticket) = record(&self.buffer, recorder, self.writes, &bytes) {
                    self.under_way.push((queue, ticket));
                    self.expected
                        .push_back((EntryKind::Write, self.writes, bytes));
                }
            }
            Act::Flush(queue) => {
                let recorder = &mut self.queues[queue];
                if let Room::At(place) = recorder.make_room(cells, 0) {
                    let change = recorder.publish(cells, place, EntryKind::Flush, 0, 0);
                    recorder.end(cells, change, true);
                    self.expected.push_back((EntryKind::Flush, 0, Vec::new()));
                }
            }
            Act::End(which) if !self.under_way.is_empty() => {
                let which = which % self.under_way.len();
                let (queue, change) = self.under_way.swap_remove(which);
                self.queues[queue].end(cells, change, true);
            }
            Act::Take => match take(&self.buffer, &mut self.reader) {
                Ok(None) => {}
                Ok(Some((entry, bytes))) => {
                    let expected = self.expected.pop_front().unwrap();
                    assert_eq!((entry.kind, entry.offset, bytes), expected);
                    self.taken = entry.number + 1;
                }
                Err(Left) => self.join(),
            },
            Act::Durable(more) => {
                self.durable = self.taken.min(self.durable + more);
                self.reader.let_go_before(cells, self.durable);
            }
            Act::Join => self.join(),
            Act::End(_) => {}
        }
    }

    fn join(&mut self) {
        self.reader = InOrder::join(self.buffer.cells(), 2);
        self.expected.clear();
        self.taken = self.buffer.cells().next_number();
        self.durable = self.taken;
    }
}

proptest! {
    /// Also when rings wrap around, are full, and the peer comes and goes.
    #[test]
    fn what_is_given_out_is_what_was_recorded_in_one_order(acts in acts()) {
        let mut world = World::new();
        acts.into_iter().for_each(|act| world.act(act));
        while !world.under_way.is_empty() {
            world.act(Act::End(0));
        }
        if world.reader.is_whole(world.buffer.cells()) {
            while !world.expected.is_empty() {
                let before = world.expected.len();
                world.act(Act::Take);
                prop_assert!(world.expected.len() < before, "an entry was lost");
            }
        }
    }
}
