//! What must hold of each file in every state, and what must be reached in some.

use bypass_blk::image::session::state_machine::{GateState, Phase};
use stateright::Property;

use super::steps::{Setting, directions};
use super::world::*;

pub const MARKED: &str = "no write to a file without its marks on a quorum";
pub const ONE_WRITER: &str = "never open gates of two sessions";
pub const NO_STALE_OPEN: &str = "no session opens a copy of which any file misses a write";
pub const NO_STALE_WRITE: &str = "no write to a file that misses one";
pub const NOT_UNDERNEATH: &str = "no write to a file that changed under its guest";
pub const NO_FALSE_CLEAN: &str = "copies of a file that nobody accuses are equal and complete";
pub const ENDS_WELL: &str = "stock heal alone makes all copies of each file the fresh one";

pub const INVARIANTS: [&str; 7] = [
    MARKED,
    ONE_WRITER,
    NO_STALE_OPEN,
    NO_STALE_WRITE,
    NOT_UNDERNEATH,
    NO_FALSE_CLEAN,
    ENDS_WELL,
];

const UNMARKED_BESIDE: &str = "a file is unmarked while another is marked and dirty";
const CLOSED_WITH_ONE: &str = "a session is over, and one file is marked";
const HEALED_ONE: &str = "stock Gluster has healed one file, and the other is marked";
const ALL_EQUAL: &str = "both files were written to, and all copies are equal and unmarked";

pub const SOMETIMES: [&str; 4] = [UNMARKED_BESIDE, CLOSED_WITH_ONE, HEALED_ONE, ALL_EQUAL];

type Condition = fn(&Setting, &World) -> bool;

fn always(name: &'static str, holds: Condition) -> Property<Setting> {
    Property::always(name, holds)
}

fn sometimes(name: &'static str, holds: Condition) -> Property<Setting> {
    Property::sometimes(name, holds)
}

pub fn all() -> Vec<Property<Setting>> {
    vec![
        always(MARKED, |_, w| w.breach != Some(Breach::Unmarked)),
        always(ONE_WRITER, |_, w| writers(w) < 2),
        always(NO_STALE_OPEN, |_, w| w.breach != Some(Breach::StaleOpen)),
        always(NO_STALE_WRITE, |_, w| w.breach != Some(Breach::StaleWrite)),
        always(NOT_UNDERNEATH, |_, w| w.breach != Some(Breach::Underneath)),
        always(NO_FALSE_CLEAN, |_, w| each(w, no_false_clean)),
        always(ENDS_WELL, |_, w| each(w, ends_well)),
        sometimes(UNMARKED_BESIDE, |_, w| {
            (0..BRICKS).any(|slot| unmarked_beside(w, slot))
        }),
        sometimes(CLOSED_WITH_ONE, |_, w| {
            w.sessions == [None, None] && written(w) && w.is_marked(0) != w.is_marked(1)
        }),
        sometimes(HEALED_ONE, |_, w| {
            let healed = |file: usize| w.heals[file].is_some() && w.is_marked(1 - file);
            healed(0) || healed(1)
        }),
        sometimes(ALL_EQUAL, |_, w| {
            written(w) && !w.is_marked(0) && !w.is_marked(1)
        }),
    ]
}

fn each(world: &World, holds: fn(&World, usize) -> bool) -> bool {
    (0..FILES).all(|file| holds(world, file))
}

fn written(world: &World) -> bool {
    world.acked.iter().all(|acked| *acked != 0)
}

fn writers(world: &World) -> usize {
    let open = |s: &&Session| s.files.iter().any(|file| file.gate == GateState::Open);
    world.sessions.iter().flatten().filter(open).count()
}

fn data(world: &World, file: usize) -> [Writes; BRICKS] {
    world.bricks.map(|brick| brick.files[file].data)
}

fn no_false_clean(world: &World, file: usize) -> bool {
    let rows = world.rows(file);
    let accused = |copy: usize| rows.iter().any(|row| row[copy] != 0);
    let unaccused: Vec<_> = (0..BRICKS).filter(|&copy| !accused(copy)).collect();
    let data = data(world, file);
    let fresh = |copy: &usize| world.acked[file] & !data[*copy] == 0;
    let equal = unaccused
        .iter()
        .all(|&copy| data[copy] == data[unaccused[0]]);
    equal && unaccused.iter().all(fresh)
}

fn ends_well(world: &World, file: usize) -> bool {
    let data = data(world, file);
    let fresh = |copy: usize| world.acked[file] & !data[copy] == 0;
    if !world.is_marked(file) {
        return data[0] == data[1] && fresh(0);
    }
    let ways = directions(world, file);
    !ways.is_empty() && ways.iter().all(|way| fresh(way.source))
}

fn unmarked_beside(world: &World, slot: usize) -> bool {
    let (Some(session), Some(map)) = (&world.sessions[slot], &world.maps[slot]) else {
        return false;
    };
    let clean = |file: usize| {
        session.files[file].machine.phase() == &Phase::Unmarked && !world.is_marked(file)
    };
    let dirty =
        |file: usize| session.files[file].machine.phase() == &Phase::Dirty && map.dirty[file];
    written(world) && (clean(0) && dirty(1) || clean(1) && dirty(0))
}
