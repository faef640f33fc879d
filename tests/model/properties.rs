//! What must hold in every state, and what must be reached in some.

use bypass_blk::image::replica::brick_set::BrickSet;
use bypass_blk::image::replica::freshness::Refusal;
use bypass_blk::image::session::state_machine::{GateState, Phase, StopReason};
use stateright::{Expectation, Property};

use super::daemon::Daemon;
use super::rim::decision;
use super::setting::Setting;
use super::stock::directions;
use super::world::{BRICKS, Breach, World, Writes};

/// Invariant 1.
pub const MARKED: &str = "no write without durable marks against every peer on a quorum";
/// Invariants 2 and 7.
pub const ONE_WRITER: &str = "never two open gates";
/// Invariant 3.
pub const NO_STALE_OPEN: &str = "no session opens a copy without all acknowledged writes";
/// Invariants 3 and 7.
pub const NO_STALE_WRITE: &str = "no write to a copy without all acknowledged writes";
/// Invariants 5 and 7.
pub const NOT_UNDERNEATH: &str = "no write to a file that changed under its guest";
/// Invariants 4 and 8.
pub const NO_FALSE_CLEAN: &str = "copies that nobody durably accuses are equal and complete";
/// Invariant 9.
pub const ENDS_WELL: &str = "stock heal alone, everything back, makes all copies the fresh one";

/// The names of the properties that must always hold.
pub const INVARIANTS: [&str; 7] = [
    MARKED,
    ONE_WRITER,
    NO_STALE_OPEN,
    NO_STALE_WRITE,
    NOT_UNDERNEATH,
    NO_FALSE_CLEAN,
    ENDS_WELL,
];

const HEALED: &str = "our healer alone makes all copies equal, unmarked";
const PARTLY: &str = "one peer is unmarked, the other is not";
const BESIDE_ONE_BEHIND: &str = "one peer is unmarked while another that is held is behind";
const PROMOTED: &str = "a promoted copy wins, and all copies are equal";

/// All properties.
pub fn all() -> Vec<Property<Setting>> {
    vec![
        always(MARKED, |_, w| w.breach != Some(Breach::UnmarkedWrite)),
        always(ONE_WRITER, |_, w| open_gates(w) < 2),
        always(NO_STALE_OPEN, |_, w| w.breach != Some(Breach::StaleOpen)),
        always(NO_STALE_WRITE, |_, w| w.breach != Some(Breach::StaleWrite)),
        always(NOT_UNDERNEATH, |_, w| {
            w.breach != Some(Breach::ChangedUnderneath)
        }),
        always(NO_FALSE_CLEAN, no_false_clean),
        always(ENDS_WELL, ends_well),
        sometimes(
            "a dirty session writes on without a quorum",
            |setting, w| (0..2).any(|slot| writes_cut_off(setting, w, slot)),
        ),
        sometimes("both sessions wrote, and all copies have it", |_, w| {
            let by_both = w.acked & w.by_second != 0 && w.acked & !w.by_second != 0;
            by_both && copies_equal_and_clean(w)
        }),
        sometimes(
            "a second session is refused for its stale copy",
            |setting, w| (0..2).any(|slot| refused_as_stale(setting, w, slot)),
        ),
        sometimes("two sessions are open, one without quorum", |_, w| {
            w.daemons.iter().all(|d| matches!(d, Daemon::Open(_)))
        }),
        sometimes("a write waits for a quorum", |_, w| {
            in_phase(w, |phase| phase == &Phase::Stalled)
        }),
        sometimes("a session stops: its copy is accused", |_, w| {
            stopped(w, |why| matches!(why, StopReason::CopyAccused { .. }))
        }),
        sometimes("a session stops: its lock is taken", |_, w| {
            stopped(w, |why| matches!(why, StopReason::LockTaken { .. }))
        }),
        sometimes("a crash takes a mark that was not fsynced", |_, w| {
            let unmarked = |brick: &super::world::Brick| brick.stored == [0; BRICKS];
            w.bricks.iter().any(|brick| !brick.up && unmarked(brick))
                && !w.bricks.iter().all(unmarked)
        }),
        sometimes(HEALED, |s, w| {
            s.healing && w.acked != 0 && copies_equal_and_clean(w) && in_phase(w, is_unmarked)
        }),
        sometimes(PARTLY, |s, w| {
            let marked = |copy| w.bricks.iter().any(|brick| brick.stored[copy] != 0);
            let peers = s.shape(0).peers();
            s.healing
                && in_phase(w, is_unmarked)
                && peers.iter().any(marked)
                && !peers.iter().all(marked)
        }),
        sometimes(BESIDE_ONE_BEHIND, |s, w| {
            s.healing && (0..2).any(|slot| unmarked_beside_one_behind(s, w, slot))
        }),
        sometimes(PROMOTED, |_, w| {
            w.given_up != 0 && copies_equal_and_clean(w)
        }),
    ]
}

/// What the bounds let happen, of the properties that some state must have.
pub fn reachable(setting: &Setting) -> impl Iterator<Item = &'static str> {
    let setting = *setting;
    let may = move |name: &&str| match *name {
        HEALED => setting.healing,
        PARTLY => setting.healing && setting.bricks > 2 && !setting.arbiter && setting.faults > 0,
        BESIDE_ONE_BEHIND => setting.stuck > 0,
        PROMOTED => setting.promotes > 0,
        _ => !setting.healing && setting.promotes == 0,
    };
    let sometimes = |property: Property<Setting>| match property.expectation {
        Expectation::Sometimes => Some(property.name),
        _ => None,
    };
    all().into_iter().filter_map(sometimes).filter(may)
}

