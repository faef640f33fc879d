//! The protocol of sessions, healers and promotions as a model, checked exhaustively.
//!
//! The real state machine (`image::session::state_machine`), the real decision (`image::replica::freshness`), the
//! real judgement of an older dirty map (`image::replica::map_trust`), the real choice of marks to
//! remove (`image::replica::unmarking`) and the real plan of a promotion (`image::replica::promotion`) are
//! driven over simulated bricks, by a rim that follows `open.rs`, `runner.rs`,
//! `marking.rs`, `unmarking.rs`, `brick_worker.rs`, `missed_writes.rs` and the healer. Every order of
//! events within the bounds is visited, breadth first, so a trace is a shortest one.
//!
//! Modelled: two would-be sessions on different hosts over 2 or 3 bricks; connections
//! that break, noticed by either end first; brick processes and daemons and healers
//! killed at any step; hosts that crash and lose what was not fsynced, data and
//! attributes each; partitions (a daemon reaches any set of bricks); rounds cut short;
//! AFR's self-heal by its own rules (`model/stock.rs`), killed or not; a stock client
//! that writes between sessions; healers, which outlive their sessions; unmarking;
//! promotion, cut short anywhere.
//!
//! An image of several files, a base and a shard, has a smaller model of its own
//! (`model/files/mod.rs`), with the same stock heal.
//!
//! Who is on record as in step, while flushes wait for peers, is a model of its own
//! (`model/in_step.rs`).
//!
//! Not modelled: sizes and identities that differ, read-only sessions, the mandatory
//! fence, metadata and entry marks, AFR's own *dirty* counter of a client's write that
//! was cut short, `verify`, more than one copy of a healer at a time. Writes that were
//! admitted land at once, or, with healing, before or with the end of their daemon: the
//! lock on the open file sees to that.
//!
//! Taken for granted:
//! * A session learns of the loss of its last lock, and its writes in flight land,
//!   before a stock heal begins. (Else that heal runs underneath; no lock can help.)
//! * The stock healer's removal of marks is durable and on all bricks at once, and what
//!   it copies from is on its disk.
//! * After a brick let a healer's locks go, none of its WRITEs is carried out any more.
//! * Stamps are all different. A stock client keeps away while a session is open.
//! * Whoever promotes a copy is right that the lost one's session is over.
//!
//! Sound simplifications: locks of one open are taken together (those taken early only
//! keep others away); the probes of one round are one step (under our locks nobody
//! changes counters, and where a lock is lost, the brick's part fails); a write is to
//! one extent, and a copy of the image is the set of writes that it contains.
//!
//! With three bricks it does not matter which of the two hosts is the first one, so the
//! first open is the first host's. Where no fault is left, data counts as durable. A host
//! on which nothing will be opened any more forgets its map.
//!
//! For each protection there is a test that switches it off and sees an invariant break.
//! `MODEL_LONG=1` explores more faults, writes and opens: minutes to hours each, and several gigabytes.

#[path = "model/beginnings.rs"]
mod beginnings;
#[path = "model/caught.rs"]
mod caught;
#[path = "model/files/mod.rs"]
mod files;
#[path = "model/holds.rs"]
mod holds;
#[path = "model/in_step.rs"]
mod in_step;
#[path = "model/mod.rs"]
mod protocol;

use std::collections::BTreeMap;

use stateright::{Checker, HasDiscoveries, Model};

use protocol::properties::{INVARIANTS, reachable};
use protocol::setting::Setting;

/// Every state within the bounds has every invariant, and what is to be reached is.
fn holds(setting: Setting) {
    let begin = std::time::Instant::now();
    let checker = setting.checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.threads(threads()).spawn_bfs().join();
    println!(
        "{} states, {} transitions, {:?}: {setting:?}",
        checker.unique_state_count(),
        checker.state_count(),
        begin.elapsed()
    );
    let found: BTreeMap<_, _> = checker.discoveries().into_iter().collect();
    for invariant in INVARIANTS {
        if let Some(path) = found.get(invariant) {
            let last = path.last_state().clone();
            panic!(
                "broken: {invariant}\n{:?}\n{last:#?}",
                path.clone().into_actions()
            );
        }
    }
    let missed: Vec<_> = reachable(&setting)
        .filter(|name| !found.contains_key(name))
        .collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

/// Without some protections the invariant does not hold.
fn breaks(setting: Setting, invariant: &'static str) {
    let begin = std::time::Instant::now();
    let only = HasDiscoveries::AnyOf([invariant].into());
    let checker = setting.checker().finish_when(only).spawn_bfs().join();
    println!(
        "{} states, {:?}: {setting:?}",
        checker.unique_state_count(),
        begin.elapsed()
    );
    match checker.discovery(invariant) {
        Some(path) => println!("{:?}", path.into_actions()),
        None => panic!("not caught: {setting:?}"),
    }
}

fn long() -> bool {
    std::env::var_os("MODEL_LONG").is_some()
}

/// The long checks have the machine to themselves.
fn threads() -> usize {
    match long() {
        true => std::thread::available_parallelism().map_or(1, Into::into),
        false => 1,
    }
}

fn if_long(more: u8) -> u8 {
    if long() { more } else { 0 }
}
