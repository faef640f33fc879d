//! A simulated session with its image, bricks and guest: marks before it writes,
//! and removes marks only behind a gate. It notes a mark that goes too soon.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::image::dirty_map::{Begun, DirtyMap, Peer, Peers};
use crate::image::layout::Layout;
use crate::image::local::error::LocalError;

use super::super::{
    Copies, FollowOptions, Follower, HealPeer, HealReport, HealState, Hint, Job, LinkError,
    LocalFiles, PeerError, PeerReport, SessionLink, Unmarked, Wait,
};
use super::Rng;
use super::brick::Brick;
use super::world::{EXTENT, SIZE, image};

/// Shorter than the real one.
const STUCK: Duration = Duration::from_millis(400);

/// What the test changes and looks at.
#[derive(Default)]
pub struct Known {
    pub ended: Option<LinkError>,
    pub held: Vec<bool>,
    /// Does it mark what is dirty by itself?
    pub marks_debt: bool,
    pub suspect: Vec<bool>,
    pub latency: Option<Duration>,
    pub forced: bool,
    pub reports: Vec<HealReport>,
    /// How often it was asked to remove marks.
    pub asked: u64,
    pub violations: Vec<String>,
    /// A report waits for its answer.
    pub waiting: bool,
    /// No report does any more.
    pub hurried: bool,
    /// None ever does, as with an older daemon.
    pub answers_at_once: bool,
}

pub struct Session {
    _directory: tempfile::TempDir,
    path: PathBuf,
    pub id: Uuid,
    pub map: Arc<DirtyMap>,
    pub bricks: Vec<Brick>,
    /// Per peer. A write holds it shared from its marks to its end.
    marked: RwLock<Vec<bool>>,
    known: Mutex<Known>,
}

impl Session {
    /// Everything is dirty and marked, every peer held.
    pub fn new(seed: u64, peers: usize) -> Arc<Self> {
        let (directory, path, map) = image(seed, peers);
        let id = Uuid::from_u128(u128::from(seed) << 64 | 1);
        let brick = |peer: usize| {
            let seed = seed + 1000 * (1 + peer as u64);
            let brick = Brick::new(Rng(seed).bytes(SIZE), seed);
            brick.state().record = Some(id);
            brick
        };
        Arc::new(Self {
            _directory: directory,
            path,
            id,
            map: Arc::new(map),
            bricks: (0..peers).map(brick).collect(),
            marked: RwLock::new(vec![true; peers]),
            known: Mutex::new(Known {
                held: vec![true; peers],
                suspect: vec![false; peers],
                marks_debt: true,
                ..Known::default()
            }),
        })
    }

    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn is_marked(&self) -> bool {
        self.marked.read().unwrap().contains(&true)
    }

    /// Against whom there are marks.
    pub fn marks(&self) -> Vec<bool> {
        self.marked.read().unwrap().clone()
    }

    /// Are the marks set, without a write?
    pub fn set_marked(&self, marked: bool) {
        self.marked.write().unwrap().fill(marked);
    }

    /// The host of a peer is cut off, from the session as from the healer.
    pub fn cut_off(&self, peer: usize) {
        self.bricks[peer].cut_off();
        self.known().held[peer] = false;
    }

    /// It is there again, and the session holds it.
    pub fn come_back(&self, peer: usize) {
        self.bricks[peer].state().away = false;
        self.known().held[peer] = true;
    }

    fn file(&self) -> File {
        let mut options = File::options();
        options.read(true).write(true).open(&self.path).unwrap()
    }

    pub fn local(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    /// The guest writes.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let marked = loop {
            let marked = self.marked.read().unwrap();
            if !marked.contains(&false) {
                break marked;
            }
            drop(marked);
            self.set_marked(true);
        };
        let length = data.len() as u64;
        assert_eq!(self.map.begin_write(offset, length), Begun::Yes);
        self.file().write_all_at(data, offset).unwrap();
        let _ = self.map.end_write(offset, length);
        drop(marked);
    }

    /// The guest writes somewhere, up to a few extents.
    pub fn write_anywhere(&self, rng: &mut Rng) {
        let length = 512 * (1 + rng.below(24));
        let offset = 512 * rng.below((SIZE - length) / 512 + 1);
        self.write(offset, &rng.bytes(length));
    }

    pub fn debt(&self, peer: usize) -> u64 {
        self.map.dirty_extents(Peer::new(peer).unwrap())
    }

    pub fn is_equal(&self, peer: usize) -> bool {
        self.bricks[peer].state().disk == self.local()
    }

    pub fn last_report(&self, peer: usize) -> Option<PeerReport> {
        self.known().reports.last()?.peers.get(peer).cloned()
    }

    /// Waits until the healer says that it waits for something like `reason`.
    pub fn wait_until_missed(&self, peer: usize, reason: &str) {
        wait_until(reason, || match self.last_report(peer) {
            Some(PeerReport {
                state: HealState::Waiting { why, .. },
                ..
            }) => why.contains(reason),
            _ => false,
        });
    }

    /// A follower of this session.
    pub fn follow(self: &Arc<Self>, options: &FollowOptions) -> Follower {
        self.try_follow(options).unwrap()
    }

    pub fn try_follow(
        self: &Arc<Self>,
        options: &FollowOptions,
    ) -> Result<Follower, super::super::FollowError> {
        Follower::start(self.clone(), options, |job| {
            Arc::new(SimCopies {
                local: job.local_path.clone(),
                session: job.session,
                bricks: self.bricks.clone(),
            })
        })
    }

    /// Nobody did what nobody may do.
    pub fn check(&self) {
        assert_eq!(self.known().violations, [""; 0]);
        for brick in &self.bricks {
            assert_eq!(brick.state().violations, [""; 0]);
        }
    }

    /// Waits until the marks are gone; all copies must then be equal.
    pub fn wait_until_unmarked(&self) {
        wait_until("no marks", || !self.is_marked());
        for peer in 0..self.bricks.len() {
            assert!(self.is_equal(peer), "the copy of peer {peer} differs");
        }
        self.check();
    }

    /// Does a peer that is held miss something, and can be healed as far as known?
    fn is_waited_for(&self, known: &Known) -> bool {
        let report = known.reports.last();
        let stuck = |peer: usize| {
            let told = report.and_then(|report| report.peers.get(peer));
            told.is_some_and(|peer| peer.failing_for > Some(STUCK))
        };
        let mut peers = 0..self.bricks.len();
        peers.any(|peer| known.held[peer] && self.debt(peer) > 0 && !stuck(peer))
    }

    fn alive(&self) -> Result<MutexGuard<'_, Known>, LinkError> {
        let known = self.known();
        match &known.ended {
            Some(why) => Err(why.clone()),
            None => Ok(known),
        }
    }
}

