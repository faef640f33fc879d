//! Bricks with an image on them, and everybody who writes to it meanwhile: a guest
//! directly to the local copy, a healer from there to the peers, a client of Gluster
//! to all copies. They act between the calls of the verifier, in an order of the seed.

use crate::image::scheduler::clock::Clock;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use uuid::Uuid;

use crate::gluster::StrongChecksum;
use crate::image::dirty_map::{Begun, DirtyMap, ExtentSize, Healer, Identity, Peer, Peers};
use crate::image::heal::{
    Answer, HealReport, Hint, Job, LinkError, PeerError, SessionLink, Unmarked,
};
use crate::image::replica::brick_port::CopyState;

use super::super::brick::VerifyBrick;
use super::super::options::LockWait;
use super::super::{
    CopyReport, Repair, Report, Served, Situation, Subject, VerifyError, VerifyOptions, verify,
};
use super::Rng;

/// Bytes of an extent of a served image.
pub const EXTENT: u64 = 4096;
/// Two ranges of 1 MiB and a bit of a third, its last extent cut short.
pub const SIZE: u64 = (2 << 20) + 5 * EXTENT + 512;
/// The extents that guest and client write to.
const ACTIVE: Range<u64> = 250..262;
/// The session.
const SESSION: Uuid = Uuid::from_u128(9);

/// Owners of locks.
const VERIFIER: u64 = 1;
const HEALER: u64 = 2;
pub const CLIENT: u64 = 3;

/// One copy and its brick.
#[derive(Default)]
pub struct Copy {
    pub bytes: Vec<u8>,
    /// What the brick says of its size.
    pub claims: Option<u64>,
    pub pending: Vec<i32>,
    /// Owner, bytes, exclusive.
    pub locks: Vec<(u64, Range<u64>, bool)>,
    pub away: bool,
    /// Goes away after that many calls.
    pub lives_for: Option<u64>,
    /// The disk cannot read these.
    pub unreadable: Range<u64>,
    /// So many sums of these bytes are wrong.
    pub flaky: (u64, Range<u64>),
    /// Sums asked for, in bytes.
    pub summed: u64,
}

impl Copy {
    pub fn lock(&mut self, owner: u64, range: &Range<u64>, exclusive: bool) -> bool {
        let free = !self.locks.iter().any(|(other, held, other_exclusive)| {
            let meets = held.start < range.end && range.start < held.end;
            *other != owner && meets && (exclusive || *other_exclusive)
        });
        if free {
            self.locks.push((owner, range.clone(), exclusive));
        }
        free
    }

    pub fn unlock(&mut self, owner: u64, range: &Range<u64>) {
        let place = self
            .locks
            .iter()
            .position(|lock| lock.0 == owner && lock.1 == *range);
        self.locks.swap_remove(place.expect("a lock that is held"));
    }
}

/// What somebody does step by step.
#[derive(Clone, Debug)]
enum Step {
    Idle,
    /// A write of the guest, in flight: it has landed, or not.
    Guest(Range<u64>, bool),
    /// The healer holds the lock of an extent of a peer; it has read it.
    Copying(usize, u64, Option<Vec<u8>>),
    /// It has written it and given the lock back.
    Copied(usize, u64),
    /// The client holds the locks of so many bricks.
    Locking(Range<u64>, usize),
    /// The client has written to so many bricks.
    Writing(Range<u64>, usize, u8),
}

/// Everything.
pub struct Inner {
    pub copies: Vec<Copy>,
    pub map: Option<Arc<DirtyMap>>,
    healer: Option<Healer>,
    /// The session ends after so many steps of everybody.
    pub ends_after: Option<u64>,
    pub rng: Rng,
    /// Who acts.
    pub guest: bool,
    pub heals: bool,
    pub client: bool,
    /// The guest always has a write in flight in this extent.
    pub hot: Option<u64>,
    /// The client's writes fail on this copy, and it marks that.
    pub fails_on: Option<usize>,
    /// Of how many of its turns the client uses one.
    pub client_pace: u64,
    /// A write of the guest comes when the local copy's sum of the extent has been
    /// waited for so many times.
    pub strike: Option<(u64, u64)>,
    steps: [Step; 3],
    now: Duration,
    pub writes: u64,
    pub heals_done: u64,
}

