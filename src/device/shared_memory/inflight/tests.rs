use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

/// Entries of the ring and of the record.
const SIZE: u16 = 8;

/// Something that another process can see.
#[derive(Clone, Debug)]
enum Event {
    /// A store into the record.
    Store(usize, Vec<u8>),
    /// The driver made a chain available.
    Available(u16),
    /// A used element for a chain, not published.
    Used(u16),
    /// The used index now covers so many elements more.
    Publish(usize),
}

/// What outlives a crash: the record, and the guest's ring as lists without wrap-around.
#[derive(Clone, Debug)]
struct World {
    record: Vec<u8>,
    available: Vec<u16>,
    used: Vec<u16>,
    /// Elements of `used` that the used index covers.
    published: usize,
    /// The used index before anything happened.
    base: u16,
}

impl World {
    fn new(base: u16) -> Self {
        Self {
            record: vec![0; part_len(SIZE)],
            available: Vec::new(),
            used: Vec::new(),
            published: 0,
            base,
        }
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Store(offset, bytes) => {
                self.record[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Event::Available(head) => self.available.push(*head),
            Event::Used(head) => self.used.push(*head),
            Event::Publish(count) => self.published += count,
        }
    }

    fn after(&self, events: &[Event]) -> Self {
        let mut world = self.clone();
        events.iter().for_each(|event| world.apply(event));
        // Elements behind the index are nothing to anybody.
        world.used.truncate(world.published);
        world
    }

    fn used_index(&self) -> u16 {
        self.base.wrapping_add(self.published as u16)
    }

    /// Heads available and not answered, in the order they were made available.
    fn outstanding(&self) -> Vec<u16> {
        let mut left = self.available.clone();
        for &head in &self.used[..self.published] {
            let at = left.iter().position(|&one| one == head);
            left.remove(at.expect("answered, but never made available"));
        }
        left
    }

    /// Opens the record, and adds its stores to `events`.
    fn open(&self, events: &Rc<RefCell<Vec<Event>>>) -> Opened<Journal> {
        let cells = Journal {
            bytes: RefCell::new(self.record.clone()),
            events: Rc::clone(events),
        };
        Record::open(cells, SIZE, SIZE, self.used_index()).expect("left by us")
    }
}

/// Memory that writes down each store.
#[derive(Debug)]
struct Journal {
    bytes: RefCell<Vec<u8>>,
    events: Rc<RefCell<Vec<Event>>>,
}

impl Cells for Journal {
    fn load<T: AtomicAccess + Default>(&self, offset: usize) -> T {
        let mut value = T::default();
        let len = value.as_slice().len();
        value
            .as_mut_slice()
            .copy_from_slice(&self.bytes.borrow()[offset..offset + len]);
        value
    }

    fn store<T: AtomicAccess + Default>(&self, offset: usize, value: T) {
        let bytes = value.as_slice();
        assert_eq!(offset % bytes.len(), 0, "misaligned");
        self.bytes.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.events
            .borrow_mut()
            .push(Event::Store(offset, bytes.to_vec()));
    }
}

/// What the device or the driver does next, as far as it can.
#[derive(Clone, Debug)]
enum Step {
    /// The driver makes a chain available.
    Offer,
    /// The device takes a chain.
    Take,
    /// The device puts the last chain that it took back.
    PutBack,
    /// The device puts back all that it was to do again, if it can.
    PutAllBack,
    /// The device answers one of those in flight.
    Answer(usize),
    /// The device publishes its answers, and the driver sees them.
    Publish,
}

/// One life of the device, and what others saw of it.
struct Life {
    world: World,
    events: Rc<RefCell<Vec<Event>>>,
    record: Record<Journal>,
    again: VecDeque<u16>,
    /// Of `available`: the next to take.
    next: usize,
    /// Taken and not answered, in the order taken now; and whether from the ring.
    in_flight: Vec<(u16, bool)>,
    unpublished: Vec<u16>,
    free: VecDeque<u16>,
}

impl Life {
    fn begin(world: World) -> Self {
        let events = Rc::new(RefCell::new(Vec::new()));
        let Opened { record, again } = world.open(&events);
        let again: VecDeque<u16> = again.unwrap_or_default().into();
        let outstanding = world.outstanding();
        Self {
            next: world.published + again.len(),
            free: (0..SIZE)
                .filter(|head| !outstanding.contains(head))
                .collect(),
            record,
            again,
            world,
            events,
            in_flight: Vec::new(),
            unpublished: Vec::new(),
        }
    }

    fn say(&self, event: Event) {
        self.events.borrow_mut().push(event);
    }

