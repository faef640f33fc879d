//! Two files of one image, the base and a shard, with one session lock on the base: marks,
//! heal locks, stock heals and clients are of files.
//!
//! Beside the model of one file, which has all that happens within a round: here a round is one
//! step, or is cut short between two bricks, and what is stored is durable. Real are a machine
//! for each file, the decision, the judgement of an older map and the choice of marks to
//! remove; the rim follows `runner/files.rs`, `runner/unmarking.rs` and `brick_news.rs`.

mod properties;
mod rim;
mod rounds;
mod steps;
mod world;

use std::collections::BTreeMap;

use stateright::{Checker, HasDiscoveries, Model};

use super::{if_long, threads};
use properties::*;
use steps::{Protection, Setting};

const CRASHES: Setting = Setting {
    writes: 2,
    clients: 0,
    faults: 1,
    opens: 2,
    without: &[],
};
const CLIENTS: Setting = Setting {
    writes: 2,
    clients: 1,
    faults: 0,
    opens: 2,
    without: &[],
};

fn holds(setting: Setting) {
    let checker = setting.checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.threads(threads()).spawn_bfs().join();
    println!("{} states: {setting:?}", checker.unique_state_count());
    let found: BTreeMap<_, _> = checker.discoveries().into_iter().collect();
    for invariant in INVARIANTS {
        if let Some(path) = found.get(invariant) {
            let last = path.last_state().clone();
            let steps = path.clone().into_actions();
            panic!("broken: {invariant}\n{steps:?}\n{last:#?}");
        }
    }
    for wanted in SOMETIMES {
        assert!(found.contains_key(wanted), "never reached: {wanted}");
    }
}

fn breaks(setting: Setting, without: &'static [Protection], invariant: &'static str) {
    let setting = Setting { without, ..setting };
    let only = HasDiscoveries::AnyOf([invariant].into());
    let checker = setting.checker().finish_when(only).spawn_bfs().join();
    println!("{} states: {setting:?}", checker.unique_state_count());
    match checker.discovery(invariant) {
        Some(path) => println!("{:?}", path.into_actions()),
        None => panic!("not caught: {setting:?}"),
    }
}

#[test]
fn with_two_files_and_a_fault() {
    holds(Setting {
        faults: 1 + if_long(1),
        ..CRASHES
    });
}

#[test]
fn with_two_files_and_a_stock_client_between_sessions() {
    holds(Setting {
        faults: if_long(1),
        opens: 2 + if_long(1),
        ..CLIENTS
    });
}

#[test]
fn marks_on_the_base_alone() {
    breaks(CRASHES, &[Protection::MarksOfEach], MARKED);
}

#[test]
fn a_heal_lock_on_the_base_alone() {
    breaks(CRASHES, &[Protection::GuardOfEach], NO_FALSE_CLEAN);
}

#[test]
fn a_heal_lock_on_the_base_alone_where_a_brick_comes_back() {
    let twice = Setting {
        faults: 2,
        opens: 1,
        ..CRASHES
    };
    breaks(twice, &[Protection::GuardWhenBack], NO_FALSE_CLEAN);
}

#[test]
fn a_heal_lock_given_back_while_marks_stand() {
    breaks(CRASHES, &[Protection::GuardUntilUnmarked], NO_FALSE_CLEAN);
}

#[test]
fn opening_by_the_marks_of_the_base_alone() {
    breaks(CRASHES, &[Protection::DecisionOfEach], NO_STALE_OPEN);
}

#[test]
fn a_map_believed_for_the_marks_of_the_base_alone() {
    breaks(CRASHES, &[Protection::JudgementOfEach], NO_FALSE_CLEAN);
}

#[test]
fn foreign_marks_on_a_shard_that_are_not_looked_at() {
    breaks(
        CLIENTS,
        &[Protection::JudgementOfEach, Protection::ForeignMarksOfEach],
        NO_FALSE_CLEAN,
    );
}

#[test]
fn a_file_unmarked_because_another_is_clean() {
    breaks(CRASHES, &[Protection::DirtOfEach], NO_FALSE_CLEAN);
}