pub struct World {
    _directory: tempfile::TempDir,
    pub inner: Arc<Mutex<Inner>>,
    pub options: VerifyOptions,
    job: Job,
    /// The brick of this child has no data.
    pub arbiter: Option<usize>,
}

impl World {
    /// `copies` equal copies that nobody serves.
    pub fn unserved(copies: usize, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let bytes: Vec<u8> = (0..SIZE / 8 + 1)
            .flat_map(|_| rng.next().to_le_bytes())
            .take(SIZE as usize)
            .collect();
        let copy = || Copy {
            bytes: bytes.clone(),
            pending: vec![0; copies],
            ..Copy::default()
        };
        let directory = tempfile::Builder::new().prefix("bypass-verify-").tempdir();
        let directory = directory.unwrap();
        let job = Job {
            volume: "gv0".into(),
            image: "/one.img".into(),
            gfid: Uuid::from_u128(7),
            session: SESSION,
            server: "localhost".into(),
            port: 24007,
            local_path: "/brick/one.img".into(),
            bricks: Vec::new(),
            local: 0,
            map: directory.path().join("map"),
            peers: (1..copies).collect(),
        };
        let inner = Arc::new(Mutex::new(Inner {
            copies: (0..copies).map(|_| copy()).collect(),
            map: None,
            healer: None,
            ends_after: None,
            rng,
            guest: false,
            heals: false,
            client: false,
            hot: None,
            fails_on: None,
            client_pace: 1,
            strike: None,
            steps: [const { Step::Idle }; 3],
            now: Duration::ZERO,
            writes: 0,
            heals_done: 0,
        }));
        let options = VerifyOptions {
            window: 2 << 20,
            lock_wait: LockWait {
                each: Duration::from_millis(500),
                all: Duration::from_secs(2),
            },
            clock: Arc::new(SimClock(inner.clone())),
            ..VerifyOptions::default()
        };
        Self {
            _directory: directory,
            inner,
            options,
            job,
            arbiter: None,
        }
    }

    /// As [`World::unserved`], served by child 0, and clean.
    pub fn served(copies: usize, seed: u64) -> Self {
        let world = Self::unserved(copies, seed);
        let identity = Identity {
            gfid: world.job.gfid,
            size: SIZE,
            extent_size: ExtentSize::new(EXTENT as u32).unwrap(),
            local: "b0".into(),
            peers: (1..copies).map(|child| format!("b{child}")).collect(),
        };
        let (map, _) = DirtyMap::open(&world.job.map, &identity).unwrap();
        map.declare_clean(Peers::first(copies - 1));
        let map = Arc::new(map);
        {
            let mut inner = world.inner();
            inner.healer = Some(Healer::claim(Arc::clone(&map)).unwrap());
            inner.map = Some(map);
        }
        world
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Changes a byte of a copy behind everybody's back.
    pub fn damage(&self, child: usize, at: u64) {
        self.inner().copies[child].bytes[at as usize] ^= 0x55;
    }

    pub fn verify(&self) -> Report {
        self.try_verify(None).unwrap()
    }

    /// The verifier holds none.
    pub fn assert_no_locks(&self) {
        for copy in &self.inner().copies {
            assert!(copy.locks.iter().all(|lock| lock.0 != VERIFIER));
        }
    }

    /// Verifies; whatever comes out, no lock is left and every byte is accounted for.
    pub fn try_verify(&self, repair: Option<&dyn Repair>) -> Result<Report, VerifyError> {
        let served = self.inner().map.is_some();
        let situation = if served {
            let link = Link(Arc::clone(&self.inner), self.job.clone());
            Situation::Served(Box::new(Served::attach(Box::new(link)).unwrap()))
        } else {
            Situation::Unserved
        };
        let count = self.inner().copies.len();
        let subject = |child| Subject {
            child,
            name: format!("b{child}"),
            has_data: self.arbiter != Some(child),
            brick: match self.inner().copies[child].away {
                true => Err("it is down".to_owned()),
                false => Ok(Box::new(SimBrick(Arc::clone(&self.inner), child))),
            },
        };
        let subjects = (0..count).map(subject).collect();
        let report = verify(subjects, situation, &self.options, repair);
        self.assert_no_locks();
        if let Ok(report) = &report {
            for copy in &report.copies {
                let is_reference = copy.child == report.reference;
                let expected = if is_reference { 0 } else { report.size };
                assert_eq!(settled(copy, report.size), expected);
            }
        }
        report
    }
}

/// The bytes in all figures together, without those behind the image's end.
fn settled(copy: &CopyReport, size: u64) -> u64 {
    let beyond = copy
        .differing
        .ranges
        .iter()
        .map(|range| range.end.saturating_sub(size));
    let figures = [copy.verified, copy.behind, copy.busy, copy.not_verified];
    figures.iter().sum::<u64>() + copy.differing.bytes - beyond.sum::<u64>()
}

impl Inner {
    /// Somebody acts.
    fn step(&mut self) {
        self.keep_hot();
        self.ends_after = self.ends_after.map(|left| left.saturating_sub(1));
        for _ in 0..self.rng.below(4) {
            let who = self.rng.below(3) as usize;
            let step = std::mem::replace(&mut self.steps[who], Step::Idle);
            self.steps[who] = match who {
                0 => self.step_guest(step),
                1 => self.step_healer(step),
                _ => self.step_client(step),
            };
        }
    }

