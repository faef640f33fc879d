//! Bricks that are lost, and that come back.

use super::*;

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
