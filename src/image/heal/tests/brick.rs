//! A simulated brick: a cache that a power cut empties, writes that are carried
//! out late and in any order, locks, and faults at a chosen call. It notes what no
//! healer may do: write without the copy lock, or give that up too soon.

mod peer;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use uuid::Uuid;

use super::super::peer::PeerError;
use super::Rng;
use super::world::STAMP;
use crate::image::layout::{FileIndex, Layout};
pub use peer::SimPeer;

/// The owner of a healer's locks.
const HEALER: u64 = 1;

/// What happens at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The host of the brick loses power: what was not fsynced is gone.
    PowerCut,
    /// The connection breaks; the brick does what it was sent.
    LostLink,
    /// The healer dies, and cannot clean up.
    HealerDies,
    /// The brick refuses the call (or what it started).
    Refuse,
}

/// The calls that a fault can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Any,
    Write,
    Fsync,
}

type Hook = Box<dyn FnMut() + Send>;

#[derive(Default)]
pub struct State {
    pub cache: Vec<u8>,
    pub disk: Vec<u8>,
    pub locks: Vec<(u64, Range<u64>)>,
    /// A fault at the n-th call of that kind from now.
    pub fault: Option<(Call, u64, Fault)>,
    pub written: Vec<Range<u64>>,
    pub zeroed: Vec<Range<u64>>,
    pub compared: u64,
    pub fsyncs: u64,
    /// The files of an image in several that were made durable, each time.
    pub synced: Vec<FileIndex>,
    /// Calls of any kind, and connections.
    pub calls: u64,
    /// Times that writes were sent, several at once.
    pub batches: u64,
    /// Nobody gets through to it.
    pub away: bool,
    /// Its disk takes nothing more.
    pub full: bool,
    /// How often it said so.
    pub refusals: u64,
    /// Its counter against itself.
    pub own_mark: i32,
    /// Another one on these files.
    pub own_marks: BTreeMap<FileIndex, i32>,
    layout: Option<Layout>,
    /// The session whose record is there.
    pub record: Option<Uuid>,
    /// The connection that has the copy lock.
    pub copy_lock: Option<u64>,
    /// What a healer waits for: no newcomer gets it before.
    queued: Option<Range<u64>>,
    pub violations: Vec<String>,
    /// The most bytes that were on their way at one time.
    pub most_unanswered: u64,
    unanswered: u64,
    /// Sent, not carried out yet.
    late: Vec<(u64, u64, Vec<u8>)>,
    next_write: u64,
    connection: u64,
    rng: Rng,
}

impl State {
    fn carry_out(&mut self, index: usize) {
        let (_, offset, data) = self.late.swap_remove(index);
        self.write(offset, &data);
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let start = offset as usize;
        self.cache[start..start + data.len()].copy_from_slice(data);
    }

    /// What is asked for at one time lies in one file.
    fn check_border(&mut self, range: &Range<u64>, call: &str) {
        let border = self
            .layout
            .as_ref()
            .map(|layout| layout.border(range.start));
        if border.is_some_and(|border| border < range.end) {
            let crossed = format!("{call} of {range:?} crosses a border");
            self.violations.push(crossed);
        }
    }

    fn fsync(&mut self, files: &BTreeSet<FileIndex>) {
        let layout = self.layout.as_ref();
        let Some(layout) = layout else {
            self.disk = self.cache.clone();
            return;
        };
        self.synced.extend(files);
        for file in files {
            let range = layout.range(*file);
            let range = range.start as usize..range.end as usize;
            self.disk[range.clone()].copy_from_slice(&self.cache[range]);
        }
    }

    fn carry_out_some(&mut self) {
        while !self.late.is_empty() && self.rng.chance(3) {
            let index = self.rng.below(self.late.len() as u64) as usize;
            self.carry_out(index);
        }
    }

    fn break_off(&mut self) {
        while !self.late.is_empty() {
            self.carry_out(0);
        }
        self.connection += 1;
        self.copy_lock = None;
        self.locks.retain(|(owner, _)| *owner == super::CLIENT);
        self.unanswered = 0;
    }

    pub fn power_cut(&mut self) {
        self.break_off();
        self.cache = self.disk.clone();
    }