    fn keep_hot(&mut self) {
        if let (Some(hot), Some(map)) = (self.hot, &self.map)
            && map.state(hot).is_some_and(|state| state.in_flight() == 0)
        {
            assert_eq!(map.begin_write(hot * EXTENT, EXTENT), Begun::Yes);
        }
        if let Some(hot) = self.hot {
            let value = self.rng.next() as u8;
            self.copies[0].bytes[(hot * EXTENT) as usize] = value;
        }
    }

    /// The client is in the middle of a write, with its locks.
    pub fn half_written(&mut self) {
        let range = self.active_bytes();
        for copy in &mut self.copies {
            assert!(copy.lock(CLIENT, &range, true));
        }
        self.copies[0].bytes[as_usize(&range)].fill(0xaa);
        self.steps[2] = Step::Writing(range, 1, 0xaa);
    }

    /// A whole write of the guest.
    fn strike(&mut self, range: &Range<u64>) {
        let Some((left, extent)) = self.strike else {
            return;
        };
        let bytes = extent * EXTENT..(extent + 1) * EXTENT;
        if range.start >= bytes.end || bytes.start >= range.end {
            return;
        }
        self.strike = left.checked_sub(1).map(|left| (left, extent));
        if let Some(map) = self.map.as_ref().filter(|_| left == 0) {
            assert_eq!(map.begin_write(bytes.start, EXTENT), Begun::Yes);
            self.copies[0].bytes[as_usize(&bytes)].fill(0xaa);
            let _ = map.end_write(bytes.start, EXTENT);
        }
    }

    fn active_bytes(&mut self) -> Range<u64> {
        let extent = ACTIVE.start + self.rng.below(ACTIVE.end - ACTIVE.start);
        let start = extent * EXTENT + 512 * self.rng.below(8);
        start..start + 512 * (1 + self.rng.below(4))
    }

    fn step_guest(&mut self, step: Step) -> Step {
        let Some(map) = self.map.clone() else {
            return Step::Idle;
        };
        match step {
            Step::Guest(range, false) => {
                let value = self.rng.next() as u8;
                self.copies[0].bytes[as_usize(&range)].fill(value);
                Step::Guest(range, true)
            }
            Step::Guest(range, true) => {
                let _ = map.end_write(range.start, range.end - range.start);
                self.writes += 1;
                Step::Idle
            }
            _ if self.guest && self.rng.chance(2) => {
                let range = self.active_bytes();
                let begun = map.begin_write(range.start, range.end - range.start);
                assert_eq!(begun, Begun::Yes);
                Step::Guest(range, false)
            }
            step => step,
        }
    }

