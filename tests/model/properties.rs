//! What must hold in every state, and what must be reached in some.

use bypass_blk::image::bricks::BrickSet;
use bypass_blk::image::decide::Refusal;
use bypass_blk::image::machine::{GateState, Phase, StopReason};
use stateright::Property;

use super::heal::directions;
use super::rim::decision;
use super::setting::Setting;
use super::world::{BRICKS, Breach, Daemon, Healer, World, Writes};

/// Invariant 1.
pub const MARKED: &str = "no write without durable marks against every peer on a quorum";
/// Invariants 2 and 7.
pub const ONE_WRITER: &str = "never two open gates";
/// Invariant 3.
pub const NO_STALE_OPEN: &str = "no session opens a copy without all acknowledged writes";
/// Invariants 3 and 7.
pub const NO_STALE_WRITE: &str = "no write to a copy without all acknowledged writes";
/// Invariant 7.
pub const NOT_UNDERNEATH: &str = "no write to a file that changed under its guest";
/// Invariant 4.
pub const NO_FALSE_CLEAN: &str = "a copy without all acknowledged writes is durably accused";
/// Invariants 8 and 9.
pub const ENDS_WELL: &str = "stock heal alone, everything back, makes all copies the fresh one";

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
            let by_both = w.by_second != 0 && w.by_second != w.acked;
            by_both && w.healer == Healer::Idle && copies_equal(w)
        }),
        sometimes(
            "a second session is refused for its stale copy",
            |setting, w| (0..2).any(|slot| refused_as_stale(setting, w, slot)),
        ),
        sometimes("two sessions are open, one without quorum", |_, w| {
            w.daemons.iter().all(|d| matches!(d, Daemon::Open(_)))
        }),
        sometimes("a write waits for a quorum", |_, w| {
            in_phase(w, &Phase::Stalled)
        }),
        sometimes("writes fail for want of a quorum", |_, w| {
            in_phase(w, &Phase::Failed)
        }),
        sometimes("a session stops: its copy is accused", |_, w| {
            stopped(w, |why| matches!(why, StopReason::CopyAccused { .. }))
        }),
        sometimes("a session stops: its lock is taken", |_, w| {
            stopped(w, |why| matches!(why, StopReason::LockTaken { .. }))
        }),
        sometimes("a crash takes a mark that was not fsynced", |_, w| {
            w.bricks
                .iter()
                .any(|brick| !brick.up && brick.stored.is_empty())
                && w.bricks.iter().any(|brick| !brick.stored.is_empty())
        }),
    ]
}

type Condition = fn(&Setting, &World) -> bool;

fn always(name: &'static str, holds: Condition) -> Property<Setting> {
    Property::always(name, holds)
}

fn sometimes(name: &'static str, holds: Condition) -> Property<Setting> {
    Property::sometimes(name, holds)
}

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
    let accused = |copy: usize| {
        let by = |brick: &super::world::Brick| {
            brick.stored.contains(copy) && brick.durable.contains(copy)
        };
        world.bricks.iter().any(by)
    };
    copies(setting).all(|i| world.acked & !world.bricks[i].data == 0 || accused(i))
}

/// If every session ended now and every brick came back: whatever way the stock
/// heal goes, do all copies get every acknowledged write?
fn ends_well(setting: &Setting, world: &World) -> bool {
    let rows = world.rows();
    let data = world.bricks.map(|brick| brick.data);
    if rows.iter().all(|row| row.is_empty()) {
        return all_fresh(setting, world.acked, &data);
    }
    let directions = directions(setting, &rows);
    let good = |source: usize, sinks: BrickSet| {
        let mut healed = data;
        for sink in sinks.iter() {
            healed[sink] = data[source];
        }
        all_fresh(setting, world.acked, &healed)
    };
    !directions.is_empty() && directions.iter().all(|way| good(way.source, way.sinks))
}

fn all_fresh(setting: &Setting, acked: Writes, data: &[Writes; BRICKS]) -> bool {
    copies(setting).all(|i| data[i] == data[0] && acked & !data[i] == 0)
}

fn copies_equal(world: &World) -> bool {
    // The modelled arbiter is the last brick and its data never changes.
    let fresh = |i: usize| world.bricks[i].data == world.acked;
    fresh(0) && fresh(1) && world.bricks.iter().all(|brick| brick.stored.is_empty())
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

fn in_phase(world: &World, phase: &Phase) -> bool {
    let is = |slot| {
        world
            .session(slot)
            .is_some_and(|s| s.machine.phase() == phase)
    };
    is(0) || is(1)
}

fn stopped(world: &World, why: impl Fn(StopReason) -> bool) -> bool {
    let is = |slot: usize| {
        let session = world.session(slot);
        session.is_some_and(|s| matches!(s.machine.phase(), Phase::Stopped(r) if why(*r)))
    };
    is(0) || is(1)
}
