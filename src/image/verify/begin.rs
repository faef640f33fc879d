//! The beginning: which copy is the reference, which are compared with it, how long
//! each is.

use std::collections::BTreeMap;

use std::ops::Range;

use crate::image::layout::FileIndex;
use crate::image::replica::brick_set::BrickSet;

use super::brick::{CopyMarks, WHOLE};
use super::engine::Comparison;
use super::error::VerifyError;
use super::report::CopyVerdict;
use super::situation::Situation;
use super::tally::Outcome;

/// What the bricks said, by child index.
type States = BTreeMap<usize, CopyMarks>;

impl Comparison<'_> {
    /// Chooses the reference and the copies to compare with it.
    pub(super) fn begin(&mut self) -> Result<(), VerifyError> {
        let mut states = self.look(&WHOLE);
        if matches!(self.situation, Situation::Unserved) && self.sizes_differ(&states) {
            // Perhaps a client is just changing the size.
            let all = self.bricks.keys().copied().collect();
            let locked = self.lock(&WHOLE, all, self.options.lock_wait.all);
            let locked = locked.ok_or(VerifyError::Locked)?;
            states = self.look(&WHOLE);
            self.unlock(&WHOLE, locked);
        }
        let stale = match &self.situation {
            Situation::Served(served) => {
                self.reference = served.job().local;
                self.size = served.map().geometry().size();
                BrickSet::EMPTY
            }
            Situation::Unserved => {
                let stale = accused(&states);
                self.reference = self.fresh(&stale, &states)?;
                self.size = states.get(&self.reference).map_or(0, |copy| copy.size);
                stale
            }
        };
        self.options.progress.begin(self.size);
        self.check_reference(&states)?;
        self.tally.change(self.reference, CopyVerdict::Reference);
        for child in self.tally.in_state(CopyVerdict::Away) {
            self.tally.settle(child, 0..self.size, Outcome::NotVerified);
        }
        for child in self.tally.in_state(CopyVerdict::Compared) {
            if stale.contains(child) {
                self.tally.change(child, CopyVerdict::Stale);
                self.explain_stale(child, &states);
                self.tally.settle(child, 0..self.size, Outcome::Behind);
            } else {
                self.peers.insert(child);
                self.compared.insert(child);
                self.note_size(child, &states);
            }
        }
        self.cut_off();
        Ok(())
    }

    /// The first copy that was reached and is not accused.
    fn fresh(&self, stale: &BrickSet, states: &States) -> Result<usize, VerifyError> {
        let reached = self.tally.in_state(CopyVerdict::Compared);
        if reached.is_empty() {
            let away = self.tally.in_state(CopyVerdict::Away);
            let away = away.iter().map(|&child| self.tally.why_not(child));
            return Err(VerifyError::NoCopy {
                why: away.collect::<Vec<_>>().join("; "),
            });
        }
        let fresh = reached.iter().find(|child| !stale.contains(**child));
        fresh.copied().ok_or_else(|| {
            let accuses = |(child, copy): (&usize, &CopyMarks)| {
                let file = copy.accused.values().next()?;
                Some(format!(
                    "{}{}",
                    self.tally.name(*child),
                    self.on_shard(*file)
                ))
            };
            VerifyError::NoReference {
                accusers: states
                    .iter()
                    .filter_map(accuses)
                    .collect::<Vec<_>>()
                    .join(", "),
            }
        })
    }

    /// Which file of several says so, in words to put after the brick's name.
    fn on_shard(&self, file: FileIndex) -> String {
        match (self.layout.is_whole(), file) {
            (true, _) => String::new(),
            (false, FileIndex(number)) => format!(" (on shard {number})"),
        }
    }

    /// Of an image in several files one is enough; which, and who says so.
    fn explain_stale(&mut self, child: usize, states: &States) {
        let by = |(by, copy): (&usize, &CopyMarks)| Some((*by, *copy.accused.get(&child)?));
        let first = states.iter().filter_map(by).min_by_key(|(_, file)| *file);
        if let Some((by, file)) = first.filter(|_| !self.layout.is_whole()) {
            let why = format!("marked by {}{}", self.tally.name(by), self.on_shard(file));
            self.tally.explain(child, &why);
        }
    }

    /// Do copies that nobody accuses differ in size?
    fn sizes_differ(&self, states: &States) -> bool {
        let stale = accused(states);
        let reached = self.tally.in_state(CopyVerdict::Compared);
        let fresh = reached.iter().filter(|child| !stale.contains(**child));
        let mut sizes = fresh.filter_map(|child| Some(states.get(child)?.size));
        let first = sizes.next();
        sizes.any(|size| Some(size) != first)
    }

    fn check_reference(&self, states: &States) -> Result<(), VerifyError> {
        let brick = self.tally.name(self.reference);
        match states.get(&self.reference) {
            Some(state) if state.size == self.size => Ok(()),
            Some(state) => Err(VerifyError::Size {
                brick,
                expected: self.size,
                found: state.size,
            }),
            None => Err(VerifyError::ReferenceAway {
                brick,
                why: self.tally.why_not(self.reference),
            }),
        }
    }

    /// A copy of another size differs where only one of the two has bytes. Of a served
    /// image only the healer changes a peer's size, and the map tells where that is due.
    fn note_size(&mut self, child: usize, states: &States) {
        let Some(found) = states.get(&child).map(|copy| copy.size) else {
            return;
        };
        match &self.situation {
            Situation::Served(served) if served.is_behind(child) => {}
            _ if found > self.size => {
                self.tally.settle(child, self.size..found, Outcome::Differs);
                // Nothing of it is in the image: no extent can be made dirty for it.
                self.unrepaired = true;
            }
            Situation::Unserved if found < self.size => {
                self.short.insert(child, found);
            }
            _ => {}
        }
    }

    /// Bytes of the image that no other copy reaches are different in all of them,
    /// however many the reference says it has.
    fn cut_off(&mut self) {
        let size_of = |child| self.short.get(&child).copied().unwrap_or(self.size);
        let Some(longest) = self.compared.iter().map(size_of).max() else {
            return;
        };
        let whole = longest.checked_next_multiple_of(self.extent_size);
        self.reach = whole.unwrap_or(self.size).min(self.size);
        for child in self.compared.iter() {
            let beyond = self.reach..self.size;
            self.tally.settle(child, beyond, Outcome::Differs);
        }
    }

    /// What every brick says now; those that do not answer are lost.
    fn look(&mut self, part: &Range<u64>) -> States {
        let mut states = States::new();
        let mut lost = Vec::new();
        for (&child, brick) in &self.bricks {
            match brick.state(part) {
                Ok(state) => drop(states.insert(child, state)),
                Err(error) => lost.push((child, error)),
            }
        }
        for (child, error) in lost {
            self.lose(child, &error);
        }
        states
    }

    /// The copies that miss data by the marks of the files that `part` lies in.
    pub(super) fn accused_now(&mut self, part: &Range<u64>) -> BrickSet {
        accused(&self.look(part))
    }
}

/// The copies that somebody says miss data.
fn accused(states: &States) -> BrickSet {
    let accused = states.values().flat_map(|copy| copy.accused.keys());
    accused.copied().collect()
}
