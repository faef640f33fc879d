//! AFR's data lock on a range, on several bricks at once, without ever waiting for one
//! while holding another.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::engine::Engine;
use crate::image::bricks::BrickSet;

/// The pause between two attempts for a lock; each makes the brick ask its holders to
/// give way.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
impl Engine<'_> {
    /// Takes AFR's data lock on those of `children` that are reached, on all of them
    /// or on none. `None`: not in the time that there is for it.
    pub(super) fn lock(
        &mut self,
        span: &Range<u64>,
        children: BrickSet,
        limit: Duration,
    ) -> Option<BrickSet> {
        let begin = self.options.clock.now();
        loop {
            if let Some(locked) = self.try_lock(span, children) {
                return Some(locked);
            }
            // Whoever keeps us waiting may be waiting for one of these.
            self.land_all();
            let waited = self.options.clock.now().saturating_sub(begin);
            if waited >= limit.min(self.patience) || self.options.stop.load(Ordering::Relaxed) {
                self.patience = self.patience.saturating_sub(waited);
                return None;
            }
            self.options.clock.sleep(LOCK_PAUSE);
        }
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
