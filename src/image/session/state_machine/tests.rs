//! What the session must and must not do, event by event.

#![allow(
    unused_must_use,
    reason = "what a step brings about is asserted where a test is about it"
)]

use super::*;

fn shape() -> Shape {
    Shape {
        bricks: 3,
        local: 0,
        arbiter: None,
        since: SetChange::NONE,
    }
}

fn session() -> Machine {
    Machine::new(shape(), BrickSet::first(3))
}

fn dirty() -> Machine {
    let mut machine = session();
    machine.step(Event::WriteWanted);
    (0..3).for_each(|brick| machine.marked(brick));
    machine.step(Event::MarkRoundOver);
    assert_eq!(machine.phase(), &Phase::Dirty);
    machine
}

fn rejoined(brick: usize, accuses: &[usize]) -> Event {
    Event::Rejoined {
        brick,
        marks_stand: [1, 2].iter().all(|peer| accuses.contains(peer)),
        local_accused_by: None,
        local_untouched: true,
    }
}

fn taken_by_other(brick: usize) -> Event {
    let accused = false;
    Event::TakenByOther { brick, accused }
}

fn opens_gate(actions: &[Action]) -> bool {
    actions.contains(&Action::SetGate(GateState::Open))
}

#[test]
fn the_gate_opens_only_when_marks_are_durable_on_a_quorum() {
    let mut machine = session();
    assert_eq!(
        machine.step(Event::WriteWanted),
        [Action::Mark(BrickSet::first(3))]
    );
    machine.marked(0);
    assert!(!opens_gate(&machine.step(Event::MarkRoundOver)));
    assert_eq!(machine.phase(), &Phase::Stalled);

    let mut machine = session();
    machine.step(Event::WriteWanted);
    machine.marked(0);
    machine.marked(2);
    assert!(opens_gate(&machine.step(Event::MarkRoundOver)));
}

#[test]
fn bricks_that_were_added_count_for_a_quorum_of_whoever_has_not_written_yet() {
    let change = SetChange {
        came: 1,
        gone: BrickSet::EMPTY,
    };
    let two = || {
        let shape = Shape {
            bricks: 2,
            ..shape()
        };
        let mut machine = Machine::new(shape, BrickSet::first(2));
        machine.step(Event::Lost(1));
        machine
    };
    let mut machine = two();
    assert_eq!(machine.step(Event::SetChanged(change)), []);
    // The one that came and the one that is away may have another session by now.
    assert_eq!(machine.step(Event::WriteWanted), [Action::StartQuorumTimer]);
    assert_eq!(
        machine.step(Event::SetChanged(SetChange::NONE)),
        [Action::Mark(BrickSet::only(0))]
    );
    let mut machine = two();
    machine.step(Event::WriteWanted);
    machine.marked(0);
    assert!(opens_gate(&machine.step(Event::MarkRoundOver)));
    machine.step(Event::SetChanged(change));
    assert_eq!(
        machine.phase(),
        &Phase::Dirty,
        "its marks stand where they are"
    );
}

#[test]
fn the_local_file_is_compared_when_those_that_answer_were_not_all_held_without_a_gap() {
    let set = |bricks: &[usize]| bricks.iter().copied().collect::<BrickSet>();
    let mut machine = Machine::new(shape(), set(&[0, 2]));
    assert!(!machine.compares_local(set(&[0, 2])));
    machine.step(rejoined(1, &[]));
    assert!(!machine.watches_local());
    // Brick 0 may have been lost before brick 1 came, and somebody written meanwhile.
    assert!(machine.compares_local(set(&[1, 2])));
    assert!(!machine.compares_local(set(&[0, 1, 2])));
    machine.step(Event::UnmarkBegun);
    machine.step(Event::UnmarkOver { changed: true });
    assert!(!machine.compares_local(set(&[1, 2])), "a new beginning");
    let dirty = dirty();
    assert!(!dirty.compares_local(set(&[1])), "it is ours");
}

