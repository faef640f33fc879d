//! stub
#[path = "model/mod.rs"]
mod protocol;

use protocol::properties::INVARIANTS;
use protocol::setting::{Amendments, Clearing, Setting};
use stateright::{Checker, Model};

fn run(setting: Setting) {
    let start = std::time::Instant::now();
    let checker = setting
        .checker()
        .threads(1)
        .finish_when(if std::env::var("ANY").is_ok() {
            stateright::HasDiscoveries::AnyFailures
        } else {
            stateright::HasDiscoveries::All
        })
        .timeout(std::time::Duration::from_secs(120))
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
    for (name, path) in checker.discoveries() {
        println!(
            "   found: {name}{}",
            if INVARIANTS.contains(&name) {
                " !!!!"
            } else {
                ""
            }
        );
        if INVARIANTS.contains(&name) {
            for a in path.into_actions() {
                println!("        {a:?}");
            }
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
    run(Setting {
        bricks: n("N", 2) as usize,
        arbiter: n("ARB", 0) == 1,
        locals: [n("L0", 0) as usize, n("L1", 1) as usize],
        writes: n("W", 2),
        faults: n("F", 2),
        opens: n("O", 2),
        clearing: [Clearing::Whole, Clearing::BrickByBrick, Clearing::Volatile][n("C", 0) as usize],
        without: None,
        with: Amendments {
            local_marked: a & 1 != 0, local_last: a & 8 != 0,
            local_held: a & 2 != 0,
            loss_noted_first: a & 4 != 0,
        },
    });
}
