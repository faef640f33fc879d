//! Which bricks: a small set of child indices of one replica set, and AFR's
//! quorum rule over it.
//!
//! Pure values; used by the decision logic, the session machine and the status.

use std::fmt;

/// The largest replica set that a [`BrickSet`] can name. Gluster's own replica
/// counts are single digits.
pub const MAX_BRICKS: usize = 32;

/// A set of bricks by child index (the order of the volfile).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct BrickSet(u32);

impl BrickSet {
    /// No brick.
    pub const EMPTY: Self = Self(0);

    /// The bricks `0..count`. A count above [`MAX_BRICKS`] is cut to it.
    pub fn first(count: usize) -> Self {
        (0..count.min(MAX_BRICKS)).collect()
    }

    /// The set with one brick.
    pub fn only(brick: usize) -> Self {
        let mut set = Self::EMPTY;
        set.insert(brick);
        set
    }

    /// Adds a brick.
    pub fn insert(&mut self, brick: usize) {
        debug_assert!(brick < MAX_BRICKS);
        self.0 |= 1u32.checked_shl(brick as u32).unwrap_or(0);
    }

    /// Takes a brick out.
    pub fn remove(&mut self, brick: usize) {
        self.0 &= !1u32.checked_shl(brick as u32).unwrap_or(0);
    }

    /// Is the brick in the set?
    pub fn contains(self, brick: usize) -> bool {
        self.0 & 1u32.checked_shl(brick as u32).unwrap_or(0) != 0
    }

    /// Are all bricks of `other` in this set?
    pub fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// How many bricks.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// No brick at all?
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The bricks of this set that are not in `other`.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The child indices, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_BRICKS).filter(move |&brick| self.contains(brick))
    }
}

impl FromIterator<usize> for BrickSet {
    fn from_iter<I: IntoIterator<Item = usize>>(bricks: I) -> Self {
        let mut set = Self::EMPTY;
        for brick in bricks {
            set.insert(brick);
        }
        set
    }
}

impl fmt::Debug for BrickSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// How a replica set has changed since a session was opened on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetChange {
    /// Bricks that were added or came in the place of others: the session has no lock and
    /// no mark there, but whoever opens the image now counts them.
    pub came: usize,
    /// Bricks of the session's that nobody else counts any more.
    pub gone: BrickSet,
}

impl SetChange {
    /// It is as it was.
    pub const NONE: Self = Self {
        came: 0,
        gone: BrickSet::EMPTY,
    };
}

/// How a volume has changed since a session was opened on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeChange {
    /// The image's replica set.
    pub set: SetChange,
    /// AFR's names of the counters against copies that the session does not know.
    pub newcomers: Vec<String>,
    /// It has several replica sets now, and may move files from one to another.
    pub spreads: bool,
}

impl VolumeChange {
    /// It is as it was.
    pub const NONE: Self = Self {
        set: SetChange::NONE,
        newcomers: Vec::new(),
        spreads: false,
    };
}

/// A replica set as a session was opened on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Number of bricks, an arbiter included.
    pub bricks: usize,
    /// Child index of the brick whose file this session serves.
    pub local: usize,
    /// Child index of the arbiter, which stores names and marks but no data.
    pub arbiter: Option<usize>,
    /// What has become of it since.
    pub since: SetChange,
}

impl Shape {
    /// All bricks.
    pub fn all(&self) -> BrickSet {
        BrickSet::first(self.bricks)
    }

    /// The bricks that hold a copy of the data.
    pub fn copies(&self) -> BrickSet {
        let mut set = self.all();
        if let Some(arbiter) = self.arbiter {
            set.remove(arbiter);
        }
        set
    }

    /// The copies other than the local one: those that a direct write leaves
    /// behind. An arbiter has no data to miss, so it is never marked; it
    /// carries marks against the others like every brick.
    pub fn peers(&self) -> BrickSet {
        self.copies().without(BrickSet::only(self.local))
    }

    /// AFR's automatic quorum: more than half of the bricks that the set has now, or exactly
    /// half with the first brick among them (`afr_has_quorum`, afr-common.c).
    pub fn is_quorum(&self, set: BrickSet) -> bool {
        let SetChange { came, gone } = self.since;
        let there = set.without(gone);
        let all = (self.bricks + came).saturating_sub(gone.len());
        let twice = 2 * there.len();
        twice > all || (twice == all && there.contains(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(bricks: usize) -> Shape {
        Shape {
            bricks,
            local: 0,
            arbiter: None,
            since: SetChange::NONE,
        }
    }

    #[test]
    fn two_quorums_always_share_a_brick() {
        for bricks in 1..=6 {
            let shape = shape(bricks);
            let sets = (0..1u32 << bricks).map(BrickSet);
            let quorums: Vec<_> = sets.filter(|&s| shape.is_quorum(s)).collect();
            for &a in &quorums {
                for &b in &quorums {
                    assert!(!BrickSet(a.0 & b.0).is_empty(), "{bricks}: {a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn half_of_the_bricks_is_quorum_only_with_the_first() {
        assert!(shape(2).is_quorum(BrickSet::only(0)));
        assert!(!shape(2).is_quorum(BrickSet::only(1)));
        assert!(!shape(3).is_quorum(BrickSet::only(0)));
    }

    #[test]
    fn a_set_that_has_changed_since_counts_as_it_is_now() {
        let since = |came, gone: &[usize]| Shape {
            since: SetChange {
                came,
                gone: gone.iter().copied().collect(),
            },
            ..shape(2)
        };
        let (first, both) = (BrickSet::only(0), BrickSet::first(2));
        assert!(!since(1, &[]).is_quorum(first), "one of three");
        assert!(since(1, &[]).is_quorum(both), "two of three");
        assert!(since(1, &[1]).is_quorum(first), "one of two, and the first");
        assert!(!since(1, &[0]).is_quorum(both), "one of two, not the first");
    }

    #[test]
    fn an_arbiter_is_no_peer() {
        let shape = Shape {
            bricks: 3,
            local: 1,
            arbiter: Some(2),
            since: SetChange::NONE,
        };
        assert_eq!(shape.peers(), BrickSet::only(0));
    }

    #[test]
    fn an_index_out_of_range_is_in_no_set() {
        assert!(!BrickSet::first(MAX_BRICKS).contains(MAX_BRICKS));
        assert_eq!(BrickSet::first(1000).len(), MAX_BRICKS);
    }
}
