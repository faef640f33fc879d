//! A session as other threads see it: its state for the status, and what a healer or
//! an operator asks of it.
//!
//! Cheap to clone; outlives the session harmlessly. The answers are the session
//! thread's ([`super::runner`]); nothing is decided here.

use std::ops::Range;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::bricks::Shape;
use super::dirty::{DirtyMap, Peer};
use super::gate::WriteGate;
use super::heal::{HealReport, Hint, LinkError, Unmarked};
use super::machine::Phase;
use super::runner::Input;
use super::snapshot::{Behind, Healing, Snapshot};

/// How long an answer of the session's thread is waited for: longer than it waits for
/// other clients' locks.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// A healer that has not reported for so long is gone.
const HEALER_GONE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Clone)]
pub struct SessionHandle {
    shape: Shape,
    inbox: Sender<Input>,
    gate: Arc<WriteGate>,
    snapshot: Arc<Mutex<Snapshot>>,
    map: Option<Arc<DirtyMap>>,
    healer: Arc<Mutex<Option<(Instant, HealReport)>>>,
}

impl SessionHandle {
    pub(super) fn new(
        shape: Shape,
        inbox: Sender<Input>,
        gate: Arc<WriteGate>,
        snapshot: Arc<Mutex<Snapshot>>,
        map: Option<Arc<DirtyMap>>,
    ) -> Self {
        Self {
            shape,
            inbox,
            gate,
            snapshot,
            map,
            healer: Arc::default(),
        }
    }

    /// The state as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = locked(&self.snapshot).clone();
        snapshot.write_waiting = self.gate.is_wanted();
        snapshot.healing = self.map.as_deref().map(|map| self.healing(map));
        snapshot
    }

    fn healing(&self, map: &DirtyMap) -> Healing {
        let suspect = map.record().suspect;
        let reported = locked(&self.healer).clone();
        let alive = reported.filter(|(at, _)| at.elapsed() < HEALER_GONE);
        Healing {
            behind: self
                .peers()
                .map(|(peer, child)| Behind {
                    child,
                    extents: map.dirty_extents(peer),
                    bytes: map.dirty_bytes(peer),
                    suspect: suspect.contains(peer),
                })
                .collect(),
            extent_size: map.geometry().extent_size().bytes(),
            healer: alive.map(|(_, report)| report),
        }
    }

    /// Takes a healer's report; the answer is what it should know. The guest's latency
    /// is the caller's to fill in.
    ///
    /// # Errors
    /// [`LinkError::Ended`].
    pub fn report(&self, report: &HealReport) -> Result<Hint, LinkError> {
        let Some(map) = &self.map else {
            return Err(LinkError::Ended("it is read-only".to_owned()));
        };
        *locked(&self.healer) = Some((Instant::now(), report.clone()));
        let snapshot = locked(&self.snapshot).clone();
        if matches!(snapshot.phase, Phase::Stopped(_)) {
            return Err(LinkError::Ended("it has stopped".to_owned()));
        }
        let marked_in_session = snapshot.phase == Phase::Dirty;
        let held = |child: usize| snapshot.copies.get(child).is_some_and(|copy| copy.locked);
        let marked = |child: usize| {
            let copies = snapshot.copies.iter().filter(|copy| copy.locked);
            let counter = |marks: &Vec<i32>| marks.get(child).is_some_and(|&count| count != 0);
            marked_in_session || copies.filter_map(|c| c.pending.as_ref()).any(counter)
        };
        let suspect = map.record().suspect;
        Ok(Hint {
            marked: self.peers().any(|(_, child)| marked(child)),
            removable: self
                .peers()
                .any(|(peer, child)| marked(child) && map.next_dirty(peer, 0).is_none()),
            suspect: self
                .peers()
                .map(|(peer, _)| suspect.contains(peer))
                .collect(),
            held: self.peers().map(|(_, child)| held(child)).collect(),
            latency: None,
        })
    }

    /// Removes the marks against every peer that misses nothing.
    ///
    /// # Errors
    /// [`LinkError::Ended`], [`LinkError::Failed`].
    pub fn unmark(&self) -> Result<Unmarked, LinkError> {
        self.ask(Input::Unmark)
    }

    /// Makes byte ranges dirty for a peer whose copy differs there.
    ///
    /// # Errors
    /// [`LinkError::Ended`], [`LinkError::Failed`] with the session's reason.
    pub fn repair(&self, peer: Peer, ranges: Vec<Range<u64>>) -> Result<(), LinkError> {
        let asked = self.ask(|answer| Input::Repair {
            peer,
            ranges,
            answer,
        })?;
        asked.map_err(LinkError::Failed)
    }

    /// Child index of each peer of the map, in its order.
    pub fn peer_children(&self) -> Vec<usize> {
        self.peers().map(|(_, child)| child).collect()
    }

    fn peers(&self) -> impl Iterator<Item = (Peer, usize)> {
        let peers = self.shape.peers().iter().collect::<Vec<_>>();
        let numbered = peers.into_iter().enumerate();
        numbered.filter_map(|(index, child)| Some((Peer::new(index)?, child)))
    }

    fn ask<T>(&self, input: impl FnOnce(Sender<T>) -> Input) -> Result<T, LinkError> {
        let ended = || LinkError::Ended("its thread is gone".to_owned());
        let (answer, receiver) = mpsc::channel();
        self.inbox.send(input(answer)).map_err(|_| ended())?;
        receiver
            .recv_timeout(ANSWER_TIMEOUT)
            .map_err(|why| match why {
                mpsc::RecvTimeoutError::Disconnected => ended(),
                mpsc::RecvTimeoutError::Timeout => {
                    LinkError::Failed("it is busy with its bricks".to_owned())
                }
            })
    }
}

fn locked<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(|e| e.into_inner())
}