    fn step_healer(&mut self, step: Step) -> Step {
        let (Some(healer), Some(map)) = (&self.healer, &self.map) else {
            return Step::Idle;
        };
        let bytes = |extent: u64| map.geometry().bytes_of(extent);
        match step {
            Step::Copying(child, extent, None) => {
                let read = self.copies[0].bytes[as_usize(&bytes(extent))].to_vec();
                Step::Copying(child, extent, Some(read))
            }
            Step::Copying(child, extent, Some(read)) => {
                let copy = &mut self.copies[child];
                copy.bytes[as_usize(&bytes(extent))].copy_from_slice(&read);
                copy.unlock(HEALER, &bytes(extent));
                Step::Copied(child, extent)
            }
            // Only after an FSYNC, and without the lock.
            Step::Copied(child, extent) => {
                let peer = Peer::new(child - 1).unwrap();
                let _ = healer.end_copy(peer, extent);
                self.heals_done += 1;
                Step::Idle
            }
            _ if self.heals => {
                let child = 1 + self.rng.below(self.copies.len() as u64 - 1) as usize;
                let peer = Peer::new(child - 1).unwrap();
                let Some(extent) = map.next_dirty(peer, 0) else {
                    return Step::Idle;
                };
                let range = bytes(extent);
                if !self.copies[child].lock(HEALER, &range, true) {
                    return Step::Idle;
                }
                if healer.begin_copy(peer, extent) {
                    Step::Copying(child, extent, None)
                } else {
                    self.copies[child].unlock(HEALER, &range);
                    Step::Idle
                }
            }
            step => step,
        }
    }

    /// A client takes all locks, writes everywhere, gives them back.
    fn step_client(&mut self, step: Step) -> Step {
        let count = self.copies.len();
        if !self.rng.chance(self.client_pace) {
            return step;
        }
        match step {
            Step::Locking(range, held) if held < count => {
                if self.copies[held].lock(CLIENT, &range, true) {
                    return Step::Locking(range, held + 1);
                }
                for copy in &mut self.copies[..held] {
                    copy.unlock(CLIENT, &range);
                }
                Step::Idle
            }
            Step::Locking(range, _) => Step::Writing(range, 0, self.rng.next() as u8),
            Step::Writing(range, written, value) if written < count => {
                if self.fails_on != Some(written) {
                    self.copies[written].bytes[as_usize(&range)].fill(value);
                }
                Step::Writing(range, written + 1, value)
            }
            Step::Writing(range, ..) => {
                for (child, copy) in self.copies.iter_mut().enumerate() {
                    if let Some(failed) = self.fails_on.filter(|&failed| failed != child) {
                        copy.pending[failed] += 1;
                    }
                    copy.unlock(CLIENT, &range);
                }
                self.writes += 1;
                Step::Idle
            }
            _ if self.client && self.rng.chance(2) => Step::Locking(self.active_bytes(), 0),
            step => step,
        }
    }
}

fn as_usize(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// Time goes on when somebody sleeps, which the verifier may not do with a lock.
struct SimClock(Arc<Mutex<Inner>>);

impl Clock for SimClock {
    fn now(&self) -> Duration {
        self.0.lock().unwrap().now
    }

    fn sleep(&self, time: Duration) {
        let mut inner = self.0.lock().unwrap();
        for copy in &inner.copies {
            assert!(copy.locks.iter().all(|lock| lock.0 != VERIFIER));
        }
        inner.now += time;
        for _ in 0..8 {
            inner.step();
        }
    }
}

struct Link(Arc<Mutex<Inner>>, Job);

impl SessionLink for Link {
    fn job(&self) -> Result<Job, LinkError> {
        match self.0.lock().unwrap().ends_after == Some(0) {
            true => Err(LinkError::Ended("closed".to_owned())),
            false => Ok(self.1.clone()),
        }
    }

    fn report(&self, _: &HealReport) -> Result<Hint, LinkError> {
        unreachable!("verifying is no healing")
    }

    fn unmark(&self) -> Result<Unmarked, LinkError> {
        unreachable!("verifying removes no marks")
    }
}

struct SimBrick(Arc<Mutex<Inner>>, usize);

impl SimBrick {
    /// Lets the others act, then begins a call.
    fn call(&self) -> Result<MutexGuard<'_, Inner>, PeerError> {
        let mut inner = self.0.lock().unwrap();
        inner.step();
        let copy = &mut inner.copies[self.1];
        if let Some(left) = &mut copy.lives_for {
            copy.away |= *left == 0;
            *left = left.saturating_sub(1);
        }
        if copy.away {
            copy.locks.retain(|lock| lock.0 != VERIFIER);
            return Err(PeerError::Away {
                peer: format!("b{}", self.1),
                source: "gone".into(),
            });
        }
        Ok(inner)
    }
}

impl VerifyBrick for SimBrick {
    fn state(&self) -> Result<CopyState, PeerError> {
        let inner = self.call()?;
        let copy = &inner.copies[self.1];
        Ok(CopyState {
            gfid: Uuid::from_u128(7),
            size: copy.claims.unwrap_or(copy.bytes.len() as u64),
            pending: copy.pending.clone(),
            dirty: 0,
            fenced: false,
        })
    }

    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        let inner = self.call()?;
        let bytes = &inner.copies[self.1].bytes;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let first = rest.iter().position(|byte| *byte != 0);
        Ok(first.map(|first| offset.max((offset + first as u64) / EXTENT * EXTENT)))
    }

