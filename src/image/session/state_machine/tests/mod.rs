//! What the session must and must not do, event by event.

#![allow(
    unused_must_use,
    reason = "what a step brings about is asserted where a test is about it"
)]

mod losing;
mod marking;
mod stopping;
mod unmarking;

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
