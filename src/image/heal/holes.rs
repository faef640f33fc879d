//! What is a hole of the local file and of the peer's is equal, and neither read nor
//! compared: a large image of which little was ever written takes seconds.
//!
//! Part of the engine's pass. Whether it is a hole is looked at under the lock and after
//! the copy was begun, as bytes are read; why, is said in [`super::engine`].

use std::ops::Range;

use super::engine::Engine;
use super::error::HealError;
use super::pass::{Pass, PassEnd};
use super::progress::Figures;
use crate::image::holes::Measure;

impl Engine {
    /// The extents from this one on that lie in a hole of both copies, as it looks now.
    pub(super) fn hole_at(&self, extent: u64) -> Result<Option<Range<u64>>, HealError> {
        let geometry = self.healer.map().geometry();
        let start = geometry.bytes_of(extent).start;
        let measure = Measure {
            end: self.layout.border(start),
            extent_size: geometry.extent_size().bytes(),
        };
        let Some(here) = measure.reach(start, self.local.data_from(start)) else {
            return Ok(None);
        };
        let there = self.peer.data_from(start)?;
        let end = there.map_or(here, |data| data.min(here));
        let hole = measure.extents(extent, end);
        Ok((!hole.is_empty()).then_some(hole))
    }

    /// Under the lock, what is dirty of a hole is equal as it is, if it still is a hole
    /// of both copies: whether it was.
    pub(super) fn hole(
        &mut self,
        extents: &Range<u64>,
        pass: &mut Pass,
    ) -> Result<(PassEnd, bool), HealError> {
        let span = self.bytes_of(extents);
        let within = |extent: &u64| extents.contains(extent);
        let dirty: Vec<_> = self.dirty_from(extents.start).take_while(within).collect();
        let extent_size = self.healer.map().geometry().extent_size().bytes();
        let mut equal = false;
        let end = self.under_lock(span.clone(), |engine| {
            let begin = |extent: &u64| engine.healer.begin_copy(engine.id, *extent);
            let (begun, busy): (Vec<u64>, Vec<u64>) = dirty.iter().partition(|e| begin(e));
            // Only now: no write to what was begun goes unnoticed from here on.
            let here = engine.local.data_from(span.start);
            let there = engine.peer.data_from(span.start);
            equal =
                is_hole(here, &span) && there.as_ref().is_ok_and(|there| is_hole(*there, &span));
            if !equal {
                let abandon = |extent| engine.healer.abandon_copy(engine.id, extent);
                begun.into_iter().for_each(abandon);
                return there.map(drop).map_err(HealError::from);
            }
            engine.leave_for_later(&busy, pass);
            engine.note_unsynced(&begun);
            engine.options.progress.add(Figures {
                bytes_compared: begun.len() as u64 * extent_size,
                ..Figures::default()
            });
            engine.begun.extend(begun);
            Ok(())
        })?;
        self.accepted = self.begun.len();
        self.commit_if_due(pass)?;
        Ok((end, equal))
    }
}

/// Is there no data in `span`, when the first at or after its start is there?
fn is_hole(data: Option<u64>, span: &Range<u64>) -> bool {
    data.is_none_or(|data| data >= span.end)
}
