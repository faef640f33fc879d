//! Which extents are copied together. Pure arithmetic.
//!
//! A *stretch* is copied under one lock, and so lies in one file. It falls into *runs* of neighbours, each no
//! longer than one request takes; several runs are read and sent together, as a
//! *batch*; and a run falls into *parts* that are zero or are not.

use std::ops::Range;

use crate::image::dirty_map::geometry::Geometry;
use crate::image::layout::Layout;

/// The limits of one stretch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes to copy; one extent is always taken.
    pub bytes: u64,
    /// From its first byte to its last: what others find locked meanwhile.
    pub span: u64,
}

/// The first extents of `dirty`, which are in ascending order, up to the limits and to the
/// border of the file that they lie in.
pub fn stretch(
    dirty: impl Iterator<Item = u64>,
    geometry: &Geometry,
    layout: &Layout,
    limits: Limits,
) -> Vec<u64> {
    let mut extents = Vec::new();
    let mut end = u64::MAX;
    let mut room = limits.bytes;
    for extent in dirty {
        let bytes = geometry.bytes_of(extent);
        let length = bytes.end - bytes.start;
        if extents.is_empty() {
            end = bytes.start.saturating_add(limits.span);
            end = end.min(layout.border(bytes.start));
        } else if length > room || bytes.end > end {
            break;
        }
        room = room.saturating_sub(length);
        extents.push(extent);
    }
    extents
}

/// Neighbouring extents, as ranges of extents of at most `max` bytes each.
pub fn runs(extents: &[u64], geometry: &Geometry, max: u64) -> Vec<Range<u64>> {
    let most = (max / geometry.extent_size().bytes()).max(1);
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &extent in extents {
        match runs.last_mut() {
            Some(run) if run.end == extent && run.end - run.start < most => run.end += 1,
            _ => runs.push(extent..extent + 1),
        }
    }
    runs
}

/// Cuts `runs` into batches of at most `count` runs and of at most `max` bytes, or of one
/// run.
pub fn batches<'a>(
    runs: &'a [Range<u64>],
    geometry: &Geometry,
    count: usize,
    max: u64,
) -> Vec<&'a [Range<u64>]> {
    let mut batches = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (index, run) in runs.iter().enumerate() {
        let range = bytes_of(run, geometry);
        let length = range.end - range.start;
        if index > first && (index - first == count || length > max - bytes) {
            batches.extend(runs.get(first..index));
            (first, bytes) = (index, 0);
        }
        bytes = max.min(bytes + length);
    }
    batches.extend(runs.get(first..).filter(|rest| !rest.is_empty()));
    batches
}

/// The bytes of a range of extents.
pub fn bytes_of(extents: &Range<u64>, geometry: &Geometry) -> Range<u64> {
    let last = extents.end.saturating_sub(1);
    geometry.bytes_of(extents.start).start..geometry.bytes_of(last).end
}

