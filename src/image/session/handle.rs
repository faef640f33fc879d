//! A session as other threads see it: its state for the status, and what a healer or
//! an operator asks of it.
//!
//! Cheap to clone; outlives the session harmlessly. The answers are the session
//! thread's ([`super::runner`]); nothing is decided here.
//!
//! * [`reports`]: what a healer tells, and is told.

mod reports;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::image::dirty_map::{DirtyMap, Peer};
use crate::image::heal::{LinkError, Unmarked};
use crate::image::replica::brick_set::{Shape, VolumeChange};
use crate::image::scheduler::Scheduler;

use super::bell::Bell;
use super::input::Input;
use super::snapshot::{Behind, Healing, Lag, Snapshot};
use super::state_machine::Phase;
use super::write_gate::WriteGate;
use reports::Heard;

/// How long an answer of the session's thread is waited for: longer than it waits for
/// other clients' locks.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the debt is not looked at again when a healer reports...
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// ...and how many times as long as the look took, for it reads the whole map.
const LOOK_PAUSE_FACTOR: u32 = 100;

/// See the module.
#[derive(Clone)]
pub struct SessionHandle {
    shape: Shape,
    inbox: Sender<Input>,
    gate: Arc<ArcSwap<WriteGate>>,
    snapshot: Arc<Mutex<Snapshot>>,
    threads: Scheduler,
    /// Healers are to end, for the image is being resized.
    resizing: Arc<AtomicBool>,
    healer: Arc<Mutex<Heard>>,
    /// Rung when a healer might be told something new.
    bell: Arc<Bell>,
    watch: Arc<Mutex<SessionSignal>>,
}

/// As long as it lives, no healer works for the session.
#[must_use]
pub struct SentAway(Arc<AtomicBool>);

impl Drop for SentAway {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// What was seen of the peers' debts.
struct SessionSignal {
    /// One per peer of the map.
    lags: Vec<Lag>,
    /// A healer's report is no reason to look before.
    next_look: Instant,
    /// Nor to have the marks stored again; by the clock of the session's threads.
    next_remark: Duration,
}

impl SessionHandle {
    pub(super) fn new(
        shape: Shape,
        inbox: Sender<Input>,
        gate: Arc<ArcSwap<WriteGate>>,
        snapshot: Arc<Mutex<Snapshot>>,
        threads: Scheduler,
        bell: Arc<Bell>,
    ) -> Self {
        let now = Instant::now();
        let handle = Self {
            shape,
            inbox,
            gate,
            snapshot,
            threads,
            resizing: Arc::default(),
            healer: Arc::default(),
            bell,
            watch: Arc::new(Mutex::new(SessionSignal {
                lags: shape.peers().iter().map(|_| Lag::new(now)).collect(),
                next_look: now,
                next_remark: Duration::ZERO,
            })),
        };
        // Whether there is a debt of old is known only before the first write.
        if let Some(map) = handle.map() {
            handle.look(&map);
        }
        handle
    }

    /// What the peers miss; absent in a read-only session.
    fn map(&self) -> Option<Arc<DirtyMap>> {
        self.gate.load().map().cloned()
    }

    /// Healers are told that the session is over, for as long as the answer lives.
    pub(super) fn send_healers_away(&self) -> SentAway {
        self.resizing.store(true, Ordering::SeqCst);
        self.bell.ring();
        SentAway(self.resizing.clone())
    }

    /// Is it no time for healers to begin?
    pub fn is_resizing(&self) -> bool {
        self.resizing.load(Ordering::SeqCst)
    }

    /// The state as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = locked(&self.snapshot).clone();
        let gate = self.gate.load();
        snapshot.write_waiting = gate.is_wanted();
        snapshot.sync_failed = gate.durability().failure().cloned();
        // Of one that has stopped nobody heals anything, and its map may be wrong.
        if !matches!(snapshot.phase, Phase::Stopped(_)) {
            snapshot.healing = self.map().map(|map| self.healing(&map));
        }
        snapshot
    }

    fn healing(&self, map: &DirtyMap) -> Healing {
        let healer = locked(&self.healer).alive();
        Healing {
            behind: self.look(map),
            extent_size: map.geometry().extent_size().bytes(),
            healer,
        }
    }

