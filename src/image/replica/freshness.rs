//! May the local copy be opened, and in what state are the copies?
//!
//! A pure function over what every brick said, and its typed refusals. Called
//! once the locks are held, so that what was read stays true. It opens nothing
//! and asks nobody. The rules are those of the design's invariant 3: a copy
//! that any reachable brick accuses is never served, and no copy is served when
//! fewer than a quorum answer.

use uuid::Uuid;

use super::brick_set::{BrickSet, Shape};

/// What one brick told about its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Not reached, or reached but without the image.
    Away,
    /// The brick answered under its locks.
    Copy {
        /// Gluster's identity of the file.
        gfid: Uuid,
        /// Size in bytes (an arbiter's is always 0).
        size: u64,
        /// The bricks whose copies this brick says miss data: non-zero data
        /// counters in `trusted.afr.*`.
        accuses: BrickSet,
    },
}

/// The state in which the local copy may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The copies that some reachable brick accuses: peers that miss data of
    /// an earlier session. Empty when all copies are equal.
    pub behind: BrickSet,
}

/// Why the local copy may not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Fewer bricks than a quorum answered.
    NoQuorum {
        /// The bricks that did answer.
        reached: BrickSet,
    },
    /// The process of the local brick did not answer, so its marks cannot be
    /// kept in its index.
    LocalAway,
    /// The bricks do not agree which file this path names.
    IdentitiesDiffer {
        /// The bricks whose gfid is not the local brick's.
        others: BrickSet,
    },
    /// Copies that nobody accuses have different sizes: a truncate or extend is
    /// not healed yet.
    SizesDiffer {
        /// The bricks whose size is not the local brick's.
        others: BrickSet,
    },
    /// The local copy misses data that another copy has.
    Stale {
        /// The copies that nobody reachable accuses, reached or not.
        fresh: BrickSet,
        /// Who says so.
        accusers: BrickSet,
    },
    /// Every copy is accused: none can be called the fresh one.
    SplitBrain {
        /// The local copy's accusers.
        accusers: BrickSet,
    },
}

/// Decides over the answers of all bricks, `seen[i]` being child `i`'s.
///
/// # Errors
/// The [`Refusal`] that forbids opening, the most fundamental first.
pub fn decide(shape: &Shape, seen: &[Seen]) -> Result<Opening, Refusal> {
    let reached = reached(seen);
    if !shape.is_quorum(reached) {
        return Err(Refusal::NoQuorum { reached });
    }
    let Some(Seen::Copy { gfid, size, .. }) = seen.get(shape.local).copied() else {
        return Err(Refusal::LocalAway);
    };
    let others = differing(seen, reached, |copy_gfid, _| copy_gfid != gfid);
    if !others.is_empty() {
        return Err(Refusal::IdentitiesDiffer { others });
    }

    let accused = accused(shape, seen);
    let accusers = accusers_of(seen, shape.local);
    if accused.contains(shape.local) {
        let fresh = shape.copies().without(accused);
        return Err(if fresh.is_empty() {
            Refusal::SplitBrain { accusers }
        } else {
            Refusal::Stale { fresh, accusers }
        });
    }

    let comparable = intersection(reached, shape.copies().without(accused));
    let others = differing(seen, comparable, |_, copy_size| copy_size != size);
    if !others.is_empty() {
        return Err(Refusal::SizesDiffer { others });
    }
    Ok(Opening { behind: accused })
}

/// The copies accused by any reachable brick. A brick that accuses itself is
/// believed about others too: AFR's heal ignores such a brick
/// (`afr_selfheal_find_direction`), its read path does not (`afr_accused_fill`).
fn accused(shape: &Shape, seen: &[Seen]) -> BrickSet {
    let mut accused = BrickSet::EMPTY;
    for copy in seen {
        if let Seen::Copy { accuses, .. } = copy {
            accused = accused.iter().chain(accuses.iter()).collect();
        }
    }
    intersection(accused, shape.copies())
}

fn accusers_of(seen: &[Seen], brick: usize) -> BrickSet {
    let accuses =
        |copy: &Seen| matches!(copy, Seen::Copy { accuses, .. } if accuses.contains(brick));
    (0..seen.len()).filter(|&i| accuses(&seen[i])).collect()
}

fn reached(seen: &[Seen]) -> BrickSet {
    (0..seen.len())
        .filter(|&i| !matches!(seen[i], Seen::Away))
        .collect()
}

fn differing(seen: &[Seen], among: BrickSet, differs: impl Fn(Uuid, u64) -> bool) -> BrickSet {
    let differs = |i: &usize| matches!(seen.get(*i), Some(Seen::Copy { gfid, size, .. }) if differs(*gfid, *size));
    among.iter().filter(differs).collect()
}

fn intersection(a: BrickSet, b: BrickSet) -> BrickSet {
    a.iter().filter(|&brick| b.contains(brick)).collect()
}

#[cfg(test)]
mod tests;
