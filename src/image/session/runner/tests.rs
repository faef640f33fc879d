//! The rounds of marking that the thread asks for, with bricks that write down what they
//! are told.

use crate::image::dirty_map::Peer;
use crate::image::heal::Unmarked;
use crate::image::replica::brick_set::SetChange;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use tempfile::TempDir;
use uuid::Uuid;

use crate::image::dirty_map::{Identity, Peers};
use crate::image::local::error::LocalError;
use crate::image::replica::brick_port::Counter;
use crate::image::replica::holder::Holder;
use crate::image::replica::recording_port::{Change, Journal, RecordingPort};
use crate::image::replica::session_lock::Claim;

use super::*;

const SHAPE: Shape = Shape {
    bricks: 3,
    local: 0,
    arbiter: None,
    since: SetChange::NONE,
};
const SIZE: u64 = 8192;

/// The local file, written to by somebody since the session began or not.
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

/// A session that has opened with all bricks.
struct Session {
    runner: Runner,
    journal: Journal,
    /// What each brick says of its copy.
    copies: Vec<Arc<Mutex<Option<CopyState>>>>,
    /// Bricks whose locks somebody took away.
    robbed: Vec<Arc<AtomicBool>>,
    _folder: TempDir,
}

impl Session {
    /// From now on only `answering` answer; no loss was noticed of the others yet.
    fn open(answering: &[usize], local: Seen) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let me = Holder::here("a");
        let claim = Claim {
            session: me.session,
            read_only: false,
        };
        let (map, trust) = DirtyMap::open(&folder.path().join("map"), &identity()).unwrap();
        let map = Arc::new(map);
        let copies = vec![Some(unmarked()); SHAPE.bricks];
        let durability = Arc::<Durability>::default();
        let known = durability.clone();
        let debt =
            MissedWrites::adopt(SHAPE, map.clone(), trust, &copies, me.session, known).unwrap();
        let threads = Threads::default();
        let journal = Journal::default();
        let answer = |brick| answering.contains(&brick).then(unmarked);
        let copies: Vec<_> = (0..SHAPE.bricks)
            .map(|brick| Arc::new(Mutex::new(answer(brick))))
            .collect();
        let robbed: Vec<Arc<AtomicBool>> = (0..SHAPE.bricks).map(|_| Arc::default()).collect();
        let worker = |brick: usize| {
            let port = RecordingPort {
                brick,
                journal: journal.clone(),
                fails: false,
                copy: copies[brick].clone(),
                robbed: robbed[brick].clone(),
                in_use: false,
            };
            Worker::start("brick", Box::new(port), claim, &threads, |_| {}).unwrap()
        };
        let (inbox, _) = channel();
        let runner = Runner {
            machine: Machine::new(SHAPE, SHAPE.all()),
            shape: SHAPE,
            names: names(),
            workers: (0..SHAPE.bricks).map(worker).collect(),
            gate: Arc::new(ArcSwap::from_pointee(gate_over(
                Some(map),
                durability.clone(),
                &inbox,
            ))),
            inbox,
            extent_size: None,
            fence: Fence::Advisory,
            read_only: false,
            local: Box::new(local),
            debt: Some(debt),
            durability,
            sync_failure_noted: false,
            quorum_timeout: Duration::from_secs(60),
            reached: SHAPE.all(),
            quorum_deadline: None,
            looked_at: Duration::ZERO,
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
                healing: None,
                sync_failed: None,
            })),
            bell: Arc::new(Bell::new(Threads::default())),
            on_stop: Box::new(|_| {}),
            on_end: Box::new(|_, _| {}),
            given_back: false,
        };
        Self {
            runner,
            journal,
            copies,
            robbed,
            _folder: folder,
        }
    }

    fn brick_was_away(&mut self, brick: usize) {
        self.runner
            .heard(brick, BrickReport::Lost("cut off".into()));
        self.runner.heard(brick, BrickReport::Rejoined(unmarked()));
    }

    fn write_wanted(&mut self) {
        self.runner.take(Event::WriteWanted);
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
        self.runner.machine.phase()
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
    session.runner.take(Event::MarkAgain);
    assert_eq!(session.phase(), &Phase::Stalled);
    assert_eq!(session.gate(), GateState::Hold);
    assert!(session.runner.quorum_deadline.is_some(), "and not for ever");
    assert!(session.debt().map().record().unguarded);
}

