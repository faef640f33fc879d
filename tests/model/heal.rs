//! The stock self-heal of GlusterFS 10.3 as far as a file's data goes: which
//! copies are sources, which are overwritten.
//!
//! Follows `afr_selfheal_find_direction`, `afr_selfheal_post_op_failure_accounting`
//! (afr-self-heal-common.c), `__afr_selfheal_data_finalize_source` and
//! `afr_mark_active_sinks`. Counters are 0 or 1 here, as sessions add only what is
//! missing. Where AFR looks at times or at who is near, every choice is possible.

use bypass_blk::image::bricks::BrickSet;

use super::setting::Setting;
use super::world::BRICKS;

/// One way in which the heal may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// The copy that is read.
    pub source: usize,
    /// The copies that are overwritten.
    pub sinks: BrickSet,
}

/// All ways in which a heal may go with the marks `rows`. Empty when there is
/// nothing to heal, or when AFR sees a split-brain.
pub fn directions(setting: &Setting, rows: &[BrickSet; BRICKS]) -> Vec<Direction> {
    let innocent = less_accused_than(setting, rows, 1);
    let judges = innocent.iter().filter(|&i| !is_fool(rows, i));
    let sinks: BrickSet = judges.flat_map(|i| rows[i].iter()).collect();
    let sources = if innocent.is_empty() {
        less_accused_than(setting, rows, setting.bricks / 2 + 1)
    } else {
        innocent
    };
    if sources.is_empty() || sinks == BrickSet::first(setting.bricks) {
        return Vec::new();
    }
    let chosen = final_sources(rows, sources).into_iter();
    chosen
        .flat_map(|sources| with_each_source(setting, sources))
        .collect()
}

/// Bricks with fewer accusers than `limit`; one that accuses itself is not
/// listened to.
fn less_accused_than(setting: &Setting, rows: &[BrickSet; BRICKS], limit: usize) -> BrickSet {
    let all = BrickSet::first(setting.bricks);
    let accuses = |by: usize, of: usize| !is_fool(rows, by) && rows[by].contains(of);
    let accusers = |of: usize| all.iter().filter(|&by| accuses(by, of)).count();
    all.iter().filter(|&i| accusers(i) < limit).collect()
}

fn is_fool(rows: &[BrickSet; BRICKS], brick: usize) -> bool {
    rows[brick].contains(brick)
}

/// How much a brick that accuses itself is taken to have seen.
fn witness(rows: &[BrickSet; BRICKS], brick: usize) -> usize {
    if !is_fool(rows, brick) {
        return 0;
    }
    let on_others = |i: usize| rows[i].without(BrickSet::only(i)).len();
    let nobody_has_any = (0..BRICKS).all(|i| on_others(i) == 0);
    let own = usize::from(nobody_has_any || on_others(brick) > 0);
    on_others(brick) + own
}

/// With witnesses among the sources, one of those that saw the most: the one
/// whose file changed last, which may be any.
fn final_sources(rows: &[BrickSet; BRICKS], sources: BrickSet) -> Vec<BrickSet> {
    let most = sources.iter().map(|i| witness(rows, i)).max().unwrap_or(0);
    if most == 0 {
        return vec![sources];
    }
    let best = sources.iter().filter(|&i| witness(rows, i) == most);
    best.map(BrickSet::only).collect()
}

fn with_each_source(setting: &Setting, sources: BrickSet) -> Vec<Direction> {
    let sinks = BrickSet::first(setting.bricks).without(sources);
    if sinks.is_empty() {
        return Vec::new();
    }
    let readable = sources.iter().filter(|&i| setting.has_data(i));
    readable.map(|source| Direction { source, sinks }).collect()
}
