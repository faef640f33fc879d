//! An image of several files: each is marked, guarded and unmarked by itself.

use crate::image::layout::Pieces;
use crate::image::replica::brick_worker::BrickReport;
use crate::image::replica::holder::Holder;

use super::*;

const SECOND: FileIndex = FileIndex(1);

/// Two files, in two extents.
pub(super) fn open() -> Session {
    let pieces = Pieces {
        size: SIZE / 2,
        gfids: vec![Uuid::from_u128(2)],
    };
    let layout = Layout::new(unmarked().gfid, SIZE, Some(&pieces));
    let session = Session::open_over(layout, &[0, 1, 2], Seen { untouched: || true });
    let map = session.debt().map().clone();
    map.declare_clean(map.geometry().all_peers());
    session
}

/// The second file is marked on all bricks, and they say so.
pub(super) fn open_marked() -> Session {
    let mut session = open();
    session.runner.take(SECOND, Event::WriteWanted);
    let stamp = session.debt().current_stamp();
    (0..3).for_each(|brick| session.set_marks(brick, [0, stamp, stamp]));
    session
}

fn changes_of(session: &Session, brick: usize) -> Vec<Change> {
    let journal = session.journal.lock().unwrap();
    let changes = journal.iter().filter(|(of, _)| *of == brick);
    changes.map(|(_, change)| change.clone()).collect()
}

#[test]
fn a_file_is_guarded_before_it_is_marked_and_the_others_stay_as_they_are() {
    let session = open_marked();
    for brick in 0..3 {
        let changes = changes_of(&session, brick);
        let [
            Change::Guarded(SECOND, true),
            Change::Add(_),
            Change::Durable,
        ] = changes.as_slice()
        else {
            panic!("{changes:?}");
        };
    }
    assert_eq!(session.runner.phase(SECOND), &Phase::Dirty);
    assert_eq!(session.phase(), &Phase::Unmarked);
    assert_eq!(session.gate(), GateState::Hold, "of the first file");
}

#[test]
fn a_file_without_marks_is_left_to_heals_again_but_not_one_whose_marks_stay() {
    let mut session = open_marked();
    session.journal.lock().unwrap().clear();
    let peer = Peer::new(1).unwrap();
    session.debt().map().mark_dirty(peer.into(), SIZE / 2, 1);
    let unmarked = session.runner.unmark_file(SECOND, BrickSet::only(2));
    assert!(matches!(unmarked, Unmarked::Some { .. }), "{unmarked:?}");
    let given_back = Change::Guarded(SECOND, false);
    assert!(
        !changes_of(&session, 0).contains(&given_back),
        "one peer is behind"
    );

    let mut session = open_marked();
    session.journal.lock().unwrap().clear();
    assert_eq!(session.runner.unmark(BrickSet::EMPTY), Unmarked::All);
    for brick in 0..3 {
        let changes = changes_of(&session, brick);
        assert_eq!(changes.last(), Some(&given_back), "{changes:?}");
    }
    assert_eq!(session.runner.phase(SECOND), &Phase::Unmarked);
}

#[test]
fn marks_that_can_go_at_the_end_go_from_one_file_though_another_is_behind() {
    let mut session = open_marked();
    session.runner.take(FileIndex::BASE, Event::WriteWanted);
    let all = session.debt().map().geometry().all_peers();
    session.debt().map().mark_dirty(all, 0, 1);
    assert_eq!(session.runner.settle(), Ending::Behind);
    assert_eq!(session.runner.phase(SECOND), &Phase::Unmarked);
    assert_eq!(
        session.phase(),
        &Phase::Dirty,
        "every peer misses some of it"
    );
}

#[test]
fn a_quiet_file_loses_its_marks_at_the_second_look() {
    let mut session = open_marked();
    session.runner.hot_files = 9;
    session.runner.cool_down();
    assert_eq!(
        session.runner.phase(SECOND),
        &Phase::Dirty,
        "quiet for a moment"
    );
    session.runner.cool_down();
    assert_eq!(session.runner.phase(SECOND), &Phase::Unmarked);
    let mut session = open_marked();
    session.runner.hot_files = 0;
    session.runner.cool_down();
    assert_eq!(
        session.runner.phase(SECOND),
        &Phase::Unmarked,
        "there are too many"
    );
}

#[test]
fn the_time_that_the_session_sets_on_the_first_file_is_no_write_of_somebody_else_s() {
    let rebased = |untouched| {
        let mut session = open_marked();
        session.runner.files[0].local = Box::new(Seen { untouched });
        session.runner.hot_files = 0;
        let before = REBASED.get();
        session.runner.cool_down();
        assert_eq!(session.runner.phase(SECOND), &Phase::Unmarked);
        REBASED.get() - before
    };
    assert_eq!(rebased(|| true), 2, "the second file lost its marks");
    assert_eq!(rebased(|| false), 1, "what somebody wrote is still seen");
}

#[test]
fn marks_of_one_file_keep_another_session_s_lock_from_stopping_the_image() {
    let taken = |accuses: &[usize]| BrickReport::TakenByOther {
        holder: another_holder(),
        accuses: Some(accuses.iter().copied().collect()),
    };
    let cut_off = |mut session: Session| {
        for brick in [1, 2] {
            session
                .runner
                .heard(brick, BrickReport::Lost("gone".into()));
        }
        session
    };
    let stopped = Phase::Stopped(StopReason::LockTaken { on: 1 });

    let mut session = cut_off(open_marked());
    session.runner.heard(1, taken(&[1, 2]));
    assert_eq!(session.runner.phase(SECOND), &Phase::Dirty);
    assert_eq!(session.phase(), &Phase::Unmarked);
    session.runner.heard(1, taken(&[0]));
    assert_eq!(session.runner.phase(SECOND), &stopped, "it was promoted");

    let mut session = cut_off(open());
    session.runner.heard(1, taken(&[]));
    assert_eq!(session.phase(), &stopped, "nothing is marked");
}

fn another_holder() -> Holder {
    Holder {
        host: "elsewhere".into(),
        pid: 1,
        since: std::time::UNIX_EPOCH,
        session: Uuid::from_u128(99),
    }
}

#[test]
fn what_stops_one_file_stops_the_image() {
    let mut session = open_marked();
    session.runner.take(SECOND, Event::LocalAccused { by: 1 });
    let stopped = Phase::Stopped(StopReason::CopyAccused { by: 1 });
    assert_eq!(session.phase(), &stopped);
    assert_eq!(session.gate(), GateState::FailAll);
}
