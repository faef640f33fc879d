//! The rounds of marking that the thread asks for, with bricks that write down what they
//! are told.

use std::sync::mpsc::channel;

use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::image::dirty::Identity;
use crate::image::error::LocalError;
use crate::image::holder::Holder;
use crate::image::locking::Claim;
use crate::image::recording_port::{Journal, RecordingPort};

const SHAPE: Shape = Shape {
    bricks: 3,
    local: 0,
    arbiter: None,
};
const SIZE: u64 = 8192;

/// The local file, written to by somebody since the session began or not.
struct Seen {
    untouched: bool,
}

impl Watch for Seen {
    fn mark(&self, _children: BrickSet, _stamp: i32) -> Result<(), LocalError> {
        Ok(())
    }

    fn accuses(&self, _child: usize) -> bool {
        false
    }

    fn is_untouched(&self) -> bool {
        self.untouched
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

/// A session that has opened with all bricks.
struct Session {
    runner: Runner,
    journal: Journal,
    _folder: TempDir,
}

impl Session {
    /// From now on only `answering` answer; no loss was noticed of the others yet.
    fn open(answering: &[usize], local: Seen) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let names = Names {
            volume: "v".into(),
            bricks: ["a:/b", "b:/b", "c:/b"].map(String::from).into(),
        };
        let me = Holder::here("a");
        let claim = Claim {
            session: me.session,
            read_only: false,
        };
        let identity = Identity {
            gfid: unmarked().gfid,
            size: SIZE,
            extent_size: ExtentSize::new(4096).unwrap(),
            local: names.one(0),
            peers: vec![names.one(1), names.one(2)],
        };
        let (map, trust) = DirtyMap::open(&folder.path().join("map"), &identity).unwrap();
        let map = Arc::new(map);
        let copies = vec![Some(unmarked()); SHAPE.bricks];
        let debt = Debt::adopt(SHAPE, map.clone(), trust, &copies, me.session).unwrap();
        let threads = Threads::default();
        let journal = Journal::default();
        let worker = |brick| {
            let port = RecordingPort {
                brick,
                journal: journal.clone(),
                fails: false,
                copy: answering.contains(&brick).then(unmarked),
            };
            Worker::start("brick", Box::new(port), claim, &threads, |_| {}).unwrap()
        };
        let (inbox, _) = channel();
        let runner = Runner {
            machine: Machine::new(SHAPE, SHAPE.all()),
            shape: SHAPE,
            names,
            workers: (0..SHAPE.bricks).map(worker).collect(),
            gate: Arc::new(ArcSwap::from_pointee(gate_over(Some(map), &inbox))),
            inbox,
            extent_size: None,
            fence: Fence::Advisory,
            read_only: false,
            local: Box::new(local),
            debt: Some(debt),
            quorum_timeout: Duration::from_secs(60),
            reached: SHAPE.all(),
            quorum_deadline: None,
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
            })),
            on_stop: Box::new(|_| {}),
            on_end: Box::new(|_, _| {}),
        };
        Self {
            runner,
            journal,
            _folder: folder,
        }
    }

    fn brick_was_away(&mut self, brick: usize) {
        self.runner.heard(brick, Report::Lost("cut off".into()));
        self.runner.heard(brick, Report::Rejoined(unmarked()));
    }

    fn write_wanted(&mut self) {
        self.runner.take(Event::WriteWanted);
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
    let mut session = Session::open(&[0, 1], Seen { untouched: false });
    session.brick_was_away(1);
    session.write_wanted();
    assert_eq!(
        session.phase(),
        &Phase::Stopped(StopReason::ChangedUnderneath)
    );
    assert!(session.changed().is_empty(), "nothing is marked");

    let mut session = Session::open(&[0, 1], Seen { untouched: true });
    session.brick_was_away(1);
    session.write_wanted();
    assert_eq!(session.phase(), &Phase::Dirty, "nobody wrote");
    assert_eq!(session.changed(), [0, 1].into_iter().collect());
}

#[test]
fn a_quorum_that_was_ours_throughout_and_answers_vouches_for_the_local_copy() {
    let mut session = Session::open(&[0, 1, 2], Seen { untouched: false });
    session.brick_was_away(1);
    session.write_wanted();
    assert_eq!(session.phase(), &Phase::Dirty);
    assert_eq!(session.changed(), SHAPE.all());
}

#[test]
fn bricks_that_do_not_answer_are_no_quorum_to_mark_on() {
    let mut session = Session::open(&[0], Seen { untouched: true });
    session.write_wanted();
    assert_eq!(session.phase(), &Phase::Stalled);
    assert!(
        session.changed().is_empty(),
        "nor is the local brick marked"
    );
}
