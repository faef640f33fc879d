//! Signs of another writer: when they stop a session for good, and when it outlasts them.

use super::*;

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
