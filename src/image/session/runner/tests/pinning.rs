//! The volume changes while the image is open.

use crate::image::replica::brick_set::VolumeChange;
use crate::image::session::resize::Insist;

use super::pieces::{open, open_marked};
use super::*;

const SECOND: FileIndex = FileIndex(1);

/// Another replica set came.
fn spread() -> VolumeChange {
    VolumeChange {
        spreads: true,
        ..VolumeChange::NONE
    }
}

/// A fourth copy came.
fn copied() -> VolumeChange {
    VolumeChange {
        set: SetChange {
            came: 1,
            gone: BrickSet::EMPTY,
        },
        newcomers: vec!["trusted.afr.v-client-3".to_owned()],
        spreads: false,
    }
}

fn changes(session: &Session) -> Vec<(usize, Change)> {
    std::mem::take(&mut session.journal.lock().unwrap())
}

#[test]
fn all_files_are_kept_where_they_are_to_the_end_when_a_replica_set_or_a_copy_came() {
    for change in [spread(), copied()] {
        let mut session = open();
        session.runner.volume_changed(change.clone());
        let changed = changes(&session);
        for brick in 0..3 {
            let guarded = (brick, Change::Guarded(SECOND, true));
            assert!(changed.contains(&guarded), "{changed:?}");
        }
        assert!(!session.runner.file(SECOND).is_hot(), "nothing to look at");
        // It is written to, and its marks go again: the locks stay.
        session.runner.take(SECOND, Event::WriteWanted);
        assert_eq!(session.runner.phase(SECOND), &Phase::Dirty);
        let stamp = session.debt().current_stamp();
        (0..3).for_each(|brick| session.set_marks(brick, [0, stamp, stamp]));
        assert_eq!(session.runner.unmark(BrickSet::EMPTY), Unmarked::All);
        let given_back = |(_, change): &(usize, Change)| change == &Change::Guarded(SECOND, false);
        assert!(!changes(&session).iter().any(given_back));
        // Told again, there is nothing left to do.
        session.runner.volume_changed(change);
        assert_eq!(changes(&session), []);
    }
}

#[test]
fn a_volume_that_stays_as_it_is_or_an_image_that_is_one_file_pins_nothing() {
    let mut whole = Session::open(&[0, 1, 2], Seen { untouched: || true });
    for change in [spread(), copied()] {
        whole.runner.volume_changed(change);
    }
    let mut session = open();
    let replaced = VolumeChange {
        newcomers: Vec::new(),
        ..copied()
    };
    session.runner.volume_changed(replaced);
    for session in [whole, session] {
        assert_eq!(changes(&session), []);
        assert_eq!(session.phase(), &Phase::Unmarked);
    }
}

#[test]
fn a_copy_that_came_is_accused_once_by_each_brick_and_by_one_that_was_away_when_it_is_back() {
    let mut session = open();
    let accused = |brick| (brick, Change::Newcomers(copied().newcomers));
    session.runner.heard(2, BrickReport::Lost("gone".into()));
    session.runner.volume_changed(copied());
    let changed = changes(&session);
    assert!(
        changed.contains(&accused(0)) && changed.contains(&accused(1)),
        "{changed:?}"
    );
    session.runner.volume_changed(copied());
    assert_eq!(changes(&session), []);
    let back = BrickReport::Rejoined {
        copies: vec![unmarked(); 2],
        guarded: [FileIndex::BASE, SECOND].into(),
    };
    session.runner.heard(2, back);
    assert!(changes(&session).contains(&accused(2)));
}

#[test]
fn a_shard_that_a_rebalance_has_or_had_ends_the_session() {
    let mut session = open_marked();
    *session.rebalance.lock().unwrap() = Rebalance::Works;
    // The second file is ours; it was written to before.
    session.runner.volume_changed(spread());
    assert_eq!(session.runner.phase(SECOND), &Phase::Dirty);

    for rebalance in [Rebalance::Works, Rebalance::Over] {
        let mut session = open();
        *session.rebalance.lock().unwrap() = rebalance;
        session.runner.volume_changed(spread());
        let stopped = Phase::Stopped(StopReason::ShardMoved(SECOND));
        assert_eq!(session.phase(), &stopped);
        assert_eq!(session.runner.phase(SECOND), &stopped);
        assert_eq!(session.gate(), GateState::FailAll);
    }
}

#[test]
fn an_image_in_shards_does_not_grow_when_the_volume_has_changed() {
    let mut session = open();
    session.runner.volume_changed(copied());
    let nowhere = Box::new(|_| panic!("no shard is made"));
    let grown = session.runner.grow(2 * SIZE, Insist::default(), nowhere);
    let why = grown.unwrap_err().to_string();
    assert!(why.contains("other bricks than when"), "{why}");
}

#[test]
fn a_disk_that_only_reads_holds_no_lock_and_ends_when_shards_may_move() {
    let mut session = open();
    session.runner.read_only = true;
    session.runner.volume_changed(copied());
    assert_eq!(session.phase(), &Phase::Unmarked, "its copy stays");
    session.runner.volume_changed(spread());
    let stopped = Phase::Stopped(StopReason::ShardsMayMove);
    assert_eq!(session.phase(), &stopped);
}