#[test]
fn a_data_lock_that_a_client_keeps_costs_a_marked_brick_none_of_its_locks() {
    let mut session = Session::dirty();
    let busy = |brick| (brick, PortError::Refused("another client".into()));
    session.runner.conclude(marking::MarkingRound {
        busy: vec![busy(0), busy(1), busy(2)],
        ..marking::MarkingRound::default()
    });
    assert_eq!(session.runner.machine.held(), SHAPE.all());
    assert_eq!(session.phase(), &Phase::Dirty);
    assert_eq!(session.gate(), GateState::Open);
}

#[test]
fn a_brick_whose_locks_were_taken_away_is_lost_and_nothing_is_believed_to_be_equal() {
    let mut session = Session::dirty();
    for robbed in &session.robbed {
        robbed.store(true, Ordering::SeqCst);
    }
    session.runner.look();
    assert_eq!(session.gate(), GateState::Hold);
    assert!(session.runner.machine.held().is_empty());
    let all = SHAPE.peers();
    assert_eq!(session.debt().behind(), all, "all of it is compared");
    assert_eq!(session.debt().map().record().suspect, Peers::first(2));
}

#[test]
fn one_brick_s_locks_taken_away_leave_the_others_at_work() {
    let mut session = Session::dirty();
    session.robbed[2].store(true, Ordering::SeqCst);
    session.runner.look();
    assert_eq!(session.gate(), GateState::Open);
    assert_eq!(
        session.runner.machine.held(),
        SHAPE.all().without(BrickSet::only(2))
    );
}

#[test]
fn marks_that_somebody_removed_are_stored_again_before_the_guest_writes_on() {
    let mut session = Session::dirty();
    let stamp = session.debt().current_stamp();
    (0..3).for_each(|brick| session.set_marks(brick, [0, 0, 0]));
    session.runner.look();
    assert_eq!(session.phase(), &Phase::Dirty);
    assert_eq!(session.gate(), GateState::Open);
    let journal = session.journal.lock().unwrap();
    let both = vec![(Counter::Pending(1), stamp), (Counter::Pending(2), stamp)];
    for brick in 0..3 {
        assert!(
            journal.contains(&(brick, Change::Add(both.clone()))),
            "{journal:?}"
        );
    }
    drop(journal);
    assert_eq!(
        session.debt().behind(),
        SHAPE.peers(),
        "somebody healed underneath"
    );
}

#[test]
fn what_a_client_added_to_a_mark_is_noticed_and_compared() {
    let mut session = Session::dirty();
    let stamp = session.debt().current_stamp();
    session.set_marks(0, [0, stamp, stamp + 1]);
    session.runner.look();
    assert_eq!(session.debt().behind(), BrickSet::only(2));
    assert_eq!(session.gate(), GateState::Open);
}

#[test]
fn a_look_that_finds_the_local_copy_accused_stops_the_session() {
    let mut session = Session::dirty();
    let stamp = session.debt().current_stamp();
    session.set_marks(1, [1, stamp, stamp]);
    session.runner.look();
    let by = 1;
    assert_eq!(
        session.phase(),
        &Phase::Stopped(StopReason::CopyAccused { by })
    );
}

#[test]
fn a_session_whose_marks_are_as_they_should_be_changes_nothing_when_it_looks() {
    let mut session = Session::dirty();
    session.runner.look();
    assert!(session.changed().is_empty());
    assert!(session.debt().behind().is_empty());
}

#[test]
fn a_thread_that_panics_keeps_the_locks_until_it_is_closed_and_then_gives_the_image_back() {
    let Session {
        mut runner,
        journal,
        _folder: folder,
        ..
    } = Session::open(
        &[0, 1, 2],
        Seen {
            untouched: || panic!("a fault"),
        },
    );
    runner.fence = Fence::Mandatory;
    let (stopped, why) = channel();
    runner.on_stop = Box::new(move |reason| stopped.send(reason).unwrap());
    let gate = runner.gate.load_full();
    gate.set(GateState::Open);
    let (inbox, events) = channel();
    let thread = std::thread::spawn(move || runner.run(&events));

    inbox
        .send(Input::Brick(1, BrickReport::Rejoined(unmarked())))
        .unwrap();
    assert_eq!(why.recv(), Ok(StopReason::Panicked));
    assert_eq!(gate.state(), GateState::Hold, "no write without a guard");
    let (answer, unmarked) = channel();
    inbox
        .send(Input::Unmark {
            despite: BrickSet::EMPTY,
            answer,
        })
        .unwrap();
    assert!(unmarked.recv().is_err(), "nobody is there to answer");
    assert!(
        journal.lock().unwrap().is_empty(),
        "the device is not drained yet"
    );

    inbox.send(Input::Close).unwrap();
    assert_eq!(thread.join().unwrap(), Ending::Behind);
    let lifted = [0, 1, 2].map(|brick| (brick, Change::Lifted));
    assert_eq!(*journal.lock().unwrap(), lifted);
    let map = folder.path().join("map");
    let header = DirtyMap::attach(&map).unwrap().header().clone();
    assert!(!header.clean, "what is in it is not vouched for");
    // The session's role on it is free.
    DirtyMap::open(&map, &identity()).unwrap();
}

