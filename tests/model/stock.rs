//! The stock self-heal of GlusterFS 10.3 as far as a file's data goes: which copies
//! are sources, which are overwritten.
//!
//! Follows `afr_selfheal_find_direction`, `afr_selfheal_post_op_failure_accounting`
//! (afr-self-heal-common.c), `__afr_selfheal_data_finalize_source` and
//! `afr_mark_active_sinks` (afr-self-heal-data.c). Where AFR compares times, sums of
//! stamps (which are random) or distances, every choice is possible.

use bypass_blk::image::replica::brick_set::BrickSet;

use super::setting::Setting;
use super::world::{World, accused_by};

/// One way in which the heal may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// The copy that is read.
    pub source: usize,
    /// The copies that are overwritten.
    pub sinks: BrickSet,
}

/// All ways in which a heal may go now. Empty when there is nothing to heal, or when
/// AFR sees a split-brain.
pub fn directions(setting: &Setting, world: &World) -> Vec<Direction> {
    let rows = world.rows().map(|row| accused_by(&row));
    let raised = |brick: usize| world.bricks[brick].witness;
    ways(&rows[..setting.bricks], raised, |brick| {
        setting.has_data(brick)
    })
}

/// The same of any file: whom each brick accuses, whether its *dirty* counter is above all
/// sums of others, and whether it has data.
pub fn ways(
    rows: &[BrickSet],
    raised: impl Fn(usize) -> bool,
    has_data: impl Fn(usize) -> bool,
) -> Vec<Direction> {
    let bricks = rows.len();
    let marks = Marks {
        bricks,
        rows,
        raised: (0..bricks).filter(|&brick| raised(brick)).collect(),
    };
    let innocent = marks.less_accused_than(1);
    let judges = innocent.iter().filter(|&i| !marks.is_fool(i));
    let sinks: BrickSet = judges.flat_map(|i| marks.rows[i].iter()).collect();
    let sources = match innocent.is_empty() {
        true => marks.less_accused_than(bricks / 2 + 1),
        false => innocent,
    };
    if sources.is_empty() || sinks == BrickSet::first(bricks) {
        return Vec::new();
    }
    let chosen = marks.final_sources(sources).into_iter();
    chosen
        .flat_map(|sources| with_each_source(bricks, sources, &has_data))
        .collect()
}

struct Marks<'a> {
    bricks: usize,
    /// Whom each brick accuses.
    rows: &'a [BrickSet],
    /// Whose *dirty* counter is above all sums of others.
    raised: BrickSet,
}

impl Marks<'_> {
    /// Bricks with fewer accusers than `limit`; one that accuses itself is not
    /// listened to.
    fn less_accused_than(&self, limit: usize) -> BrickSet {
        let accuses = |by: usize, of: usize| !self.is_fool(by) && self.rows[by].contains(of);
        let accusers = |of: usize| (0..self.bricks).filter(|&by| accuses(by, of)).count();
        (0..self.bricks).filter(|&i| accusers(i) < limit).collect()
    }

    fn is_fool(&self, brick: usize) -> bool {
        self.rows[brick].contains(brick)
    }

    /// Has it a witness count? A brick that accuses itself and others has one, and,
    /// when nobody accuses anybody else, one that accuses itself.
    fn is_witness(&self, brick: usize) -> bool {
        let on_others = |i: usize| !self.rows[i].without(BrickSet::only(i)).is_empty();
        self.is_fool(brick) && (on_others(brick) || !(0..self.bricks).any(on_others))
    }

    /// With witnesses among the sources, the one with the largest count, which may
    /// be any of them unless a *dirty* counter was raised.
    fn final_sources(&self, sources: BrickSet) -> Vec<BrickSet> {
        let raised: BrickSet = sources
            .iter()
            .filter(|&i| self.raised.contains(i))
            .collect();
        let witnesses: BrickSet = sources.iter().filter(|&i| self.is_witness(i)).collect();
        match (raised.is_empty(), witnesses.is_empty()) {
            (false, _) => raised.iter().map(BrickSet::only).collect(),
            (true, false) => witnesses.iter().map(BrickSet::only).collect(),
            (true, true) => vec![sources],
        }
    }
}

fn with_each_source(
    bricks: usize,
    sources: BrickSet,
    has_data: &impl Fn(usize) -> bool,
) -> Vec<Direction> {
    let sinks = BrickSet::first(bricks).without(sources);
    if sinks.is_empty() {
        return Vec::new();
    }
    let readable = sources.iter().filter(|&i| has_data(i));
    readable.map(|source| Direction { source, sinks }).collect()
}
