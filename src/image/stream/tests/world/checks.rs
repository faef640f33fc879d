//! What holds at every moment.

use super::map::peer;
use super::{EXTENTS, World};

impl World {
    pub(super) fn is_consistent(&self) -> bool {
        self.consistent_at
            .is_some_and(|at| self.applying.applied() >= at)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        for extent in 0..EXTENTS {
            let state = self.map.extent(extent).state();
            let at = extent as usize;
            let equal = self.durable[at] == self.local[at];
            if !state.is_dirty(peer()) && state.in_flight() == 0 && !equal {
                return Err(format!("extent {extent} is called clean"));
            }
        }
        match self.is_consistent() {
            true => self.check_consistent(),
            false => Ok(()),
        }
    }

    fn check_consistent(&self) -> Result<(), String> {
        let of = |extent: u64| {
            let here = |value: &&u64| self.values[*value].0.contains(&extent);
            let newest = self.applied.iter().filter(|value| **value != 0).rfind(here);
            newest.copied().unwrap_or(0)
        };
        if let Some(wrong) = (0..EXTENTS).find(|extent| self.peer[*extent as usize] != of(*extent))
        {
            return Err(format!("extent {wrong} is older than its last write"));
        }
        for value in self.applied.iter().filter(|value| **value != 0) {
            let Some(last) = self.values[value].1.checked_sub(1) else {
                continue;
            };
            if !self.flushes[last].is_subset(&self.applied) {
                return Err(format!("write {value} has overtaken a flush"));
            }
        }
        Ok(())
    }
}
