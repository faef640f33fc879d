//! Marks open the gate: how many must stand, and which of them count.

use super::*;

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