#[test]
fn marks_stored_under_a_lock_that_was_lost_since_do_not_open_the_gate() {
    let mut machine = session();
    machine.step(Event::WriteWanted);
    machine.marked(0);
    machine.marked(1);
    machine.step(Event::Lost(1));
    assert!(!opens_gate(&machine.step(Event::MarkRoundOver)));
}

#[test]
fn a_mark_left_over_from_a_failed_round_does_not_count_after_its_lock_was_lost() {
    let mut machine = session();
    machine.step(Event::WriteWanted);
    machine.marked(0);
    machine.step(Event::MarkRoundOver);
    machine.step(Event::Lost(0));
    machine.step(Event::Lost(2));
    machine.step(rejoined(2, &[]));
    machine.marked(2);
    assert!(!opens_gate(&machine.step(Event::MarkRoundOver)));
}

#[test]
fn a_brick_that_was_not_asked_cannot_be_counted_as_marked() {
    let mut machine = Machine::new(shape(), BrickSet::first(2));
    machine.step(Event::WriteWanted);
    machine.marked(0);
    machine.marked(2);
    assert!(!opens_gate(&machine.step(Event::MarkRoundOver)));
}

#[test]
fn without_lock_quorum_a_first_write_waits_then_fails_and_quorum_makes_it_possible_again() {
    let mut machine = session();
    machine.step(Event::Lost(1));
    machine.step(Event::Lost(2));
    assert_eq!(machine.step(Event::WriteWanted), [Action::StartQuorumTimer]);
    assert_eq!(
        machine.step(Event::QuorumTimeout),
        [Action::SetGate(GateState::FailWrites)]
    );
    assert_eq!(
        machine.step(rejoined(1, &[])),
        [Action::Publish(1), Action::SetGate(GateState::Hold)]
    );
    assert_eq!(
        machine.step(Event::WriteWanted),
        [Action::Mark(BrickSet::first(2))]
    );
}

#[test]
fn a_stalled_session_marks_as_soon_as_quorum_is_back() {
    let mut machine = session();
    machine.step(Event::Lost(1));
    machine.step(Event::Lost(2));
    machine.step(Event::WriteWanted);
    let actions = machine.step(rejoined(2, &[]));
    assert!(actions.contains(&Action::Mark([0, 2].into_iter().collect())));
}

#[test]
fn a_dirty_session_writes_on_when_cut_off() {
    let mut machine = dirty();
    for brick in 1..3 {
        assert!(machine.step(Event::Lost(brick)).is_empty());
    }
    assert_eq!(machine.phase(), &Phase::Dirty);
}

#[test]
fn a_dirty_session_that_holds_no_brick_waits_until_its_marks_stand_again() {
    let mut machine = dirty();
    machine.step(Event::Lost(0));
    machine.step(Event::Lost(1));
    assert_eq!(
        machine.step(Event::Lost(2)),
        [
            Action::SetGate(GateState::Hold),
            Action::WatchLocal,
            Action::StartQuorumTimer
        ]
    );
    // What the guest wrote before is no change behind our back, what comes now is.
    let back = |brick, local_untouched| Event::Rejoined {
        brick,
        marks_stand: false,
        local_accused_by: None,
        local_untouched,
    };
    let stop = Action::Stop(StopReason::ChangedUnderneath);
    assert!(machine.clone().step(back(0, false)).contains(&stop));
    assert_eq!(machine.step(back(0, true)), [Action::Publish(0)]);
    let actions = machine.step(back(1, true));
    assert_eq!(
        actions,
        [Action::Publish(1), Action::Mark(BrickSet::first(2))]
    );
    machine.marked(0);
    machine.marked(1);
    assert!(opens_gate(&machine.step(Event::MarkRoundOver)));
}

#[test]
fn marks_on_the_peers_alone_do_not_open_the_gate() {
    let peers = [1, 2].into_iter().collect();
    let mut machine = Machine::new(shape(), peers);
    machine.step(Event::WriteWanted);
    machine.marked(1);
    machine.marked(2);
    assert!(!opens_gate(&machine.step(Event::MarkRoundOver)));

    let mut machine = Machine::new(shape(), peers);
    machine.step(Event::WriteWanted);
    machine.marked(1);
    machine.marked(2);
    machine.local_marked();
    assert!(opens_gate(&machine.step(Event::MarkRoundOver)));
}

