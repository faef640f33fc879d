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

#[path = "model/mod.rs"]
mod protocol;

use std::collections::BTreeMap;

use bypass_blk::image::replica::brick_set::BrickSet;
use stateright::{Checker, HasDiscoveries, Model};

use protocol::properties::{
    ENDS_WELL, INVARIANTS, MARKED, NO_FALSE_CLEAN, NO_STALE_OPEN, NO_STALE_WRITE, NOT_UNDERNEATH,
    ONE_WRITER, reachable,
};
use protocol::setting::{Protection::*, Setting};
use protocol::steps::Step;

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

const TWO: Setting = Setting::TWO_BRICKS;
const THREE: Setting = Setting::THREE_BRICKS;
const HEALING_TWO: Setting = Setting {
    healing: true,
    ..TWO
};
const HEALING_THREE: Setting = Setting {
    healing: true,
    writes: 1,
    faults: 0,
    ..THREE
};
const PROMOTING: Setting = Setting {
    promotes: 1,
    faults: 0,
    ..THREE
};

mod holds {
    use super::*;

    #[test]
    fn with_two_bricks_and_stock_heals() {
        holds(Setting {
            faults: 2 + if_long(1),
            ..TWO
        });
    }

    #[test]
    fn with_three_bricks_and_stock_heals() {
        holds(Setting {
            faults: 1 + if_long(1),
            ..THREE
        });
    }

    #[test]
    fn with_an_arbiter_and_stock_heals() {
        holds(Setting {
            arbiter: true,
            faults: 1 + if_long(1),
            ..THREE
        });
    }

    #[test]
    fn with_marks_stored_again() {
        holds(Setting {
            faults: 2 + if_long(1),
            ..MARKED_AGAIN
        });
    }

    #[test]
    fn with_two_bricks_and_our_healers() {
        holds(Setting {
            faults: 1 + if_long(1),
            ..HEALING_TWO
        });
    }

    #[test]
    fn with_two_extents() {
        holds(Setting {
            extents: 2,
            faults: 1,
            opens: 2 + if_long(1),
            ..HEALING_TWO
        });
    }

    #[test]
    fn with_a_stock_client_between_sessions() {
        holds(Setting {
            clients: 1 + if_long(1),
            faults: if_long(1),
            opens: 3,
            ..HEALING_TWO
        });
    }

    #[test]
    fn with_three_bricks_and_our_healers() {
        holds(Setting {
            faults: if_long(1),
            writes: 2,
            stuck: 1,
            ..HEALING_THREE
        });
    }

    #[test]
    fn with_three_bricks_our_healers_and_a_fault() {
        holds(Setting {
            faults: 1,
            writes: 1 + if_long(1),
            ..HEALING_THREE
        });
    }

    #[test]
    fn with_peers_that_are_away_in_turns() {
        holds(IN_TURNS);
    }

    #[test]
    fn with_a_peer_that_cannot_be_healed() {
        holds(Setting {
            writes: 1 + if_long(1),
            ..STUCK
        });
    }

    #[test]
    fn with_a_session_that_another_one_wrote_beside() {
        holds(BESIDE);
    }

    #[test]
    fn with_an_arbiter_and_our_healers() {
        holds(Setting {
            arbiter: true,
            faults: if_long(1),
            ..HEALING_THREE
        });
    }

    #[test]
    fn with_two_bricks_and_a_promotion() {
        holds(Setting {
            bricks: 2,
            faults: 1 + if_long(1),
            ..PROMOTING
        });
    }

    #[test]
    fn with_three_bricks_and_a_promotion() {
        holds(Setting {
            faults: if_long(1),
            ..PROMOTING
        });
    }

    #[test]
    fn with_a_promotion_and_our_healers() {
        holds(Setting {
            healing: true,
            writes: 1 + if_long(1),
            opens: 2 + if_long(1),
            ..PROMOTING
        });
    }
}

/// A session opens on these bricks, marks them and writes.
fn written(slot: usize, bricks: &[usize]) -> Vec<Step> {
    let all: BrickSet = bricks.iter().copied().collect();
    let local = THREE.locals[slot];
    let mut steps = vec![
        Step::Open(slot, all),
        Step::FinishOpen(slot),
        Step::WantWrite(slot),
        Step::Probe(slot),
    ];
    let others = bricks.iter().copied().filter(|&brick| brick != local);
    for brick in others.chain([local]) {
        steps.extend([Step::Store(slot, brick), Step::Sync(slot, brick)]);
    }
    steps.extend([
        Step::EndRound(slot),
        Step::BeginWrite(slot),
        Step::LandWrite(slot),
    ]);
    steps
}

