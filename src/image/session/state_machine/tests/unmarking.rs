//! Marks are removed, and what comes after that.

use super::*;

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
