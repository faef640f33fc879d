//! Which stretch of an image is worth to be taken as a hole, by a healer and by a
//! comparison, instead of reading its bytes.
//!
//! Arithmetic only; whether there is a hole, and under which lock, is the caller's.

use std::ops::Range;

/// The most of a hole that is locked at once, in bytes: it takes no longer.
const SPAN: u64 = 1 << 30;
/// A hole below this is taken like data.
const SMALLEST: u64 = 1 << 20;

/// How far a hole may reach, and how fine it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// Where the image's file ends that is looked at, on the disk, in bytes: there is a border
    /// of extents, or the end of the disk.
    pub end: u64,
    /// In bytes.
    pub extent_size: u64,
}

impl Measure {
    /// How far a hole that begins at byte `start` counts, when data follows at `data`, or
    /// none does; `None`: it is too small to be of use.
    pub fn reach(self, start: u64, data: Option<u64>) -> Option<u64> {
        let reach = self.end.min(start.saturating_add(SPAN));
        let end = data.map_or(reach, |data| data.min(reach));
        (end >= (start + SMALLEST).min(self.end)).then_some(end)
    }

    /// The whole extents from this one on that end by byte `end`.
    pub fn extents(self, from: u64, end: u64) -> Range<u64> {
        let last = match end == self.end {
            true => end.div_ceil(self.extent_size),
            false => end / self.extent_size,
        };
        from..last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_counts_from_a_mebibyte_to_a_gibibyte_and_by_whole_extents() {
        let image = Measure {
            end: (3 << 30) + 512,
            extent_size: 4096,
        };
        assert_eq!(image.reach(0, Some(1 << 20)), Some(1 << 20));
        assert_eq!(image.reach(0, Some((1 << 20) - 1)), None);
        assert_eq!(image.reach(0, None), Some(1 << 30));
        assert_eq!(
            image.reach(3 << 30, None),
            Some(image.end),
            "all that is left"
        );
        assert_eq!(image.extents(2, 3 * 4096 + 1), 2..3);
        assert_eq!(image.extents(2, image.end), 2..(3 << 18) + 1);
        assert!(image.extents(2, 4096).is_empty());
    }
}