    /// The brick reads a part at once and the rest when the answer is waited for.
    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        assert!(range.end - range.start <= crate::gluster::MAX_IO as u64);
        let mut inner = self.call()?;
        let split = match inner.strike {
            None => range.start + inner.rng.below(range.end - range.start + 1),
            Some(_) => range.start,
        };
        let first = inner.copies[self.1].read(range.start..split);
        let brick = SimBrick(Arc::clone(&self.0), self.1);
        Ok(Answer::new(move || {
            let mut inner = brick.call()?;
            if brick.1 == 0 {
                inner.strike(&range);
            }
            let copy = &mut inner.copies[brick.1];
            copy.summed += range.end - range.start;
            if copy.unreadable.start < range.end && range.start < copy.unreadable.end {
                return Err(PeerError::Refused {
                    peer: "b".into(),
                    source: "input/output error".into(),
                });
            }
            let mut hasher = DefaultHasher::new();
            hasher.write(&first);
            hasher.write(&copy.read(split..range.end));
            let (left, bytes) = &mut copy.flaky;
            if *left > 0 && bytes.start < range.end && range.start < bytes.end {
                *left -= 1;
                hasher.write(b"wrong");
            }
            let mut sum = [0; 32];
            sum[..8].copy_from_slice(&hasher.finish().to_le_bytes());
            Ok(StrongChecksum::Sha256(sum))
        }))
    }

    fn try_lock(&self, range: Range<u64>) -> Result<bool, PeerError> {
        Ok(self.call()?.copies[self.1].lock(VERIFIER, &range, false))
    }

    /// Nobody may be kept waiting by locks on other bytes meanwhile.
    fn wait_lock(&self, range: Range<u64>, limit: Duration) -> Result<bool, PeerError> {
        let until = self.0.lock().unwrap().now + limit;
        loop {
            let mut inner = self.call()?;
            for (owner, held, _) in inner.copies.iter().flat_map(|copy| &copy.locks) {
                assert!(*owner != VERIFIER || *held == range);
            }
            if inner.copies[self.1].lock(VERIFIER, &range, false) {
                return Ok(true);
            }
            inner.now += Duration::from_millis(5);
            if inner.now > until {
                return Ok(false);
            }
        }
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        self.call()?.copies[self.1].unlock(VERIFIER, &range);
        Ok(())
    }

    fn close(&self) {
        let mut inner = self.0.lock().unwrap();
        let copy = &mut inner.copies[self.1];
        copy.locks.retain(|lock| lock.0 != VERIFIER);
    }
}

impl Copy {
    fn read(&self, range: Range<u64>) -> Vec<u8> {
        let end = self.bytes.len();
        let at = |byte: u64| (byte as usize).min(end);
        self.bytes[at(range.start)..at(range.end)].to_vec()
    }
}
