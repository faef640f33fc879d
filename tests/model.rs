//! stub
#[path = "model/mod.rs"]
mod protocol;

use protocol::properties::INVARIANTS;
use protocol::setting::{Amendments, Clearing, Protection, Setting};
use stateright::{Checker, HasDiscoveries, Model};

fn run(setting: Setting, any: bool, path: bool) {
    let start = std::time::Instant::now();
    let checker = setting
        .checker()
        .threads(1)
        .finish_when(if any {
            HasDiscoveries::AnyFailures
        } else {
            HasDiscoveries::All
        })
        .spawn_bfs()
        .join();
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
                println!("   {:?}", p.into_actions());
            }
        } else if !any {
            println!("   found {name}");
        }
    }
}

#[test]
fn mutations() {
    use Protection::*;
    let n = |k: &str, d: u8| {
        std::env::var(k)
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(d)
    };
    for m in [
        MarksOnPeers,
        MarksBeforeGate,
        MarksDurable,
        MarksStayOnLoss,
        HealLock,
        LocksOnPeers,
        MarksReadOnRejoin,
        MarksReadOnMarking,
        SelfAccusersBelieved,
        OpenQuorum,
        FileWatched,
        Stopping,
    ] {
        for bricks in [2, 3] {
            run(
                Setting {
                    bricks,
                    arbiter: false,
                    locals: [0, 1],
                    writes: n("W", 2),
                    faults: n("F", 2),
                    opens: n("O", 2),
                    clearing: Clearing::Whole,
                    late_notice: false,
                    without: Some(m),
                    with: Amendments::ALL,
                },
                true,
                n("P", 0) == 1,
            );
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
    let a = n("A", 0);
    run(
        Setting {
            bricks: n("N", 2) as usize,
            arbiter: n("ARB", 0) == 1,
            locals: [n("L0", 0) as usize, n("L1", 1) as usize],
            writes: n("W", 2),
            faults: n("F", 2),
            opens: n("O", 2),
            clearing: [Clearing::Whole, Clearing::BrickByBrick, Clearing::Volatile]
                [n("C", 0) as usize],
            late_notice: n("LATE", 0) == 1,
            without: None,
            with: Amendments {
                local_last: a & 1 != 0,
                loss_noted_first: a & 2 != 0,
                file_compared: a & 4 != 0,
            },
        },
        n("ANY", 0) == 1,
        true,
    );
}