#[test]
fn a_brick_that_was_away_when_the_marks_were_stored_is_marked_when_it_returns() {
    let mut machine = Machine::new(shape(), BrickSet::first(2));
    machine.step(Event::WriteWanted);
    machine.marked(0);
    machine.marked(1);
    machine.step(Event::MarkRoundOver);
    let actions = machine.step(rejoined(2, &[]));
    assert_eq!(
        actions,
        [Action::Publish(2), Action::Mark(BrickSet::only(2))]
    );
}

#[test]
fn a_returned_brick_that_lost_its_marks_is_marked_again() {
    let mut machine = dirty();
    machine.step(Event::Lost(1));
    assert_eq!(machine.step(rejoined(1, &[1, 2])), [Action::Publish(1)]);
    machine.step(Event::Lost(1));
    let actions = machine.step(rejoined(1, &[2]));
    assert!(actions.contains(&Action::Mark(BrickSet::only(1))));
}

#[test]
fn an_accused_local_copy_stops_the_session_in_every_phase() {
    let accused = Event::Rejoined {
        brick: 1,
        marks_stand: false,
        local_accused_by: Some(1),
        local_untouched: true,
    };
    for mut machine in [session(), dirty()] {
        machine.step(Event::Lost(1));
        machine.step(Event::Lost(2));
        let stop = StopReason::CopyAccused { by: 1 };
        assert_eq!(
            machine.step(accused),
            [Action::SetGate(GateState::FailAll), Action::Stop(stop)]
        );
        assert!(machine.step(Event::WriteWanted).is_empty());
    }
    let mut machine = session();
    machine.step(Event::WriteWanted);
    machine.step(Event::LocalAccused { by: 2 });
    assert!(matches!(machine.phase(), Phase::Stopped(_)));
}

#[test]
fn only_the_session_without_quorum_gives_way_to_another() {
    let mut machine = session();
    machine.step(Event::Lost(1));
    assert!(machine.step(taken_by_other(1)).is_empty());
    machine.step(Event::Lost(2));
    machine.step(taken_by_other(1));
    assert_eq!(
        machine.phase(),
        &Phase::Stopped(StopReason::LockTaken { on: 1 })
    );
}

#[test]
fn a_session_whose_marks_stand_outlasts_the_lock_of_a_dead_one_but_not_a_promotion() {
    let mut machine = dirty();
    machine.step(Event::Lost(1));
    machine.step(Event::Lost(2));
    assert!(machine.step(taken_by_other(1)).is_empty());
    assert_eq!(machine.phase(), &Phase::Dirty);
    machine.step(Event::TakenByOther {
        brick: 1,
        accused: true,
    });
    assert_eq!(
        machine.phase(),
        &Phase::Stopped(StopReason::LockTaken { on: 1 })
    );
}

#[test]
fn a_clean_session_stops_if_its_file_changed_while_it_had_no_quorum() {
    let changed = |brick| Event::Rejoined {
        brick,
        marks_stand: false,
        local_accused_by: None,
        local_untouched: false,
    };
    let mut machine = session();
    machine.step(Event::Lost(1));
    machine.step(changed(1));
    assert_eq!(machine.phase(), &Phase::Unmarked, "quorum was never lost");
    machine.step(Event::Lost(1));
    machine.step(Event::Lost(2));
    machine.step(changed(1));
    assert_eq!(
        machine.phase(),
        &Phase::Stopped(StopReason::ChangedUnderneath)
    );
}

#[test]
fn a_dirty_session_is_not_confused_by_its_own_writes() {
    let mut machine = dirty();
    machine.step(Event::Lost(1));
    machine.step(Event::Lost(2));
    machine.step(Event::Rejoined {
        brick: 1,
        marks_stand: true,
        local_accused_by: None,
        local_untouched: false,
    });
    assert_eq!(machine.phase(), &Phase::Dirty);
}

