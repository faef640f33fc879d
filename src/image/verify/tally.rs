//! The account of an image: every byte of every copy is settled once.

use std::collections::BTreeMap;
use std::ops::Range;

use super::report::{CopyReport, CopyVerdict, Differences};

/// What became of some bytes of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Equal to the reference's.
    Verified,
    /// Different from it, though nothing says that the copy is behind.
    Differs,
    /// Known to miss data.
    Behind,
    /// Written to, or locked by others, each time.
    Busy,
    /// Not compared.
    NotVerified,
}

/// One entry per data copy.
#[derive(Debug, Default)]
pub struct Tally {
    copies: BTreeMap<usize, CopyReport>,
}

impl Tally {
    /// A new copy.
    pub fn open(&mut self, child: usize, brick: String, state: CopyVerdict) {
        let entry = CopyReport {
            child,
            brick,
            state,
            verified: 0,
            differing: Differences::default(),
            behind: 0,
            busy: 0,
            not_verified: 0,
            why: None,
        };
        self.copies.insert(child, entry);
    }

    /// The copies opened in this state.
    pub fn in_state(&self, state: CopyVerdict) -> Vec<usize> {
        let copies = self.copies.values();
        copies
            .filter(|copy| copy.state == state)
            .map(|copy| copy.child)
            .collect()
    }

    /// The copy is something else than it was; what it was, if it is a copy.
    pub fn change(&mut self, child: usize, state: CopyVerdict) -> Option<CopyVerdict> {
        let copy = self.copies.get_mut(&child)?;
        Some(std::mem::replace(&mut copy.state, state))
    }

    /// `host:path` of its brick.
    pub fn name(&self, child: usize) -> String {
        let copy = self.copies.get(&child);
        copy.map_or_else(|| format!("brick {child}"), |copy| copy.brick.clone())
    }

    /// Why some of its bytes are not verified.
    pub fn why_not(&self, child: usize) -> String {
        let why = self.copies.get(&child).and_then(|copy| copy.why.clone());
        why.unwrap_or_else(|| "no answer".to_owned())
    }

    /// Why some of its bytes are, or will be, not verified; the first reason stays.
    pub fn explain(&mut self, child: usize, why: &str) {
        if let Some(copy) = self.copies.get_mut(&child) {
            copy.why.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Bytes that were not settled before.
    pub fn settle(&mut self, child: usize, bytes: Range<u64>, outcome: Outcome) {
        let Some(copy) = self.copies.get_mut(&child) else {
            return;
        };
        let count = bytes.end.saturating_sub(bytes.start);
        match outcome {
            Outcome::Verified => copy.verified += count,
            Outcome::Differs => copy.differing.add(bytes),
            Outcome::Behind => copy.behind += count,
            Outcome::Busy => copy.busy += count,
            Outcome::NotVerified => copy.not_verified += count,
        }
    }

    /// All entries, in child order.
    pub fn close(self) -> Vec<CopyReport> {
        self.copies.into_values().collect()
    }
}
