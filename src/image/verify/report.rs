//! What verifying found: every byte of every copy is in one of the report's figures.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The most ranges of one copy that are listed; more are only counted.
pub const MAX_RANGES: usize = 1000;

/// The outcome for one image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Child index of the copy that the others were compared with.
    pub reference: usize,
    /// The image's size in bytes.
    pub size: u64,
    /// Bytes of the parts to which differences were narrowed.
    pub extent_size: u64,
    /// When it began, in seconds since the epoch.
    pub when: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Why it ended early, if it did.
    pub ended_early: Option<String>,
    /// The copies, in child order, without an arbiter.
    pub copies: Vec<CopyReport>,
    /// A repair was asked for, and every difference was taken.
    pub repaired: bool,
}

/// The outcome for one copy. The reference's figures are 0; of any other `verified`, the differences within the image, `behind`,
/// `busy` and `not_verified` together are the image's size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    /// Its child index.
    pub child: usize,
    /// `host:path` of its brick.
    pub brick: String,
    /// What it was in this comparison.
    pub state: CopyVerdict,
    /// Bytes found equal to the reference's.
    pub verified: u64,
    /// What differs.
    pub differing: Differences,
    /// Bytes known to be behind, which is no difference.
    pub behind: u64,
    /// Bytes that were being written to, or locked by others, each time.
    pub busy: u64,
    /// Bytes not compared, for [`CopyReport::why`].
    pub not_verified: u64,
    /// Why there are bytes not compared.
    pub why: Option<String>,
}

/// What a copy was in a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyVerdict {
    /// The others were compared with it.
    Reference,
    /// It was compared.
    Compared,
    /// The marks say that it misses data: not compared, all of it is behind.
    Stale,
    /// Its brick was not reached, or lost on the way.
    Away,
}

/// Bytes in which a copy differs from the reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// The ranges (byte offsets, the end excluded), ascending, neighbours put
    /// together, at most [`MAX_RANGES`].
    pub ranges: Vec<Range<u64>>,
    /// Differing bytes, those of ranges not listed included. Whole extents: one byte
    /// that differs counts as its extent.
    pub bytes: u64,
    /// Ranges found when the list was full.
    pub not_listed: u64,
}

impl Differences {
    /// Adds bytes that no range covers yet.
    pub(super) fn add(&mut self, new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        self.bytes = self.bytes.saturating_add(new.end - new.start);
        let at = self.ranges.partition_point(|range| range.end < new.start);
        let until = self.ranges.partition_point(|range| range.start <= new.end);
        match self.ranges.get(at..until) {
            // Its neighbours on both sides become one with it.
            Some([first, .., last]) => {
                let all = first.start.min(new.start)..last.end.max(new.end);
                self.ranges.splice(at..until, [all]);
            }
            Some([one]) => {
                let all = one.start.min(new.start)..one.end.max(new.end);
                self.ranges.splice(at..until, [all]);
            }
            _ if self.ranges.len() >= MAX_RANGES => self.not_listed += 1,
            _ => self.ranges.insert(at, new),
        }
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Report {
    /// Some copy differs where nothing says that it is behind.
    pub fn differs(&self) -> bool {
        self.copies.iter().any(|copy| !copy.differing.is_empty())
    }

    /// Every copy was compared, but for bytes that the dirty map knows to be behind.
    /// A copy that is stale as a whole was not.
    pub fn is_complete(&self) -> bool {
        let complete = |copy: &CopyReport| {
            let compared = matches!(copy.state, CopyVerdict::Reference | CopyVerdict::Compared);
            compared && copy.busy == 0 && copy.not_verified == 0
        };
        self.ended_early.is_none() && self.copies.iter().all(complete)
    }

    /// Bytes that were not compared because they are known to be behind, of all copies
    /// together.
    pub fn behind(&self) -> u64 {
        let behind = self.copies.iter().map(|copy| copy.behind);
        behind.fold(0, u64::saturating_add)
    }

    /// Not a byte of any copy was compared.
    pub fn is_empty(&self) -> bool {
        let compared = |copy: &CopyReport| copy.verified > 0 || !copy.differing.is_empty();
        !self.copies.iter().any(compared)
    }

    /// Every byte of every copy was compared, and none differs.
    pub fn is_equal(&self) -> bool {
        !self.differs() && self.is_complete() && self.behind() == 0
    }

    /// What is kept of it.
    pub fn record(&self) -> VerifyRecord {
        let compared = |copy: &&CopyReport| copy.state != CopyVerdict::Reference;
        let peers = || self.copies.iter().filter(compared);
        VerifyRecord {
            when: self.when,
            seconds: self.seconds as u64,
            bytes_verified: peers().map(|copy| copy.verified).sum(),
            bytes_differing: peers()
                .fold(0, |sum: u64, copy| sum.saturating_add(copy.differing.bytes)),
            bytes_behind: self.behind(),
            complete: self.is_complete(),
            repaired: self.repaired,
        }
    }
}

/// When an image was last verified, and what came out; kept in the state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRecord {
    /// When it began, in seconds since the epoch.
    pub when: u64,
    /// How many seconds it took.
    pub seconds: u64,
    /// Bytes found equal to the reference's, of all other copies together.
    pub bytes_verified: u64,
    /// Bytes that differ, of all other copies together.
    pub bytes_differing: u64,
    /// See [`Report::behind`].
    #[serde(default)]
    pub bytes_behind: u64,
    /// See [`Report::is_complete`].
    pub complete: bool,
    /// What differed was handed over to be healed.
    pub repaired: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ranges: &[Range<u64>]) -> Differences {
        let mut differences = Differences::default();
        for range in ranges {
            differences.add(range.clone());
        }
        differences
    }

    #[test]
    fn neighbours_become_one_range_in_whatever_order_they_come() {
        let one = [0..4, 4..8, 8..12];
        for order in [[0, 1, 2], [2, 1, 0], [0, 2, 1], [2, 0, 1]] {
            let found = all(&order.map(|i| one[i].clone()));
            assert_eq!((found.ranges, found.bytes), (vec![0..12], 12));
        }
        assert_eq!(all(&[8..9, 0..4]).ranges, [0..4, 8..9]);
    }

    #[test]
    fn a_full_list_still_counts() {
        let apart: Vec<_> = (0..MAX_RANGES as u64 + 5)
            .map(|i| 2 * i..2 * i + 1)
            .collect();
        let found = all(&apart);
        assert_eq!(found.ranges.len(), MAX_RANGES);
        assert_eq!((found.not_listed, found.bytes), (5, MAX_RANGES as u64 + 5));
    }
}
