//! A simulated brick: a cache that a power cut empties, writes that are carried
//! out late and in any order, locks, and faults at a chosen call. It notes what no
//! healer may do: write without the copy lock, or give that up too soon.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::super::peer::{Answer, HealPeer, PeerError};
use super::Rng;
use super::world::STAMP;
use crate::gluster::StrongChecksum;

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
        let start = offset as usize;
        self.cache[start..start + data.len()].copy_from_slice(&data);
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
        Box::new(SimPeer(Link {
            brick: self.clone(),
            connection: state.connection,
        }))
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

/// Calls of others that a healer waits for a lock.
const PATIENCE: usize = 100;

/// The owner of a healer's locks.
const HEALER: u64 = 1;

pub struct SimPeer(Link);

/// What a connection and the answers it waits for have in common.
#[derive(Clone)]
struct Link {
    brick: Brick,
    connection: u64,
}

impl Drop for SimPeer {
    fn drop(&mut self) {
        self.close();
    }
}

fn away() -> PeerError {
    PeerError::Away {
        peer: "b:/brick".into(),
        source: "gone".into(),
    }
}

fn refused() -> PeerError {
    PeerError::Refused {
        peer: "b:/brick".into(),
        source: "no space".into(),
    }
}

impl Link {
    /// Lets others act, then begins a call, unless a fault comes in between.
    fn call(&self, kind: Call) -> Result<MutexGuard<'_, State>, PeerError> {
        let hook = self.brick.hook.lock().unwrap().take();
        if let Some(mut hook) = hook {
            hook();
            *self.brick.hook.lock().unwrap() = Some(hook);
        }
        let mut state = self.brick.state();
        state.calls += 1;
        state.carry_out_some();
        if let Some((wanted, left, fault)) = state.fault
            && (wanted == Call::Any || wanted == kind)
        {
            state.fault = (left > 0).then(|| (wanted, left - 1, fault));
            if left == 0 {
                match fault {
                    Fault::PowerCut => state.power_cut(),
                    Fault::LostLink => state.break_off(),
                    Fault::Refuse => return Err(refused()),
                    Fault::HealerDies => {
                        state.break_off();
                        drop(state);
                        panic!("{}", super::KILLED);
                    }
                }
            }
        }
        match state.connection == self.connection {
            true if state.full && kind == Call::Write => {
                state.refusals += 1;
                Err(refused())
            }
            true => Ok(state),
            false => Err(away()),
        }
    }
}

impl Link {
    fn start_write(&self, offset: u64, data: &[u8]) -> Result<Answer<()>, PeerError> {
        let mut state = self.call(Call::Write)?;
        state.check_copy_lock("write");
        let number = state.next_write;
        let length = data.len() as u64;
        state.next_write += 1;
        state.unanswered += length;
        state.most_unanswered = state.most_unanswered.max(state.unanswered);
        state.late.push((number, offset, data.to_vec()));
        state.written.push(offset..offset + length);
        let link = self.clone();
        Ok(Answer::new(move || {
            let mut state = link.answer(length)?;
            if let Some(index) = state.late.iter().position(|late| late.0 == number) {
                state.carry_out(index);
            }
            Ok(())
        }))
    }

    /// An answer about that many bytes; also one that says no answers them.
    fn answer(&self, length: u64) -> Result<MutexGuard<'_, State>, PeerError> {
        let refused = match self.call(Call::Any) {
            Ok(mut state) => {
                state.unanswered -= length;
                return Ok(state);
            }
            Err(error) => error,
        };
        let mut state = self.brick.state();
        if state.connection == self.connection {
            state.unanswered -= length;
        }
        Err(refused)
    }
}

/// All of them are answered, whatever the outcome.
fn wait_all(sent: Vec<Answer<()>>) -> Result<(), PeerError> {
    let mut outcome = Ok(());
    for answer in sent {
        outcome = outcome.and(answer.wait());
    }
    outcome
}

impl HealPeer for SimPeer {
    fn name(&self) -> &str {
        "b:/brick"
    }

    fn is_connected(&self) -> bool {
        self.0.brick.state().connection == self.0.connection
    }

    fn close(&self) {
        let mut state = self.0.brick.state();
        if state.connection == self.0.connection {
            if state.unanswered > 0 {
                let left = format!("closed with {} bytes unanswered", state.unanswered);
                state.violations.push(left);
            }
            state.break_off();
        }
    }

    fn size(&self) -> Result<u64, PeerError> {
        Ok(self.0.call(Call::Any)?.cache.len() as u64)
    }

    fn own_mark(&self) -> Result<i32, PeerError> {
        Ok(self.0.call(Call::Any)?.own_mark)
    }

    fn truncate(&self, size: u64) -> Result<(), PeerError> {
        let mut state = self.0.call(Call::Any)?;
        state.check_copy_lock("truncate");
        state.cache.resize(size as usize, 0);
        Ok(())
    }

    fn start_writes(&self, writes: &[(u64, &[u8])]) -> Result<Answer<()>, PeerError> {
        self.0.brick.state().batches += 1;
        let mut sent = Vec::new();
        for (offset, data) in writes {
            match self.0.start_write(*offset, data) {
                Ok(answer) => sent.push(answer),
                Err(error) => {
                    wait_all(sent)?;
                    return Err(error);
                }
            }
        }
        Ok(Answer::new(|| wait_all(sent)))
    }
    fn start_zero(&self, range: Range<u64>) -> Result<Answer<()>, PeerError> {
        let mut state = self.0.call(Call::Write)?;
        state.check_copy_lock("zero");
        state.cache[range.start as usize..range.end as usize].fill(0);
        state.zeroed.push(range);
        Ok(Answer::new(|| Ok(())))
    }

    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        let state = self.0.call(Call::Any)?;
        Ok(data_from(&state.cache, offset))
    }

    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        let mut state = self.0.call(Call::Any)?;
        state.compared += range.end - range.start;
        let bytes = &state.cache[range.start as usize..range.end as usize];
        let sum = StrongChecksum::Sha256(Sha256::digest(bytes).into());
        Ok(Answer::new(|| Ok(sum)))
    }

    fn fsync(&self) -> Result<(), PeerError> {
        let mut state = self.0.call(Call::Fsync)?;
        state.fsyncs += 1;
        state.disk = state.cache.clone();
        Ok(())
    }

    fn lock(
        &self,
        range: Range<u64>,
        _limit: Duration,
        stop: &AtomicBool,
    ) -> Result<bool, PeerError> {
        for _ in 0..PATIENCE {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let mut state = self.0.call(Call::Any)?;
            state.queued = None;
            drop(state);
            if self.0.brick.lock(HEALER, &range) {
                return Ok(true);
            }
            self.0.brick.state().queued = Some(range.clone());
        }
        self.0.brick.state().queued = None;
        Ok(false)
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        drop(self.0.call(Call::Any)?);
        self.0.brick.unlock(HEALER, &range);
        Ok(())
    }
}