/// A session with all three bricks loses the last one.
fn written_and_lost_one() -> Vec<Step> {
    let mut steps = written(0, &[0, 1, 2]);
    steps.extend([Step::SessionDrops(0, 2), Step::Hear(0)]);
    steps
}

/// A session heals and unmarks one peer while the other is away; then it is the other
/// way round. So the one that is away is believed, and accuses the one that is back.
fn one_peer_back_for_the_other() -> Vec<Step> {
    let mut steps = written(0, &[0, 1, 2]);
    steps.extend([
        Step::SessionDrops(0, 1),
        Step::Hear(0),
        Step::Attach { slot: 0, peer: 2 },
        Step::SendCopy {
            slot: 0,
            peer: 2,
            extent: 0,
        },
        Step::LandCopy(2),
        Step::EndCopy(0),
        Step::Detach(2),
        Step::WantUnmark(0),
        Step::Probe(0),
        Step::Store(0, 0),
        Step::Sync(0, 0),
        Step::Store(0, 2),
        Step::Sync(0, 2),
        Step::EndRound(0),
        Step::SessionDrops(0, 2),
        Step::Hear(0),
        Step::GhostGone(1),
        Step::Rejoin(0, 1),
        Step::Hear(0),
    ]);
    steps
}

/// A session heals one peer, and not the other, which it holds: the marks against the first
/// are about to go.
fn one_peer_healed() -> Vec<Step> {
    let mut steps = written(0, &[0, 1, 2]);
    steps.extend([
        Step::Attach { slot: 0, peer: 1 },
        Step::SendCopy {
            slot: 0,
            peer: 1,
            extent: 0,
        },
        Step::LandCopy(1),
        Step::EndCopy(0),
        Step::Detach(1),
    ]);
    steps
}

/// A session lost its own brick before it wrote, and another wrote on that and its own.
fn written_beside_a_clean_session() -> Vec<Step> {
    let both = [0, 2].into_iter().collect();
    let mut steps = vec![
        Step::Open(0, both),
        Step::FinishOpen(0),
        Step::BrickDrops(0, 0),
    ];
    steps.extend(written(1, &[0, 1]));
    steps
}

/// A test that `$without` is needed for `$invariant`.
macro_rules! caught {
    ($($name:ident: $setting:expr, without $without:expr => $invariant:expr;)*) => {
        mod caught {
            use super::*;

            $(#[test]
            fn $name() {
                breaks(Setting { without: &$without, ..$setting }, $invariant);
            })*
        }
    };
}

/// The marks stand, and are to be stored again.
const MARKED_AGAIN: Setting = Setting {
    remarks: 1,
    after: || written(0, &[0, 1]),
    ..TWO
};
const ONE_FAULT: Setting = Setting { faults: 1, ..TWO };
const HEALING: Setting = Setting {
    faults: 1,
    ..HEALING_TWO
};
const CLIENT: Setting = Setting {
    clients: 1,
    faults: 0,
    ..HEALING_TWO
};
const LOST_ONE: Setting = Setting {
    faults: 2,
    writes: 2,
    after: written_and_lost_one,
    ..HEALING_THREE
};
const BESIDE: Setting = Setting {
    faults: 1,
    after: written_beside_a_clean_session,
    ..HEALING_THREE
};
const STUCK: Setting = Setting {
    faults: 1,
    writes: 2,
    stuck: 1,
    after: one_peer_healed,
    ..HEALING_THREE
};
const IN_TURNS: Setting = Setting {
    faults: 2,
    writes: 2,
    after: one_peer_back_for_the_other,
    ..HEALING_THREE
};
const WRITTEN_ON_ONE: Setting = Setting {
    after: || written(0, &[0]),
    ..HEALING_TWO
};

