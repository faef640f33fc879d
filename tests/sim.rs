//! A seeded simulator: the real session and heal engine against simulated bricks, with
//! everything that can go wrong at the worst moment.
//!
//! Some schedules are the same each time, some are others each day.
//! `BYPASS_SIM_SEED=n` replays one schedule of each kind and tells what happens in it;
//! `BYPASS_SIM_COUNT=n` runs so many of each kind. See `tests/sim/run.rs` for what a
//! schedule is and `tests/sim/world.rs` for what must hold all the time.

#![allow(clippy::unwrap_used)]

#[path = "sim/act.rs"]
mod act;
#[path = "sim/brick.rs"]
mod brick;
#[path = "sim/client.rs"]
mod client;
#[path = "sim/daemon.rs"]
mod daemon;
#[path = "sim/fault.rs"]
mod fault;
#[path = "sim/guest.rs"]
mod guest;
#[path = "sim/healer.rs"]
mod healer;
#[path = "sim/local.rs"]
mod local;
#[path = "sim/net.rs"]
mod net;
#[path = "sim/oracle.rs"]
mod oracle;
#[path = "sim/peer.rs"]
mod peer;
#[path = "sim/piece.rs"]
mod piece;
#[path = "sim/port.rs"]
mod port;
#[path = "sim/promotion.rs"]
mod promotion;
#[path = "sim/rng.rs"]
mod rng;
#[path = "sim/run.rs"]
mod run;
#[path = "sim/sched.rs"]
mod sched;
#[path = "sim/sim.rs"]
mod sim;
#[path = "sim/stock.rs"]
mod stock;
#[path = "sim/world.rs"]
mod world;

use std::ops::Range;
use std::time::SystemTime;

use act::Plan;
use world::Layout;

/// Schedules of each kind that are always run, unless `BYPASS_SIM_COUNT` says otherwise...
const FIXED: u64 = 80;
/// ...and so many more, others on each day: in eight days, all of [`ROTATING`].
const EACH_DAY: u64 = 40;
/// Seeds for these.
const ROTATING: Range<u64> = FIXED..400;

const THREE_COPIES: Layout = Layout {
    bricks: 3,
    arbiter: None,
};
const TWO_COPIES: Layout = Layout {
    bricks: 2,
    arbiter: None,
};
const TWO_AND_AN_ARBITER: Layout = Layout {
    bricks: 3,
    arbiter: Some(2),
};

const NOTHING: Plan = Plan {
    layout: THREE_COPIES,
    faults: 0,
    home: 0,
    rivals: false,
    clients: false,
    clients_fail: false,
    syncs_fail: false,
    full: false,
    stock: false,
    outlived: false,
    overtaken: false,
    administrator: false,
    promotes: 0,
    calm: false,
};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn of_this_day() -> Range<u64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let day = since.unwrap().as_secs() / (24 * 60 * 60);
    let turns = (ROTATING.end - ROTATING.start) / EACH_DAY;
    let begin = ROTATING.start + day % turns * EACH_DAY;
    begin..begin + EACH_DAY
}

fn schedules(kind: &str, plan: Plan) -> run::Figures {
    let seeds: Vec<u64> = match (number("BYPASS_SIM_SEED"), number("BYPASS_SIM_COUNT")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => (0..count).collect(),
        (None, None) => (0..FIXED).chain(of_this_day()).collect(),
    };
    // A panic inside is reported with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let told = number("BYPASS_SIM_SEED").is_some();
    let mut failed = Vec::new();
    let mut total = run::Figures::default();
    for &seed in &seeds {
        match run::run(seed, plan, told) {
            Ok(figures) => {
                total.steps += figures.steps;
                total.opened += figures.opened;
                total.unmarked += figures.unmarked;
                total.beside += figures.beside;
                total.promoted += figures.promoted;
                total.excused += figures.excused;
            }
            Err(why) => failed.push(format!("seed {seed}: {why}")),
        }
        if failed.len() >= 5 {
            break;
        }
    }
    let _ = std::panic::take_hook();
    let (first, last) = (seeds.first(), seeds.last());
    println!(
        "{kind}: {} seeds, {first:?} to {last:?}: {total:?}",
        seeds.len()
    );
    assert!(
        failed.is_empty(),
        "replay with BYPASS_SIM_SEED=… and the name of the test:\n{}",
        failed.join("\n")
    );
    total
}

#[test]
fn a_session_without_trouble() {
    schedules("no trouble", Plan { ..NOTHING });
}

#[test]
fn one_host_with_faults() {
    let plan = Plan {
        faults: 6,
        ..NOTHING
    };
    schedules("faults", plan);
}

#[test]
fn a_disk_that_fails_to_sync_and_then_says_it_did() {
    let plan = Plan {
        faults: 6,
        syncs_fail: true,
        ..NOTHING
    };
    schedules("syncs that fail", plan);
}

#[test]
fn rivals_with_faults_and_stock_heal() {
    let plan = Plan {
        faults: 8,
        rivals: true,
        stock: true,
        ..NOTHING
    };
    schedules("rivals", plan);
}

#[test]
fn two_copies_only() {
    let plan = Plan {
        layout: TWO_COPIES,
        faults: 6,
        rivals: true,
        stock: true,
        ..NOTHING
    };
    schedules("two copies", plan);
}

#[test]
fn two_copies_and_an_arbiter() {
    let plan = Plan {
        layout: TWO_AND_AN_ARBITER,
        faults: 6,
        rivals: true,
        stock: true,
        ..NOTHING
    };
    schedules("arbiter", plan);
}

#[test]
fn peers_whose_disks_are_full() {
    let plan = Plan {
        faults: 6,
        full: true,
        ..NOTHING
    };
    let alone = schedules("full", plan);
    let rivals = Plan {
        rivals: true,
        stock: true,
        ..plan
    };
    let beside = alone.beside + schedules("full, rivals", rivals).beside;
    assert!(
        number("BYPASS_SIM_SEED").is_some() || beside > 0,
        "no peer was unmarked beside one"
    );
}

#[test]
fn healers_outlive_their_sessions() {
    let plan = Plan {
        clients: true,
        stock: true,
        outlived: true,
        ..NOTHING
    };
    schedules("outlived", plan);
}

#[test]
fn rivals_overtake_sessions_that_are_clean() {
    let plan = Plan {
        faults: 2,
        stock: true,
        overtaken: true,
        ..NOTHING
    };
    schedules("overtaken", plan);
}

#[test]
fn an_administrator_clears_locks() {
    let plan = Plan {
        faults: 6,
        stock: true,
        administrator: true,
        ..NOTHING
    };
    schedules("locks cleared", plan);
}

#[test]
fn a_stale_copy_is_promoted() {
    let plan = Plan {
        faults: 3,
        rivals: true,
        stock: true,
        promotes: 1,
        ..NOTHING
    };
    schedules("promoted", plan);
}

#[test]
fn ordinary_clients_write_too() {
    let plan = Plan {
        faults: 3,
        clients: true,
        stock: true,
        ..NOTHING
    };
    schedules("clients", plan);
}

#[test]
fn ordinary_clients_miss_bricks() {
    let plan = Plan {
        faults: 6,
        clients: true,
        clients_fail: true,
        stock: true,
        ..NOTHING
    };
    schedules("clients that fail", plan);
}
