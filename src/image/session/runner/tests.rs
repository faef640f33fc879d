//! The rounds of marking that the thread asks for, with bricks that write down what they
//! are told.

mod ending;
mod keeping;
mod looking;
mod pieces;
mod pinning;
mod syncing;

use crate::image::dirty_map::Peer;
use crate::image::heal::Unmarked;
use crate::image::replica::brick_set::SetChange;
use crate::image::replica::brick_worker::BrickReport;
use crate::image::replica::marking;
use crate::image::session::state_machine::{Machine, Phase};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use tempfile::TempDir;
use uuid::Uuid;

use crate::image::dirty_map::{Identity, Peers};
use crate::image::local::CopyWatch;
use crate::image::local::error::LocalError;
use crate::image::replica::brick_port::Counter;
use crate::image::replica::holder::Holder;
use crate::image::replica::recording_port::{Change, Journal, Rebalance, RecordingPort};

use super::*;

const SHAPE: Shape = Shape {
    bricks: 3,
    local: 0,
    arbiter: None,
    since: SetChange::NONE,
};
const SIZE: u64 = 8192;

thread_local! {
    /// How often any local file was remembered anew.
    static REBASED: Cell<usize> = const { Cell::new(0) };
}

/// The local file, written to by somebody since the session began or not.
#[derive(Clone, Copy)]
struct Seen {
    untouched: fn() -> bool,
}

impl CopyWatch for Seen {
    fn mark(&self, _children: BrickSet, _stamp: i32) -> Result<(), LocalError> {
        Ok(())
    }

    fn accuses(&self, _child: usize) -> bool {
        false
    }

    fn is_untouched(&self) -> bool {
        (self.untouched)()
    }

    fn rebase(&mut self) -> Result<(), LocalError> {
        REBASED.set(REBASED.get() + 1);
        Ok(())
    }

    fn resize(&mut self, _from: u64, _to: u64) -> Result<(), LocalError> {
        Ok(())
    }

    fn free(&self) -> Result<u64, LocalError> {
        Ok(u64::MAX)
    }

    fn sync(&self) -> Result<(), LocalError> {
        Ok(())
    }
}

/// No mark stands on any brick.
fn unmarked() -> CopyState {
    CopyState {
        gfid: Uuid::from_u128(1),
        size: SIZE,
        pending: vec![0; SHAPE.bricks],
        dirty: 0,
        fenced: false,
    }
}

fn names() -> Names {
    Names {
        volume: "v".into(),
        bricks: ["a:/b", "b:/b", "c:/b"].map(String::from).into(),
    }
}

fn identity() -> Identity {
    Identity {
        gfid: unmarked().gfid,
        size: SIZE,
        extent_size: ExtentSize::new(4096).unwrap(),
        local: names().one(0),
        peers: vec![names().one(1), names().one(2)],
    }
}

/// A brick that is back as it went.
fn rejoined() -> BrickReport {
    BrickReport::Rejoined {
        copies: vec![unmarked()],
        guarded: BTreeSet::from([FileIndex::BASE]),
    }
}

/// A session that has opened with all bricks.
struct Session {
    runner: Runner,
    journal: Journal,
    /// What each brick says of its copy.
    copies: Vec<Arc<Mutex<Option<CopyState>>>>,
    /// Bricks whose locks somebody took away.
    robbed: Vec<Arc<AtomicBool>>,
    /// How far a rebalance is with the files after the first.
    rebalance: Arc<Mutex<Rebalance>>,
    _folder: TempDir,
}

impl Session {
    /// From now on only `answering` answer; no loss was noticed of the others yet.
    fn open(answering: &[usize], local: Seen) -> Self {
        Self::open_over(Layout::new(unmarked().gfid, SIZE, None), answering, local)
    }