    fn now(&self) -> World {
        self.world.after(&self.events.borrow())
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Offer => {
                if let Some(head) = self.free.pop_front() {
                    self.say(Event::Available(head));
                }
            }
            Step::Take => {
                if let Some(head) = self.again.pop_front() {
                    self.in_flight.push((head, false));
                } else if let Some(&head) = self.now().available.get(self.next) {
                    self.record.taken(head);
                    self.next += 1;
                    self.in_flight.push((head, true));
                }
            }
            Step::PutBack => {
                let last = self.next.checked_sub(1).map(|at| self.now().available[at]);
                let is_last = |taken: &mut (u16, bool)| taken.1 && Some(taken.0) == last;
                if let Some((head, _)) = self.in_flight.pop_if(is_last) {
                    self.record.untaken(head);
                    self.next -= 1;
                }
            }
            Step::PutAllBack => {
                let begin = self.next - self.again.len();
                if self.now().available[begin..self.next]
                    .iter()
                    .eq(&self.again)
                {
                    for head in self.again.drain(..).rev() {
                        self.record.untaken(head);
                    }
                    self.next = begin;
                }
            }
            Step::Answer(which) if !self.in_flight.is_empty() => {
                let (head, _) = self.in_flight.remove(which % self.in_flight.len());
                self.say(Event::Used(head));
                self.record.answered(head);
                self.unpublished.push(head);
            }
            Step::Publish if !self.unpublished.is_empty() => {
                self.say(Event::Publish(self.unpublished.len()));
                self.record.published(self.now().used_index());
                self.free.extend(self.unpublished.drain(..));
            }
            Step::Answer(_) | Step::Publish => {}
        }
    }
}

/// What a new process must find in `world`.
fn check(world: &World) {
    let events = Rc::new(RefCell::new(Vec::new()));
    let opened = world.open(&events);
    let again = opened.again.unwrap_or_default();
    // None lost and none twice: what is done again, and what is still in the
    // available ring from there on, is what has no answer.
    let next = world.published + again.len();
    let mut found = again.clone();
    found.extend(&world.available[next.min(world.available.len())..]);
    found.sort_unstable();
    let mut outstanding = world.outstanding();
    outstanding.sort_unstable();
    assert_eq!(found, outstanding);
    // In the order they were taken in.
    let order = &world.available;
    let place = |head: &u16| order.iter().rposition(|one| one == head);
    assert!(
        again.iter().is_sorted_by_key(place),
        "{again:?} of {order:?}"
    );
    // A crash while it is brought up to date changes nothing.
    let stores = events.borrow();
    for len in 0..stores.len() {
        let again_later = world.after(&stores[..len]).open(&Rc::default()).again;
        assert_eq!(again_later.unwrap_or_default(), again);
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Offer),
        3 => Just(Step::Take),
        1 => Just(Step::PutBack),
        1 => Just(Step::PutAllBack),
        3 => any::<usize>().prop_map(Step::Answer),
        1 => Just(Step::Publish),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Lives one after the other, each ended by a crash, and looked at as if it
    /// had been ended after each store.
    #[test]
    fn a_crash_after_any_store_loses_no_request_repeats_no_answer_and_keeps_the_order(
        base in prop_oneof![Just(0u16), Just(u16::MAX - 3), any::<u16>()],
        lives in prop::collection::vec((steps(), any::<prop::sample::Index>()), 1..4),
    ) {
        let mut world = World::new(base);
        for (steps, end) in lives {
            let mut life = Life::begin(world.clone());
            steps.iter().for_each(|step| life.step(step));
            let events = life.events.borrow();
            for len in 0..=events.len() {
                check(&world.after(&events[..len]));
            }
            world = world.after(&events[..end.index(events.len() + 1)]);
        }
    }

    #[test]
    fn arbitrary_memory_is_refused_or_gives_heads_of_the_ring_once_each(
        mut bytes in prop::collection::vec(prop_oneof![3 => Just(0u8), 2 => Just(1u8), 1 => any::<u8>()], part_len(SIZE)),
        header in prop::option::weighted(0.9, any::<u8>()),
        ring in 0..=SIZE + 1,
        used in any::<u16>(),
    ) {
        if let Some(used_idx) = header {
            bytes[..HEADER_LEN].fill(0);
            bytes[VERSION_AT..][..2].copy_from_slice(&VERSION.to_ne_bytes());
            bytes[DESC_NUM..][..2].copy_from_slice(&SIZE.to_ne_bytes());
            let near = used.wrapping_sub(u16::from(used_idx % 16));
            bytes[USED_IDX..][..2].copy_from_slice(&near.to_ne_bytes());
        }
        let cells = Journal { bytes: RefCell::new(bytes.clone()), events: Rc::default() };
        let events = Rc::clone(&cells.events);
        match Record::open(cells, SIZE, ring, used) {
            Err(_) => prop_assert!(events.borrow().is_empty(), "changed, though refused"),
            Ok(Opened { again, .. }) => {
                let mut heads = again.unwrap_or_default();
                prop_assert!(heads.iter().all(|&head| head < ring));
                let count = heads.len();
                heads.sort_unstable();
                heads.dedup();
                prop_assert_eq!(heads.len(), count);
            }
        }
    }
}

