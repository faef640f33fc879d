//! What a session's thread sees when it looks at locks and marks.

use super::*;

#[test]
fn a_brick_whose_locks_were_taken_away_is_lost_and_nothing_is_believed_to_be_equal() {
    let mut session = Session::dirty();
    for robbed in &session.robbed {
        robbed.store(true, Ordering::SeqCst);
    }
    session.runner.look();
    assert_eq!(session.gate(), GateState::Hold);
    assert!(session.runner.held().is_empty());
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
        session.runner.held(),
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
fn a_brick_that_says_that_a_lock_is_wanted_is_looked_at_at_once_and_no_sooner_again() {
    let mut session = Session::dirty();
    session.runner.look();
    let usual = session.runner.next_due();
    session.runner.heard(1, BrickReport::Contended);
    let soon = session.runner.next_due();
    assert!(soon < usual, "{soon:?} {usual:?}");
    session.robbed[1].store(true, Ordering::SeqCst);
    while session.runner.held().contains(1) {
        session.runner.do_what_is_due();
    }
    assert!(session.runner.threads.now() < usual.unwrap());
    assert!(session.runner.next_due() > usual);
}

#[test]
fn a_session_whose_marks_are_as_they_should_be_changes_nothing_when_it_looks() {
    let mut session = Session::dirty();
    session.runner.look();
    assert!(session.changed().is_empty());
    assert!(session.debt().behind().is_empty());
}
