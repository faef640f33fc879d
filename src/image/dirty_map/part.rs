//! The same operations on a part of the image: one of the files that it is made of. They
//! read that part of the map alone.

use std::ops::Range;

use super::extent::{Extent, LANES, Peers};
use super::map::DirtyMap;
use super::scan::Scan;

impl DirtyMap {
    /// The peers that miss anything in these bytes of the image.
    pub fn behind_in(&self, bytes: Range<u64>) -> Peers {
        let all = self.geometry().all_peers().dirty_bits();
        let found = self.part(bytes, |scan| scan.any(all), |extent| extent.state().bits());
        Peers::of_dirty_bits(found.into_iter().fold(0, |found, bits| found | bits & all))
    }

    /// Is a write in flight in these bytes of the image?
    pub fn in_flight_in(&self, bytes: Range<u64>) -> bool {
        let count = |extent: Extent<'_>| u16::from(extent.state().in_flight() > 0);
        let found = self.part(bytes, |scan| u16::from(scan.count_in_flight() > 0), count);
        found.into_iter().any(|found| found != 0)
    }

    /// As [`DirtyMap::declare_clean`], of these bytes alone.
    pub fn declare_clean_in(&self, bytes: Range<u64>, peers: Peers) {
        if self.behind_in(bytes.clone()).and(peers).is_empty() {
            return;
        }
        for extent in self.extents_of(&bytes).filter_map(|e| self.extent(e)) {
            extent.declare_clean(peers);
        }
    }

    fn extents_of(&self, bytes: &Range<u64>) -> Range<u64> {
        let length = bytes.end.saturating_sub(bytes.start);
        let touched = self.geometry().touched(bytes.start, length);
        touched.unwrap_or_default()
    }

    /// Whole words at one time, and each extent besides them by itself.
    fn part(
        &self,
        bytes: Range<u64>,
        words: impl Fn(Scan<'_>) -> u16,
        each: impl Fn(Extent<'_>) -> u16,
    ) -> Vec<u16> {
        let lanes = LANES as u64;
        let extents = self.extents_of(&bytes);
        let from = extents.start.next_multiple_of(lanes).min(extents.end);
        let to = (extents.end / lanes * lanes).max(from);
        let range = (from / lanes) as usize..(to / lanes) as usize;
        let scan = Scan::new(self.words().get(range).unwrap_or_default(), to - from);
        let edges = (extents.start..from).chain(to..extents.end);
        let edges = edges.filter_map(|extent| self.extent(extent)).map(each);
        edges.chain([words(scan)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::dirty_map::{Begun, ExtentSize, Identity, Peer};

    fn map(extents: u64) -> (tempfile::TempDir, DirtyMap) {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity {
            gfid: uuid::Uuid::from_u128(1),
            size: extents * 4096,
            extent_size: ExtentSize::new(4096).unwrap(),
            local: "a:/b".into(),
            peers: vec!["b:/b".into(), "c:/b".into()],
        };
        let (map, _) = DirtyMap::open(&directory.path().join("map"), &identity).unwrap();
        map.declare_clean(Peers::first(2));
        (directory, map)
    }

    proptest! {
        #[test]
        fn a_part_is_behind_when_one_of_its_own_extents_is(
            extents in 1u64..40, dirty in 0u64..40, from in 0u64..40, length in 0u64..40,
        ) {
            let (_directory, map) = map(extents);
            let dirty = dirty.min(extents - 1);
            map.mark_dirty(Peer::new(1).unwrap().into(), dirty * 4096, 1);
            let part = from.min(extents)..(from + length).min(extents).max(from.min(extents));
            let behind = map.behind_in(part.start * 4096..part.end * 4096);
            let expected: Peers = match part.contains(&dirty) {
                true => Peer::new(1).unwrap().into(),
                false => Peers::NONE,
            };
            prop_assert_eq!(behind, expected);
        }

        #[test]
        fn what_is_declared_clean_is_the_part_and_nothing_else(
            extents in 1u64..40, from in 0u64..40, length in 0u64..40,
        ) {
            let (_directory, map) = map(extents);
            map.mark_all_dirty(Peers::first(2));
            let start = from.min(extents);
            let end = (from + length).min(extents).max(start);
            map.declare_clean_in(start * 4096..end * 4096, Peers::first(2));
            for extent in 0..extents {
                let dirty = map.state(extent).unwrap().is_dirty(Peer::new(0).unwrap());
                prop_assert_eq!(dirty, !(start..end).contains(&extent));
            }
        }
    }

    #[test]
    fn a_write_in_flight_is_seen_in_its_part_only() {
        let (_directory, map) = map(16);
        assert_eq!(map.begin_write(5 * 4096, 512), Begun::Yes);
        assert!(map.in_flight_in(4 * 4096..8 * 4096));
        assert!(!map.in_flight_in(0..4 * 4096));
        assert!(!map.in_flight_in(6 * 4096..16 * 4096));
    }
}