    /// The same of an image that may be several files.
    fn open_over(layout: Layout, answering: &[usize], local: Seen) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let me = Holder::here("a");
        let claim = Claim {
            session: me.session,
            read_only: false,
            files: layout.len() as u32,
        };
        let (map, trust) = DirtyMap::open(&folder.path().join("map"), &identity()).unwrap();
        let map = Arc::new(map);
        let copies = vec![vec![Some(unmarked()); SHAPE.bricks]; layout.len()];
        let durability = Arc::<Durability>::default();
        let known = durability.clone();
        let debt = MissedWrites::adopt(
            SHAPE,
            layout.clone(),
            map.clone(),
            trust,
            &copies,
            me.session,
            known,
        )
        .unwrap();
        let file = |file: FileIndex| {
            let machine = Machine::new(SHAPE, SHAPE.all());
            let guarded = file == FileIndex::BASE;
            FileReplica::new(machine, Box::new(local), &copies[file.at()], guarded)
        };
        let files = layout.files().map(file).collect();
        let threads = Scheduler::default();
        let journal = Journal::default();
        let answer = |brick| answering.contains(&brick).then(unmarked);
        let copies: Vec<_> = (0..SHAPE.bricks)
            .map(|brick| Arc::new(Mutex::new(answer(brick))))
            .collect();
        let robbed: Vec<Arc<AtomicBool>> = (0..SHAPE.bricks).map(|_| Arc::default()).collect();
        let rebalance = Arc::<Mutex<Rebalance>>::default();
        let worker = |brick: usize| {
            let port = RecordingPort {
                brick,
                journal: journal.clone(),
                fails: false,
                copy: copies[brick].clone(),
                robbed: robbed[brick].clone(),
                rebalance: rebalance.clone(),
                in_use: false,
                file: FileIndex::BASE,
            };
            Worker::start("brick", Box::new(port), claim, &threads, |_| {}).unwrap()
        };
        let (inbox, _) = channel();
        let runner = Runner {
            files,
            layout: layout.clone(),
            claim,
            volume: VolumeChange::NONE,
            stopped: false,
            shape: SHAPE,
            names: names(),
            workers: (0..SHAPE.bricks).map(worker).collect(),
            gate: Arc::new(ArcSwap::from_pointee(gate_over(
                &layout,
                Some(map),
                durability.clone(),
                &inbox,
            ))),
            inbox,
            extent_size: None,
            fence: Fence::Advisory,
            hot_files: 1,
            read_only: false,
            debt: Some(debt),
            durability,
            sync_failure_noted: false,
            quorum_timeout: Duration::from_secs(60),
            reached: SHAPE.all(),
            quorum_deadline: None,
            looked_at: Duration::ZERO,
            contended: false,
            cooled_at: Duration::ZERO,
            robbed: false,
            threads,
            snapshot: Arc::new(Mutex::new(Snapshot {
                phase: Phase::Unmarked,
                read_only: false,
                fence: Fence::Advisory,
                holder: me,
                copies: Vec::new(),
                write_waiting: false,
                clean_before_writes: None,
                files: None,
                healing: None,
                sync_failed: None,
            })),
            bell: Arc::new(Bell::new(Scheduler::default())),
            on_stop: Box::new(|_| {}),
            on_end: Box::new(|_, _| {}),
            on_return: Box::new(|| {}),
            given_back: false,
        };
        Self {
            runner,
            journal,
            copies,
            robbed,
            rebalance,
            _folder: folder,
        }
    }

    fn brick_was_away(&mut self, brick: usize) {
        self.runner
            .heard(brick, BrickReport::Lost("cut off".into()));
        self.runner.heard(brick, rejoined());
    }

    fn write_wanted(&mut self) {
        self.runner.take(FileIndex::BASE, Event::WriteWanted);
    }

    /// A session whose marks stand on all bricks.
    fn dirty() -> Self {
        let mut session = Self::open(&[0, 1, 2], Seen { untouched: || true });
        session.write_wanted();
        assert_eq!(session.phase(), &Phase::Dirty);
        let stamp = session.debt().current_stamp();
        for copy in &session.copies {
            copy.lock().unwrap().as_mut().unwrap().pending = vec![0, stamp, stamp];
        }
        // As healed: nothing is missing on any copy.
        let map = session.debt().map().clone();
        map.declare_clean(map.geometry().all_peers());
        session.journal.lock().unwrap().clear();
        session
    }

    fn debt(&self) -> &MissedWrites {
        self.runner.debt.as_ref().unwrap()
    }

    fn gate(&self) -> GateState {
        self.runner.gate.load().state()
    }

    fn silence(&self, brick: usize) {
        *self.copies[brick].lock().unwrap() = None;
    }

    /// What somebody made of the counters on a brick.
    fn set_marks(&self, brick: usize, pending: [i32; 3]) {
        self.copies[brick].lock().unwrap().as_mut().unwrap().pending = pending.into();
    }

    fn phase(&self) -> &Phase {
        self.runner.phase(FileIndex::BASE)
    }

    /// The bricks that were changed.
    fn changed(&self) -> BrickSet {
        let journal = self.journal.lock().unwrap();
        journal.iter().map(|(brick, _)| *brick).collect()
    }
}