/// A record with these entries `(head, counter)` in flight.
fn record_of(in_flight: &[(u16, u64)]) -> Vec<u8> {
    let cells = Journal {
        bytes: RefCell::new(vec![0; part_len(SIZE)]),
        events: Rc::default(),
    };
    format(&cells, SIZE, 0);
    for &(head, counter) in in_flight {
        cells.store(entry(head) + COUNTER, counter);
        cells.store(entry(head) + INFLIGHT, 1u8);
    }
    cells.bytes.into_inner()
}

fn open(bytes: Vec<u8>, ring: u16, used: u16) -> Result<Vec<u16>, RecordError> {
    let cells = Journal {
        bytes: RefCell::new(bytes),
        events: Rc::default(),
    };
    Record::open(cells, SIZE, ring, used).map(|opened| opened.again.expect("has a version"))
}

fn with<T: AtomicAccess>(mut bytes: Vec<u8>, offset: usize, value: T) -> Vec<u8> {
    let value = value.as_slice();
    bytes[offset..offset + value.len()].copy_from_slice(value);
    bytes
}

#[test]
fn requests_come_back_in_the_order_of_their_counters() {
    let record = record_of(&[(0, 7), (5, 2), (3, u64::MAX - 1)]);
    assert_eq!(open(record, SIZE, 0), Ok(vec![5, 0, 3]));
}

#[test]
fn what_no_back_end_can_have_left_is_refused_by_name() {
    let plain = || record_of(&[(1, 1), (2, 2)]);
    let cases = [
        (
            with(plain(), VERSION_AT, 2u16),
            RecordError::Version { version: 2 },
        ),
        (
            with(plain(), FEATURES, 4u64),
            RecordError::Features { features: 4 },
        ),
        (
            with(plain(), DESC_NUM, 16u16),
            RecordError::Entries {
                found: 16,
                entries: SIZE,
            },
        ),
        (
            with(plain(), entry(7) + INFLIGHT, 2u8),
            RecordError::Mark { head: 7, mark: 2 },
        ),
        (
            record_of(&[(1, 5), (2, 5)]),
            RecordError::Order { counter: 5 },
        ),
        (record_of(&[(1, 5), (2, u64::MAX)]), RecordError::Counter),
    ];
    for (bytes, expected) in cases {
        assert_eq!(open(bytes, SIZE, 0), Err(expected));
    }
    assert_eq!(
        open(plain(), SIZE + 1, 0),
        Err(RecordError::RingSize {
            entries: SIZE,
            ring: SIZE + 1
        })
    );
    assert_eq!(
        open(plain(), 2, 0),
        Err(RecordError::Head { head: 2, ring: 2 })
    );
}

#[test]
fn a_batch_list_that_is_too_long_loops_or_leaves_the_record_is_refused() {
    let plain = || record_of(&[(1, 1), (2, 2)]);
    assert_eq!(
        open(plain(), SIZE, SIZE + 1),
        Err(RecordError::UsedIndex {
            recorded: 0,
            used: SIZE + 1,
            ring: SIZE
        })
    );
    let looping = with(plain(), LAST_BATCH_HEAD, 3u16);
    let looping = with(looping, entry(3) + NEXT, 3u16);
    assert_eq!(open(looping.clone(), SIZE, 1), Ok(vec![1, 2]));
    assert_eq!(open(looping, SIZE, 2), Err(RecordError::Batch { head: 3 }));
    let outside = with(plain(), LAST_BATCH_HEAD, SIZE);
    assert_eq!(
        open(outside, SIZE, 1),
        Err(RecordError::Batch { head: SIZE })
    );
}

#[test]
fn a_driver_that_began_anew_with_nothing_in_flight_needs_no_new_memory() {
    let idle = with(record_of(&[]), USED_IDX, 1000u16);
    assert_eq!(open(idle, SIZE, 0), Ok(vec![]));
}
