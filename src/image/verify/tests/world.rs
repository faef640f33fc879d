//! Bricks with an image on them, and everybody who writes to it meanwhile: a guest
//! directly to the local copy, a healer from there to the peers, a client of Gluster
//! to all copies. They act between the calls of the verifier, in an order of the seed.

mod actors;
mod brick;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use uuid::Uuid;

use super::super::options::LockWait;
use super::super::{
    CopyReport, Repair, Report, Served, Situation, Subject, VerifyError, VerifyOptions, verify,
};
use super::Rng;
use crate::image::dirty_map::{DirtyMap, ExtentSize, Healer, Identity, Peers};
use crate::image::heal::{HealReport, Hint, Job, LinkError, SessionLink, Unmarked, Wait};
use crate::image::layout::{FileIndex, Layout, Pieces};
use crate::image::scheduler::clock::Clock;
use actors::Step;
use brick::SimBrick;

/// Bytes of an extent of a served image.
pub const EXTENT: u64 = 4096;
/// Two ranges of 1 MiB and a bit of a third, its last extent cut short.
pub const SIZE: u64 = (2 << 20) + 5 * EXTENT + 512;
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
    /// On the file at the image's path.
    pub pending: Vec<i32>,
    /// On the others of an image in several.
    pub pending_on: BTreeMap<FileIndex, Vec<i32>>,
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

    /// The counters on a file.
    pub fn marks_on(&mut self, file: FileIndex) -> &mut Vec<i32> {
        let none = vec![0; self.pending.len()];
        match file {
            FileIndex::BASE => &mut self.pending,
            file => self.pending_on.entry(file).or_insert(none),
        }
    }

    fn read(&self, range: Range<u64>) -> Vec<u8> {
        let end = self.bytes.len();
        let at = |byte: u64| (byte as usize).min(end);
        self.bytes[at(range.start)..at(range.end)].to_vec()
    }
}

/// Everything.
pub struct Inner {
    pub layout: Layout,
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
    /// After so many steps of everybody this copy is marked on this file.
    pub late_mark: Option<(u64, usize, FileIndex)>,
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
            layout: Layout::new(job.gfid, SIZE, None),
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
            late_mark: None,
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

    /// The same image in files of so many bytes.
    pub fn cut(self, piece: u64) -> Self {
        let count = Layout::count(SIZE, piece);
        let pieces = Pieces {
            size: piece,
            gfids: (1..count).map(|n| Uuid::from_u128(n.into())).collect(),
        };
        self.inner().layout = Layout::new(self.job.gfid, SIZE, Some(&pieces));
        self
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
        let layout = self.inner().layout.clone();
        let report = verify(subjects, layout, situation, &self.options, repair);
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

    fn report(&self, _: &HealReport, _: Option<&Wait>) -> Result<Hint, LinkError> {
        unreachable!("verifying is no healing")
    }

    fn unmark(&self) -> Result<Unmarked, LinkError> {
        unreachable!("verifying removes no marks")
    }
}