    fn check_copy_lock(&mut self, call: &str) {
        if self.copy_lock != Some(self.connection) {
            self.violations
                .push(format!("{call} without the copy lock"));
        }
    }

    /// Nothing is left that was sent and not carried out.
    pub fn is_idle(&self) -> bool {
        self.late.is_empty()
    }
}

/// As a file system that keeps no page of zeros.
pub fn data_from(bytes: &[u8], offset: u64) -> Option<u64> {
    let rest = bytes.get(offset as usize..)?;
    let first = rest.iter().position(|byte| *byte != 0)? as u64;
    Some(offset.max((offset + first) / 4096 * 4096))
}

/// One brick; clones share it.
#[derive(Clone)]
pub struct Brick {
    state: Arc<Mutex<State>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl Brick {
    pub fn new(contents: Vec<u8>, seed: u64) -> Self {
        let state = State {
            cache: contents.clone(),
            disk: contents,
            own_mark: STAMP,
            rng: Rng(seed),
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            hook: Arc::default(),
        }
    }

    /// With an image in several files, each of some length, and zeros after that.
    pub fn cut(mut contents: Vec<u8>, seed: u64, layout: Layout) -> Self {
        let mut rng = Rng(seed ^ 0x1e46);
        for file in layout.files() {
            let range = layout.range(file);
            let length = match rng.below(3) {
                0 => 0,
                1 => range.end - range.start,
                _ => rng.below(range.end - range.start),
            };
            let end = range.start + length;
            contents[end as usize..range.end as usize].fill(0);
        }
        let brick = Self::new(contents, seed);
        brick.state().layout = Some(layout);
        brick
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// `hook` runs before each call: what others do meanwhile.
    pub fn meanwhile(&self, hook: impl FnMut() + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    /// A connection with the copy lock, whoever holds the brick.
    pub fn connect(&self) -> Box<SimPeer> {
        let mut state = self.state();
        state.calls += 1;
        state.connection += 1;
        state.copy_lock = Some(state.connection);
        SimPeer::new(self.clone(), state.connection)
    }

    /// As a healer of `session` connects.
    pub fn connect_for(&self, session: Uuid) -> Result<Box<SimPeer>, PeerError> {
        let peer = "b:/brick".to_owned();
        let mut state = self.state();
        state.calls += 1;
        if state.away {
            return Err(away());
        }
        if state.copy_lock.is_some() {
            return Err(PeerError::CopyLocked { peer });
        }
        if state.record != Some(session) {
            return Err(PeerError::NotHeld { peer, holder: None });
        }
        drop(state);
        Ok(self.connect())
    }

    /// Its host is cut off, its process goes on.
    pub fn cut_off(&self) {
        let mut state = self.state();
        state.away = true;
        state.break_off();
    }

    /// Another session takes the brick; `false`: a healer still copies.
    pub fn take_over(&self, session: Uuid) -> bool {
        let mut state = self.state();
        state.record = None;
        let free = state.copy_lock.is_none();
        if free {
            state.record = Some(session);
        }
        free
    }

    /// Takes a lock for a client; false if it is held by another.
    pub fn lock(&self, owner: u64, range: &Range<u64>) -> bool {
        let mut state = self.state();
        let meets = |held: &Range<u64>| held.start < range.end && range.start < held.end;
        let mut locks = state.locks.iter();
        let free = !locks.any(|(o, held)| *o != owner && meets(held))
            && !state.queued.as_ref().is_some_and(meets);
        if free {
            state.locks.push((owner, range.clone()));
        }
        free
    }

    pub fn is_locked_by_healer(&self) -> bool {
        self.state().locks.iter().any(|(owner, _)| *owner == HEALER)
    }

    pub fn unlock(&self, owner: u64, range: &Range<u64>) {
        let mut state = self.state();
        let place = state
            .locks
            .iter()
            .position(|l| *l == (owner, range.clone()));
        state.locks.swap_remove(place.expect("a lock that is held"));
    }
}

fn away() -> PeerError {
    PeerError::Away {
        peer: "b:/brick".into(),
        source: "gone".into(),
    }
}
