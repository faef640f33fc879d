//! What is a hole of every copy is equal without a look at its bytes: a large image of
//! which little was ever written is verified in seconds.
//!
//! Part of the first round of the engine, with its rules: the map is asked before and
//! after the look, and the look is taken under AFR's data lock.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::image::holes::Measure;
use crate::image::replica::brick_set::BrickSet;

use super::engine::Comparison;
use super::situation::Debt;
use super::tally::Outcome;

impl Comparison<'_> {
    /// Where data begins, from this extent on; what is before it is settled.
    pub(super) fn skip_holes(&mut self, mut from: u64, extents: u64) -> u64 {
        while from < extents {
            match self.skip_hole(from, extents) {
                same if same == from => return from,
                next => from = next,
            }
        }
        from
    }

    /// Settles the extents from this one on that are a hole of all copies compared, if
    /// there are any; where to go on.
    fn skip_hole(&mut self, from: u64, extents: u64) -> u64 {
        let Some(hole) = self.hole_at(from, extents) else {
            return from;
        };
        // Room for the lock: nothing else is to be on its way.
        self.land_all();
        let span = self.bytes_of(&hole);
        let copies = self.copies();
        let Some(locked) = self.lock(&span, copies, self.options.lock_wait.each) else {
            return from;
        };
        let equal = self.compared == self.peers
            && self.is_clean_there(&hole)
            && self.data_from(span.start) >= span.end;
        if equal {
            for extent in hole.clone() {
                for child in self.peers.iter() {
                    self.settle_if_clean(child, extent, Outcome::Verified);
                }
            }
            self.options.progress.add(span.end - span.start);
        }
        self.unlock(&span, locked);
        if equal { hole.end } else { from }
    }

    /// The extents, clean for all copies, that look like a hole of all.
    fn hole_at(&self, from: u64, extents: u64) -> Option<Range<u64>> {
        let whole = self.compared == self.peers && self.short.is_empty();
        let stopped = self.options.stop.load(Ordering::Relaxed);
        if !whole || stopped || self.why_over().is_some() {
            return None;
        }
        let start = self.bytes_of(&(from..extents)).start;
        let measure = Measure {
            end: self.border(start),
            extent_size: self.extent_size,
        };
        let end = measure.reach(start, Some(self.data_from(start)))?;
        let last = measure.extents(from, end).end.min(extents);
        let is_clean = |extent: &u64| self.is_clean_there(&(*extent..extent + 1));
        let clean = (from..last).take_while(is_clean).last()?;
        Some(from..clean + 1)
    }

    /// Do all copies miss nothing there, with no write in flight?
    fn is_clean_there(&self, extents: &Range<u64>) -> bool {
        let clean = |child, extent| self.situation.debt(child, extent) == Debt::None;
        let mut extents = extents.clone();
        extents.all(|extent| self.peers.iter().all(|child| clean(child, extent)))
    }

    /// The first byte at or after this one that may be data on some copy.
    fn data_from(&self, offset: u64) -> u64 {
        let copies = self.copies();
        let data = |child: usize| match self.brick(child).map(|brick| brick.data_from(offset)) {
            Some(Ok(found)) => found,
            // It is compared, and what is wrong comes out.
            Some(Err(_)) | None => Some(offset),
        };
        copies.iter().filter_map(data).min().unwrap_or(u64::MAX)
    }

    fn copies(&self) -> BrickSet {
        self.peers.iter().chain([self.reference]).collect()
    }
}