caught! {
    marks_on_the_local_brick_only: ONE_FAULT, without [MarksOnPeers] => MARKED;
    writes_before_the_marks: ONE_FAULT, without [MarksBeforeGate] => ONE_WRITER;
    marks_that_are_not_fsynced: ONE_FAULT, without [MarksDurable] => MARKED;
    marks_taken_off_with_a_lost_brick: ONE_FAULT, without [MarksStayOnLoss] => NO_FALSE_CLEAN;
    the_local_copy_marked_beside_the_others: ONE_FAULT, without [LocalMarkedLast] => ENDS_WELL;
    the_local_file_marked_without_a_quorum: TWO, without [LocalFileGuarded] => ENDS_WELL;
    the_local_file_marked_though_it_accuses_itself: THREE, without [LocalFileRead] => ENDS_WELL;
    a_last_brick_lost_in_a_round_that_does_not_close_the_gate: MARKED_AGAIN, without [LossesCarriedOut] => MARKED;
    a_round_over_two_connections: TWO, without [RoundKeepsConnection] => ENDS_WELL;
    marks_read_locally_that_a_crash_undoes: LOST_ONE, without [ReadIsDurable] => ENDS_WELL;
    a_file_that_was_healed_meanwhile: ONE_FAULT, without [FileCompared, FileWatched] => NOT_UNDERNEATH;
    no_heal_lock: ONE_FAULT, without [HealLock] => NO_FALSE_CLEAN;
    session_locks_on_the_local_brick_only: ONE_FAULT, without [LocksOnPeers] => NO_FALSE_CLEAN;
    marks_not_read_again: TWO, without [MarksReadAgain, FileCompared, FileWatched] => NO_STALE_WRITE;
    a_loss_of_locks_that_was_not_noticed: BESIDE, without [AnswersCounted] => ENDS_WELL;
    an_accusation_overruled_by_locks_that_may_be_lost: ONE_FAULT, without [OverruledByAnswer] => ENDS_WELL;
    self_accusers_not_believed: ONE_FAULT, without [SelfAccusersBelieved] => NO_STALE_OPEN;
    opening_without_a_quorum: ONE_FAULT, without [OpenQuorum] => NO_STALE_OPEN;
    a_write_that_the_map_learns_of_too_late: HEALING, without [MapBeforeWrite] => NO_FALSE_CLEAN;
    a_map_believed_after_a_crash_of_its_host: HEALING, without [MapDistrusted] => NO_FALSE_CLEAN;
    a_map_believed_though_somebody_else_marked: CLIENT, without [StampsCompared, ForeignMarksNoted] => NO_FALSE_CLEAN;
    a_copy_cleared_though_a_write_came_in: HEALING, without [CopyingFlag] => NO_FALSE_CLEAN;
    a_copy_cleared_before_the_peer_s_fsync: HEALING, without [PeerFsynced] => NO_FALSE_CLEAN;
    unmarking_with_the_gate_open: HEALING, without [GateHeld] => NO_FALSE_CLEAN;
    unmarking_in_any_order: HEALING, without [BelievedUnmarkedFirst] => ENDS_WELL;
    unmarking_whoever_is_clean: IN_TURNS, without [RemovableOnly] => ENDS_WELL;
    unmarking_that_a_crash_undoes: HEALING, without [RemovalDurable] => ENDS_WELL;
    a_healer_that_asks_nobody: HEALING, without [RecordChecked, StampUnderLock] => NO_FALSE_CLEAN;
    a_healer_of_a_session_whose_marks_may_be_gone: WRITTEN_ON_ONE, without [StampUnderLock] => NO_FALSE_CLEAN;
    a_session_that_does_not_try_the_copy_lock: HEALING, without [CopyLock, StampUnderLock] => NO_FALSE_CLEAN;
    a_healer_that_does_not_look_at_the_peer_s_own_mark: CLIENT, without [StampUnderLock] => NO_FALSE_CLEAN;
    a_promotion_that_does_not_accuse_the_old_copy: PROMOTING, without [OldCopyAccused] => NO_FALSE_CLEAN;
    a_promotion_with_brick_after_brick_believed: PROMOTING, without [AllAccusedFirst] => ENDS_WELL;
    a_promotion_recorded_before_it_stands: PROMOTING, without [RecordedLate] => NO_FALSE_CLEAN;
    a_promoted_copy_that_is_no_witness: PROMOTING, without [PromotedWitness] => ENDS_WELL;
}