#[test]
fn a_session_whose_thread_never_ran_gives_the_image_back() {
    let mut session = Session::open(&[0, 1, 2], Seen { untouched: || true });
    session.runner.fence = Fence::Mandatory;
    drop(session.runner);
    let lifted = [0, 1, 2].map(|brick| (brick, Change::Lifted));
    assert_eq!(*session.journal.lock().unwrap(), lifted);
}

#[test]
fn after_a_sync_that_failed_no_mark_changes_and_the_copies_do_not_count_as_equal() {
    let mut session = Session::open(&[0, 1, 2], Seen { untouched: || true });
    let runner = &mut session.runner;
    runner.durability.fail_with("the guest's flush", libc::EIO);
    runner.note_sync_failure();
    assert!(runner.debt.as_ref().unwrap().map().record().unsynced);
    let vouched = |why: &str| why.contains("cannot be vouched for");
    assert!(matches!(runner.unmark(BrickSet::EMPTY), Unmarked::NotYet { why } if vouched(&why)));
    assert!(matches!(runner.settle_held(None), Err(why) if vouched(&why)));
    assert_eq!(runner.settle(), Ending::Behind);
    session.write_wanted();
    assert_eq!(session.phase(), &Phase::Stalled);
    assert!(session.changed().is_empty(), "it vouches for no mark");
}

#[test]
fn a_session_that_begins_to_write_is_looked_at_within_a_second() {
    let mut session = Session::open(&[0, 1, 2], Seen { untouched: || true });
    session.runner.look();
    let clean = session.runner.next_due().unwrap();
    session.write_wanted();
    let dirty = session.runner.next_due().unwrap();
    assert_eq!(dirty - session.runner.looked_at, Duration::from_secs(1));
    assert!(dirty < clean);
}

#[test]
fn a_copy_that_misses_something_keeps_its_old_time_at_the_end() {
    let mut session = Session::open(&[0, 1, 2], Seen { untouched: || true });
    session.write_wanted();
    let behind = Peer::new(1).unwrap().into();
    let debt = session.runner.debt.as_mut().unwrap();
    debt.distrust(behind).unwrap();
    assert_eq!(session.runner.settle(), Ending::Behind);
    let journal = session.journal.lock().unwrap();
    let timed = |(_, change): &&(usize, Change)| matches!(change, Change::Times(_));
    let timed: BrickSet = journal
        .iter()
        .filter(timed)
        .map(|(brick, _)| *brick)
        .collect();
    assert_eq!(timed, [0, 1].into_iter().collect());
}

#[test]
fn who_waits_for_news_of_a_session_hears_that_marks_stand_and_that_it_is_over() {
    let Session {
        runner, _folder, ..
    } = Session::open(&[0, 1, 2], Seen { untouched: || true });
    let (bell, snapshot) = (runner.bell.clone(), runner.snapshot.clone());
    let (inbox, events) = channel();
    let thread = std::thread::spawn(move || runner.run(&events));
    let hears = |news: &dyn Fn() -> bool| {
        let long = Duration::from_secs(20);
        let begin = Instant::now();
        assert!(bell.wait(long, || news().then_some(())).is_some());
        assert!(begin.elapsed() < long / 2);
    };
    let phase = || snapshot.lock().unwrap().phase.clone();
    inbox.send(Input::WriteWanted).unwrap();
    hears(&|| phase() == Phase::Dirty);
    inbox.send(Input::Close).unwrap();
    hears(&|| bell.is_over());
    thread.join().unwrap();
}