/// Brick 1 was lost for a while; and brick 2 is, unnoticed. So another session had, for all that
/// is known, the locks of both: of those that answer only the local brick was ours throughout.
#[test]
fn a_brick_that_does_not_answer_the_first_round_does_not_vouch_for_the_local_copy() {
    let mut session = Session::open(
        &[0, 1],
        Seen {
            untouched: || false,
        },
    );
    session.brick_was_away(1);
    session.write_wanted();
    assert_eq!(
        session.phase(),
        &Phase::Stopped(StopReason::ChangedUnderneath)
    );
    assert!(session.changed().is_empty(), "nothing is marked");

    let mut session = Session::open(&[0, 1], Seen { untouched: || true });
    session.brick_was_away(1);
    session.write_wanted();
    assert_eq!(session.phase(), &Phase::Dirty, "nobody wrote");
    assert_eq!(session.changed(), [0, 1].into_iter().collect());
}

#[test]
fn a_quorum_that_was_ours_throughout_and_answers_vouches_for_the_local_copy() {
    let mut session = Session::open(
        &[0, 1, 2],
        Seen {
            untouched: || false,
        },
    );
    session.brick_was_away(1);
    session.write_wanted();
    assert_eq!(session.phase(), &Phase::Dirty);
    assert_eq!(session.changed(), SHAPE.all());
}

#[test]
fn bricks_that_do_not_answer_are_no_quorum_to_mark_on() {
    let mut session = Session::open(&[0], Seen { untouched: || true });
    session.write_wanted();
    assert_eq!(session.phase(), &Phase::Stalled);
    assert!(
        session.changed().is_empty(),
        "nor is the local brick marked"
    );
}

/// The round is a healer's or a look's wish, and no write waits for it.
#[test]
fn a_round_that_loses_every_brick_shuts_the_gate() {
    let mut session = Session::dirty();
    assert_eq!(session.gate(), GateState::Open);
    (0..3).for_each(|brick| session.silence(brick));
    session.runner.mark_again();
    assert_eq!(session.phase(), &Phase::Stalled);
    assert_eq!(session.gate(), GateState::Hold);
    assert!(session.runner.quorum_deadline.is_some(), "and not for ever");
    assert!(session.debt().map().record().unguarded);
}

#[test]
fn a_data_lock_that_a_client_keeps_costs_a_marked_brick_none_of_its_locks() {
    let mut session = Session::dirty();
    let busy = |brick| (brick, PortError::Refused("another client".into()));
    let round = marking::MarkingRound {
        busy: vec![busy(0), busy(1), busy(2)],
        ..marking::MarkingRound::default()
    };
    session.runner.conclude(FileIndex::BASE, round);
    assert_eq!(session.runner.held(), SHAPE.all());
    assert_eq!(session.phase(), &Phase::Dirty);
    assert_eq!(session.gate(), GateState::Open);
}