    /// What each peer misses now; it is noted.
    fn look(&self, map: &DirtyMap) -> Vec<Behind> {
        let suspect = map.record().suspect;
        let clean_before = locked(&self.snapshot).clean_before_writes;
        let begin = Instant::now();
        let mut watch = locked(&self.watch);
        let mut behind = Vec::new();
        for ((peer, child), lag) in self.peers().zip(&mut watch.lags) {
            // What is clean when the look comes by was so, or sent since, when it began.
            let at = Instant::now();
            let bytes = map.dirty_bytes(peer);
            lag.note(at, bytes);
            if let Some((at, clean)) = clean_before
                && clean.contains(child)
            {
                lag.note_clean(at);
            }
            behind.push(Behind {
                child,
                extents: bytes.div_ceil(map.geometry().extent_size().bytes()),
                bytes,
                suspect: suspect.contains(peer),
                lag: lag.at(at),
            });
        }
        let end = Instant::now();
        watch.next_look = end + LOOK_PAUSE.max((end - begin) * LOOK_PAUSE_FACTOR);
        behind
    }

    /// The volume has changed since the session was opened on it, in this way.
    pub fn volume_changed(&self, change: VolumeChange) {
        // To a session that is over it makes no difference.
        let _ = self.inbox.send(Input::VolumeChanged(change));
    }

    /// Removes the marks against every peer that misses nothing, unless the healer is
    /// at work for another one.
    ///
    /// # Errors
    /// [`LinkError::Ended`], [`LinkError::Failed`].
    pub fn unmark(&self) -> Result<Unmarked, LinkError> {
        let report = locked(&self.healer).last();
        let stuck = report.map(|report| self.stuck(&report));
        let despite = stuck.unwrap_or_default();
        self.ask(|answer| Input::Unmark { despite, answer })
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
        self.threads
            .receive(&receiver, Some(ANSWER_TIMEOUT))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::dirty_map::{ExtentSize, Identity, Peers};
    use crate::image::replica::brick_port::Fence;
    use crate::image::replica::brick_set::SetChange;
    use crate::image::replica::holder::Holder;

    /// A session of two copies over a clean map of two extents; nobody answers.
    pub(super) fn session(dirty: u64) -> (tempfile::TempDir, Arc<DirtyMap>, SessionHandle) {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity {
            gfid: uuid::Uuid::from_u128(1),
            size: 4096 + 512,
            extent_size: ExtentSize::new(4096).unwrap(),
            local: "a:/b".into(),
            peers: vec!["b:/b".into()],
        };
        let (map, _) = DirtyMap::open(&directory.path().join("map"), &identity).unwrap();
        let map = Arc::new(map);
        map.declare_clean(Peers::first(1));
        map.mark_dirty(Peers::first(1), 4096, dirty);
        let shape = Shape {
            bricks: 2,
            local: 0,
            arbiter: None,
            since: SetChange::NONE,
        };
        let snapshot = Snapshot {
            phase: Phase::Unmarked,
            read_only: false,
            fence: Fence::Advisory,
            holder: Holder::here("a"),
            copies: Vec::new(),
            write_waiting: false,
            clean_before_writes: None,
            files: None,
            healing: None,
            sync_failed: None,
        };
        let handle = SessionHandle::new(
            shape,
            mpsc::channel().0,
            Arc::new(ArcSwap::from_pointee(WriteGate::new(
                Some(map.clone()),
                || {},
            ))),
            Arc::new(Mutex::new(snapshot)),
            Scheduler::default(),
            Arc::new(Bell::new(Scheduler::default())),
        );
        (directory, map, handle)
    }

    fn behind(handle: &SessionHandle) -> Behind {
        handle.snapshot().healing.unwrap().behind[0]
    }

    #[test]
    fn the_debt_is_in_bytes_of_the_image_and_in_extents() {
        let (_directory, map, handle) = session(0);
        assert_eq!((behind(&handle).bytes, behind(&handle).extents), (0, 0));
        map.mark_dirty(Peers::first(1), 4096, 1);
        assert_eq!((behind(&handle).bytes, behind(&handle).extents), (512, 1));
        map.mark_dirty(Peers::first(1), 0, 1);
        assert_eq!((behind(&handle).bytes, behind(&handle).extents), (4608, 2));
    }

    #[test]
    fn only_a_debt_older_than_the_session_is_inherited() {
        let (_directory, map, handle) = session(0);
        map.mark_dirty(Peers::first(1), 0, 1);
        assert!(!behind(&handle).lag.inherited);
        let (_directory, map, handle) = session(1);
        assert!(behind(&handle).lag.inherited);
        map.declare_clean(Peers::first(1));
        handle.snapshot();
        map.mark_dirty(Peers::first(1), 0, 1);
        assert!(!behind(&handle).lag.inherited, "it was clean in between");
    }
}