type Condition = fn(&Setting, &World) -> bool;

fn always(name: &'static str, holds: Condition) -> Property<Setting> {
    Property::always(name, holds)
}

fn sometimes(name: &'static str, holds: Condition) -> Property<Setting> {
    Property::sometimes(name, holds)
}

fn open_gates(world: &World) -> usize {
    let open = |&slot: &usize| {
        world
            .session(slot)
            .is_some_and(|s| s.gate == GateState::Open)
    };
    (0..world.daemons.len()).filter(open).count()
}

fn copies(setting: &Setting) -> impl Iterator<Item = usize> {
    let setting = *setting;
    (0..setting.bricks).filter(move |&brick| setting.has_data(brick))
}

fn no_false_clean(setting: &Setting, world: &World) -> bool {
    let accused = |copy: &usize| world.bricks.iter().any(|by| by.surely_accuses(*copy));
    let mut unaccused = copies(setting).filter(|copy| !accused(copy));
    let data = |copy: usize| world.bricks[copy].data;
    let Some(first) = unaccused.next() else {
        return true;
    };
    is_fresh(world, data(first)) && unaccused.all(|copy| data(copy) == data(first))
}

/// Has a copy with these writes all that was acknowledged, and nothing given up?
fn is_fresh(world: &World, data: Writes) -> bool {
    world.acked & !data == 0 && world.given_up & data == 0
}

/// If every session and healer ended now and every brick came back: whatever way the
/// stock heal goes, do all copies get every acknowledged write? Once a promotion began
/// it may also see a split-brain: the promotion, or a session on that copy, ends it. So
/// it may with an arbiter, when a session was killed after it had marked only that, and
/// one on the other copy wrote: a session that gets the arbiter back ends it.
fn ends_well(setting: &Setting, world: &World) -> bool {
    let mut data = world.bricks.map(|brick| brick.data);
    if world.bricks.iter().all(|brick| brick.stored == [0; BRICKS]) {
        return all_fresh(setting, world, &data);
    }
    let ways = directions(setting, world);
    if ways.is_empty() {
        return setting.arbiter || world.promotes_left < setting.promotes;
    }
    let mut good = |source: usize, sinks: BrickSet| {
        for sink in sinks.iter() {
            data[sink] = world.bricks[source].data;
        }
        let healed = all_fresh(setting, world, &data);
        data = world.bricks.map(|brick| brick.data);
        healed
    };
    ways.iter().all(|way| good(way.source, way.sinks))
}

fn all_fresh(setting: &Setting, world: &World, data: &[Writes; BRICKS]) -> bool {
    copies(setting).all(|i| data[i] == data[0] && is_fresh(world, data[i]))
}

fn copies_equal_and_clean(world: &World) -> bool {
    // The modelled arbiter is the last brick and its data never changes.
    let same = world.bricks[0].data == world.bricks[1].data;
    let unmarked = |brick: &super::world::Brick| brick.stored == [0; BRICKS];
    same && is_fresh(world, world.bricks[0].data) && world.bricks.iter().all(unmarked)
}

fn writes_cut_off(setting: &Setting, world: &World, slot: usize) -> bool {
    world.session(slot).is_some_and(|s| {
        let cut_off = !setting.shape(slot).is_quorum(s.machine.held());
        cut_off && s.gate == GateState::Open && s.view != 0
    })
}

fn refused_as_stale(setting: &Setting, world: &World, slot: usize) -> bool {
    let up = (0..setting.bricks).filter(|&i| world.bricks[i].is_free());
    let closed = matches!(world.daemons[slot], Daemon::Closed);
    let decision = decision(setting, world, slot, up.collect());
    closed && matches!(decision, Err(Refusal::Stale { .. }))
}

fn is_unmarked(phase: &Phase) -> bool {
    phase == &Phase::Unmarked
}

fn unmarked_beside_one_behind(setting: &Setting, world: &World, slot: usize) -> bool {
    let Some((session, map)) = world.session(slot).zip(world.maps[slot]) else {
        return false;
    };
    let held = session.machine.held();
    let marked = |copy: usize| {
        held.iter()
            .any(|brick| world.bricks[brick].stored[copy] != 0)
    };
    let peers: Vec<_> = setting.shape(slot).peers().iter().collect();
    let behind = |&peer: &usize| held.contains(peer) && !map.is_clean(peer) && marked(peer);
    is_unmarked(session.machine.phase())
        && peers.iter().any(behind)
        && peers
            .iter()
            .any(|&peer| map.is_clean(peer) && !marked(peer))
}

fn in_phase(world: &World, is: fn(&Phase) -> bool) -> bool {
    let in_phase = |slot| world.session(slot).is_some_and(|s| is(s.machine.phase()));
    in_phase(0) || in_phase(1)
}

fn stopped(world: &World, why: impl Fn(StopReason) -> bool) -> bool {
    let is = |slot: usize| {
        let session = world.session(slot);
        session.is_some_and(|s| matches!(s.machine.phase(), Phase::Stopped(r) if why(*r)))
    };
    is(0) || is(1)
}