impl SessionLink for Session {
    fn job(&self) -> Result<Job, LinkError> {
        drop(self.alive()?);
        Ok(Job {
            volume: "vol".into(),
            image: "/image".into(),
            gfid: Uuid::from_u128(7),
            session: self.id,
            server: "a".into(),
            port: 24007,
            local_path: self.path.clone(),
            bricks: Vec::new(),
            local: 0,
            map: self.map.path().to_owned(),
            peers: (1..=self.bricks.len()).collect(),
        })
    }

    fn report(&self, report: &HealReport, wait: Option<&Wait>) -> Result<Hint, LinkError> {
        self.alive()?.reports.push(report.clone());
        let begin = Instant::now();
        loop {
            let hint = self.hint()?;
            let waits = |wait: &Wait| hint.says_what(&wait.unlike) && begin.elapsed() < wait.time;
            let mut known = self.known();
            let hurries = known.hurried || known.answers_at_once;
            known.waiting = wait.is_some_and(waits) && !hurries;
            if !known.waiting {
                return Ok(hint);
            }
            drop(known);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn hurry(&self) {
        self.known().hurried = true;
    }

    fn unmark(&self) -> Result<Unmarked, LinkError> {
        let mut marked = self.marked.write().unwrap();
        let mut known = self.alive()?;
        known.asked += 1;
        let peers = 0..self.bricks.len();
        if self.is_waited_for(&known) {
            let why = "a peer misses something".to_owned();
            return Ok(Unmarked::NotYet { why });
        }
        for peer in peers.filter(|&peer| self.debt(peer) == 0) {
            marked[peer] = false;
            if !self.is_equal(peer) {
                known.violations.push(format!("{peer} was not equal"));
            }
        }
        Ok(match marked.contains(&true) {
            false => Unmarked::All,
            true => Unmarked::Some {
                peers: marked.iter().map(|marked| !marked).collect(),
            },
        })
    }
}

impl Session {
    /// What it says now, having marked what it has to.
    fn hint(&self) -> Result<Hint, LinkError> {
        let known = self.alive()?;
        let peers = 0..self.bricks.len();
        let marked = self.marked.read().unwrap().clone();
        let unmarked = |peer: usize| known.held[peer] && self.debt(peer) > 0 && !marked[peer];
        if known.marks_debt && peers.clone().any(unmarked) {
            self.set_marked(true);
        }
        let marked = self.marked.read().unwrap().clone();
        let behind = self.is_waited_for(&known);
        let removable = |peer: usize| marked[peer] && self.debt(peer) == 0;
        let clean = |peer: usize| !known.held[peer] || self.debt(peer) == 0;
        Ok(Hint {
            marked: !marked.contains(&false),
            stands: marked.clone(),
            removable: !behind && peers.clone().any(removable),
            suspect: known.suspect.clone(),
            held: known.held.clone(),
            urgent: false,
            forced: known.forced,
            latency: known.latency,
            at_rest: !marked.contains(&true) && peers.clone().all(clean),
        })
    }
}

struct SimCopies {
    local: PathBuf,
    session: Uuid,
    bricks: Vec<Brick>,
}

impl Copies for SimCopies {
    fn local(&self, _: &DirtyMap) -> Result<LocalFiles, LocalError> {
        let file = File::open(&self.local).unwrap();
        Ok(LocalFiles::whole(Uuid::from_u128(7), SIZE, file))
    }

    fn connect(
        &self,
        _: &DirtyMap,
        _: &Arc<Layout>,
        peer: Peer,
    ) -> Result<Box<dyn HealPeer>, PeerError> {
        Ok(self.bricks[peer.index()].connect_for(self.session)?)
    }
}

/// A new connection is not left alone first.
pub fn at_once() -> FollowOptions {
    FollowOptions {
        window: 8 * EXTENT,
        quiet: Duration::ZERO,
        ..FollowOptions::default()
    }
}

/// Slow enough that copying the image takes seconds.
pub fn slowly() -> FollowOptions {
    let options = at_once();
    options.bandwidth.store(8 * EXTENT, Ordering::Relaxed);
    options
}

/// Fails after a deadline.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A guest that writes until it is told to stop.
pub fn write_until(session: &Session, over: &AtomicBool, seed: u64) {
    let mut rng = Rng(seed);
    while !over.load(Ordering::SeqCst) {
        session.write_anywhere(&mut rng);
    }
}

/// Every copy equal, no mark.
pub fn make_clean(session: &Session) {
    for brick in &session.bricks {
        let mut brick = brick.state();
        (brick.cache, brick.disk) = (session.local(), session.local());
    }
    session
        .map
        .declare_clean(Peers::first(session.bricks.len()));
    session.set_marked(false);
}
