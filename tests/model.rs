//! stub
#[path = "model/mod.rs"]
mod protocol;

use protocol::properties::INVARIANTS;
use protocol::setting::{Protection, Setting};
use stateright::{Checker, HasDiscoveries, Model};

fn run(setting: Setting, any: bool, path: bool) {
    let start = std::time::Instant::now();
    let n = |k: &str, d: usize| std::env::var(k).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
    let checker = setting
        .checker()
        .threads(n("T", 1))
        .finish_when(if any {
            HasDiscoveries::AnyFailures
        } else {
            HasDiscoveries::All
        });
    let checker = if n("MAX", 0) > 0 { checker.target_state_count(n("MAX", 0)) } else { checker };
    let checker = checker.spawn_bfs().join();
    println!(
        "{setting:?}: {} unique, {} total, depth {}, done {}, {:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        checker.is_done(),
        start.elapsed()
    );
    for (name, p) in checker.discoveries() {
        if INVARIANTS.contains(&name) {
            println!("   BROKEN: {name}");
            if path {
                println!("   END {:?}", p.last_state());
                println!("   {:?}", p.into_actions());
            }
        } else if !any {
            println!("   found {name}");
        }
    }
}

#[test]
fn explore() {
    let n = |k: &str, d: u8| {
        std::env::var(k)
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(d)
    };
    use Protection::*;
    let all = [
        MarksOnPeers, MarksBeforeGate, MarksDurable, MarksStayOnLoss, LocalMarkedLast, LocalFileGuarded, LocalFileRead,
        RoundKeepsConnection, FileCompared, HealLock, LocksOnPeers, MarksReadAgain, SelfAccusersBelieved,
        OpenQuorum, MapBeforeWrite, MapDistrusted, StampsCompared, ForeignMarksNoted, CopyingFlag, PeerFsynced,
        GateHeld, ReadIsDurable, BelievedUnmarkedFirst, RemovableOnly, RemovalDurable, RecordChecked, SessionAsked, StampUnderLock, CopyLock, OldCopyAccused, AllAccusedFirst, RecordedLate,
        PromotedWitness,
    ];
    let m = std::env::var("M").unwrap_or_default();
    let without: Vec<_> = all.into_iter().filter(|p| m.split('+').any(|m| format!("{p:?}") == m)).collect();
    let without: &'static [Protection] = without.leak();
    run(
        Setting {
            bricks: n("N", 2) as usize,
            arbiter: n("ARB", 0) == 1,
            locals: [n("L0", 0) as usize, n("L1", 1) as usize],
            writes: n("W", 2),
            extents: n("E", 1),
            faults: n("F", 2),
            opens: n("O", 2),
            clients: n("C", 0),
            promotes: n("P", 0),
            healing: n("H", 0) == 1,
            without,
        },
        n("ANY", 1) == 1,
        true,
    );
}