/// A dirty session in the midst of removing marks.
fn unmarking() -> Machine {
    let mut machine = dirty();
    assert_eq!(machine.may_unmark(), Ok(()));
    assert_eq!(
        machine.step(Event::UnmarkBegun),
        [Action::SetGate(GateState::Hold)]
    );
    machine
}

#[test]
fn after_marks_were_removed_the_next_write_stores_them_anew() {
    let mut machine = unmarking();
    let actions = machine.step(Event::UnmarkOver { changed: true });
    assert!(!opens_gate(&actions));
    assert_eq!(machine.phase(), &Phase::Unmarked);
    assert_eq!(
        machine.step(Event::WriteWanted),
        [Action::Mark(BrickSet::first(3))]
    );
    assert!(!opens_gate(&machine.step(Event::MarkRoundOver)));
}

#[test]
fn a_removal_that_changed_nothing_lets_the_writes_go_on() {
    let mut machine = unmarking();
    let actions = machine.step(Event::UnmarkOver { changed: false });
    assert!(opens_gate(&actions));
    assert_eq!(machine.phase(), &Phase::Dirty);
}

#[test]
fn a_removal_that_lost_every_brick_does_not_open_the_gate() {
    let mut machine = unmarking();
    (0..3).for_each(|brick| drop(machine.step(Event::Lost(brick))));
    let actions = machine.step(Event::UnmarkOver { changed: false });
    assert!(!opens_gate(&actions));
    assert_eq!(machine.phase(), &Phase::Stalled);
}

#[test]
fn marks_are_not_removed_without_the_local_brick_or_a_quorum() {
    let mut machine = dirty();
    machine.step(Event::Lost(0));
    assert_eq!(machine.may_unmark(), Err(CannotUnmark::LocalAway));
    assert_eq!(machine.step(Event::UnmarkBegun), []);
    let mut machine = dirty();
    machine.step(Event::Lost(1));
    machine.step(Event::Lost(2));
    assert_eq!(machine.may_unmark(), Err(CannotUnmark::NoQuorum));
    let mut machine = dirty();
    machine.step(taken_by_other(1));
    machine.step(Event::LocalAccused { by: 1 });
    assert_eq!(machine.may_unmark(), Err(CannotUnmark::Busy));
}

#[test]
fn after_an_unmark_a_change_behind_our_back_is_noticed_again() {
    let mut machine = unmarking();
    machine.step(Event::UnmarkOver { changed: true });
    machine.step(Event::Lost(1));
    machine.step(Event::Lost(2));
    let touched = Event::Rejoined {
        brick: 1,
        marks_stand: false,
        local_accused_by: None,
        local_untouched: false,
    };
    assert_eq!(
        machine.step(touched),
        [
            Action::SetGate(GateState::FailAll),
            Action::Stop(StopReason::ChangedUnderneath)
        ]
    );
}

#[test]
fn a_returned_brick_that_alone_accuses_the_copy_of_a_session_with_quorum_is_overruled() {
    let accusing = |brick, by| Event::Rejoined {
        brick,
        marks_stand: false,
        local_accused_by: Some(by),
        local_untouched: true,
    };
    let mut machine = Machine::new(shape(), BrickSet::first(2));
    let actions = machine.step(accusing(2, 2));
    assert_eq!(machine.overruled(), BrickSet::only(2));
    let marks = Action::Mark(BrickSet::first(3));
    assert!(actions.contains(&marks), "{actions:?}");
    machine.marked(2);
    assert!(machine.overruled().is_empty());
    let mut machine = dirty();
    machine.step(Event::Lost(2));
    let actions = machine.step(accusing(2, 2));
    assert!(actions.contains(&marks), "all are asked: {actions:?}");

    // Not when another brick says so too, nor after a gap in our quorum.
    let stopped = |machine: &Machine| matches!(machine.phase(), Phase::Stopped(_));
    let mut machine = Machine::new(shape(), BrickSet::first(2));
    machine.step(accusing(2, 1));
    assert!(stopped(&machine));
    let mut machine = Machine::new(shape(), BrickSet::first(2));
    machine.step(Event::Lost(1));
    machine.step(accusing(2, 2));
    assert!(stopped(&machine));
}
