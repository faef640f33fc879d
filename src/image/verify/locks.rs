//! AFR's data lock on a range, on several bricks at once, without ever waiting for one
//! while holding another.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::image::replica::brick_set::BrickSet;

use super::engine::Comparison;

impl Comparison<'_> {
    /// Takes AFR's data lock on those of `children` that are reached, on all of them
    /// or on none. `None`: not within `limit`, or what is left for the round.
    pub(super) fn lock(
        &mut self,
        span: &Range<u64>,
        children: BrickSet,
        limit: Duration,
    ) -> Option<BrickSet> {
        if let Some(locked) = self.try_lock(span, children) {
            return Some(locked);
        }
        // Whoever keeps us waiting may be waiting for one of these.
        self.land_all();
        let begin = self.options.clock.now();
        let until = begin + limit.min(self.patience);
        let locked = self.queue(span, children, until);
        if locked.is_none() {
            let waited = self.options.clock.now().saturating_sub(begin);
            self.patience = self.patience.saturating_sub(waited);
        }
        locked
    }

    /// Queues on one brick after the other, in child order as AFR's clients do, so that
    /// no two can wait for each other. To try again and again instead would never
    /// succeed against a client that writes all the time: it takes the lock anew as
    /// soon as it has given it back.
    fn queue(
        &mut self,
        span: &Range<u64>,
        children: BrickSet,
        until: Duration,
    ) -> Option<BrickSet> {
        let mut locked = BrickSet::EMPTY;
        for child in children.iter() {
            let left = until.saturating_sub(self.options.clock.now());
            let stopped = self.options.stop.load(Ordering::Relaxed);
            let answer = match self.brick(child) {
                Some(_) if left.is_zero() || stopped => Ok(false),
                Some(brick) => brick.wait_lock(span.clone(), left),
                None => continue,
            };
            match answer {
                Ok(true) => locked.insert(child),
                Ok(false) => {
                    self.unlock(span, locked);
                    return None;
                }
                Err(error) => self.lose(child, &error),
            }
        }
        Some(locked)
    }

    fn try_lock(&mut self, span: &Range<u64>, children: BrickSet) -> Option<BrickSet> {
        let mut locked = BrickSet::EMPTY;
        for child in children.iter() {
            let answer = self.brick(child).map(|brick| brick.try_lock(span.clone()));
            match answer {
                Some(Ok(true)) => locked.insert(child),
                Some(Ok(false)) => {
                    self.unlock(span, locked);
                    return None;
                }
                Some(Err(error)) => self.lose(child, &error),
                None => {}
            }
        }
        Some(locked)
    }

    /// A lock that cannot be given back goes with its connection.
    pub(super) fn unlock(&mut self, span: &Range<u64>, locked: BrickSet) {
        for child in locked.iter() {
            let answer = self.brick(child).map(|brick| brick.unlock(span.clone()));
            if let Some(Err(error)) = answer {
                self.lose(child, &error);
            }
        }
    }
}