/// Cuts `run` where `kind` changes from one extent to the next.
pub fn split<K: PartialEq>(run: Range<u64>, kind: impl Fn(u64) -> K) -> Vec<(K, Range<u64>)> {
    let mut parts: Vec<(K, Range<u64>)> = Vec::new();
    for extent in run {
        let kind = kind(extent);
        match parts.last_mut() {
            Some((last, part)) if *last == kind => part.end += 1,
            _ => parts.push((kind, extent..extent + 1)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::image::dirty_map::ExtentSize;
    use crate::image::layout::Pieces;

    const EXTENT: u64 = 4096;

    /// 100 extents, the last one of 512 bytes.
    fn geometry() -> Geometry {
        let extent = ExtentSize::new(EXTENT as u32).unwrap();
        Geometry::new(99 * EXTENT + 512, extent, 1).unwrap()
    }

    fn whole() -> Layout {
        Layout::new(Uuid::nil(), geometry().size(), None)
    }

    /// In files of so many extents.
    fn cut(extents: u64) -> Layout {
        let size = extents * EXTENT;
        let gfids = vec![Uuid::nil(); Layout::count(geometry().size(), size) as usize - 1];
        let pieces = Pieces { size, gfids };
        Layout::new(Uuid::nil(), geometry().size(), Some(&pieces))
    }

    proptest! {
        #[test]
        fn stretches_cross_no_border_and_leave_nothing_out(
            dirty in proptest::collection::btree_set(0u64..100, 0..60),
            piece in 1u64..40, bytes in 0u64..30, span in 0u64..60,
        ) {
            let (geometry, layout) = (geometry(), cut(piece));
            let limits = Limits { bytes: bytes * EXTENT, span: span * EXTENT };
            let dirty: Vec<u64> = dirty.into_iter().collect();
            let mut rest = dirty.as_slice();
            while !rest.is_empty() {
                let some = stretch(rest.iter().copied(), &geometry, &layout, limits);
                prop_assert!(!some.is_empty());
                prop_assert_eq!(&some[..], &rest[..some.len()]);
                let files = some.iter().map(|extent| extent / piece);
                prop_assert!(files.clone().all(|file| Some(file) == files.clone().next()));
                let in_one = stretch(rest.iter().copied(), &geometry, &whole(), limits);
                prop_assert!(in_one.starts_with(&some));
                rest = &rest[some.len()..];
            }
        }
    }

    fn first_stretch(dirty: &[u64], bytes: u64, span: u64) -> Vec<u64> {
        let limits = Limits {
            bytes: bytes * EXTENT,
            span: span * EXTENT,
        };
        stretch(dirty.iter().copied(), &geometry(), &whole(), limits)
    }

    #[test]
    fn a_stretch_ends_at_its_bytes_and_at_its_span() {
        assert_eq!(first_stretch(&[1, 2, 9, 10], 3, 50), [1, 2, 9]);
        assert_eq!(first_stretch(&[1, 2, 9, 10], 50, 9), [1, 2, 9]);
        assert_eq!(first_stretch(&[98, 99], 50, 2), [98, 99]);
        assert_eq!(first_stretch(&[], 50, 50), Vec::<u64>::new());
    }

    #[test]
    fn a_stretch_has_an_extent_however_low_the_limits() {
        assert_eq!(first_stretch(&[7, 8], 0, 0), [7]);
    }

    #[test]
    fn runs_are_neighbours_of_limited_length() {
        let runs = runs(&[1, 2, 3, 5, 6, 9], &geometry(), 2 * EXTENT);
        assert_eq!(runs, [1..3, 3..4, 5..7, 9..10]);
    }

    #[test]
    fn an_extent_above_the_limit_is_a_run_of_its_own() {
        assert_eq!(runs(&[1, 2], &geometry(), 1), [1..2, 2..3]);
    }

    #[test]
    fn a_batch_ends_at_its_number_of_runs_and_at_its_bytes() {
        let runs = [0..1, 2..4, 5..6, 7..8, 9..18, 20..21];
        let cut = |count, extents| {
            let batches = batches(&runs, &geometry(), count, extents * EXTENT);
            assert_eq!(batches.concat(), runs);
            batches.iter().map(|batch| batch.len()).collect::<Vec<_>>()
        };
        assert_eq!(cut(9, 99), [6]);
        assert_eq!(cut(2, 99), [2, 2, 2]);
        assert_eq!(cut(9, 3), [2, 2, 1, 1]);
        assert_eq!(cut(1, 99), [1; 6]);
        assert!(batches(&[], &geometry(), 9, 9).is_empty());
    }

    #[test]
    fn bytes_end_with_the_image() {
        assert_eq!(
            bytes_of(&(98..100), &geometry()),
            98 * EXTENT..99 * EXTENT + 512
        );
    }

    #[test]
    fn a_run_is_cut_where_its_kind_changes() {
        let parts = split(3..9, |extent| extent == 5 || extent == 6);
        assert_eq!(parts, [(false, 3..5), (true, 5..7), (false, 7..9)]);
    }
}
