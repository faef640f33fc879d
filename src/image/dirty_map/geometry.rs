//! How an image is cut into extents, and how large its map is.
//!
//! Pure arithmetic; used by the header's check and by every operation of the map.

use std::ops::Range;

use super::error::MapError;
use super::extent::{LANES, MAX_PEERS, Peers};
use super::terms::{MAX_EXTENT_SIZE, MIN_EXTENT_SIZE};

/// The most bytes of a map whose extents nobody chose the size of.
const DEFAULT_MAP: u64 = 128 << 20;
/// Bytes of an extent in the map.
const EXTENT_LEN: u64 = (size_of::<u64>() / LANES) as u64;

/// The size of an extent in bytes: a power of two, 4 KiB to 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentSize(u32);

impl ExtentSize {
    /// The smallest, in bytes.
    pub const MIN: u32 = MIN_EXTENT_SIZE;
    /// The largest, in bytes.
    pub const MAX: u32 = MAX_EXTENT_SIZE;

    /// # Errors
    ///
    /// [`MapError::ExtentSize`] when `bytes` is out of range or no power of two.
    pub fn new(bytes: u32) -> Result<Self, MapError> {
        if bytes.is_power_of_two() && (Self::MIN..=Self::MAX).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(MapError::ExtentSize { bytes })
        }
    }

    /// The size for an image of `size` bytes when nobody chose one: the smallest whose
    /// map takes at most 128 MiB. So 4 KiB up to 256 GiB, twice that for each doubling,
    /// and 1 MiB above 32 TiB, however large the map. What is sent to the peers is
    /// rounded to extents: see docs/measurements.md.
    pub fn default_for(size: u64) -> Self {
        let needed = size.div_ceil(DEFAULT_MAP / EXTENT_LEN);
        let allowed = needed.clamp(Self::MIN.into(), Self::MAX.into());
        Self(u32::try_from(allowed.next_power_of_two()).unwrap_or(Self::MAX))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0.into()
    }
}

/// Bytes before the first word of the map in its file: the header's page.
pub const WORDS_AT: u64 = 4096;

/// The size of everything in one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size: u64,
    extent_size: ExtentSize,
    peers: usize,
}

impl Geometry {
    /// For an image of `size` bytes with this many peers.
    ///
    /// # Errors
    ///
    /// [`MapError::TooManyPeers`] above [`MAX_PEERS`], [`MapError::EmptyImage`].
    pub fn new(size: u64, extent_size: ExtentSize, peers: usize) -> Result<Self, MapError> {
        if peers > MAX_PEERS {
            return Err(MapError::TooManyPeers { peers });
        }
        if size == 0 {
            return Err(MapError::EmptyImage);
        }
        Ok(Self {
            size,
            extent_size,
            peers,
        })
    }

    /// The image's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The size of an extent; the last one of an image may be cut short.
    pub fn extent_size(&self) -> ExtentSize {
        self.extent_size
    }

    /// Every peer.
    pub fn all_peers(&self) -> Peers {
        Peers::first(self.peers)
    }

    /// How many extents.
    pub fn extents(&self) -> u64 {
        self.size.div_ceil(self.extent_size.bytes())
    }

    /// How many words hold them.
    pub fn words(&self) -> u64 {
        self.extents().div_ceil(LANES as u64)
    }

    /// The length of the map's file in bytes.
    pub fn file_len(&self) -> u64 {
        // At most 2^64 bytes / 4 KiB * 2 bytes: no overflow.
        WORDS_AT + self.words() * size_of::<u64>() as u64
    }

    /// The extents that `len` bytes at `offset` touch, none for no bytes; `None`
    /// when the range ends behind the image.
    pub fn touched(&self, offset: u64, len: u64) -> Option<Range<u64>> {
        let end = offset.checked_add(len).filter(|&end| end <= self.size)?;
        let first = offset / self.extent_size.bytes();
        if len == 0 {
            return Some(first..first);
        }
        Some(first..end.div_ceil(self.extent_size.bytes()))
    }

    /// The bytes of one extent in the image, empty behind its end.
    pub fn bytes_of(&self, extent: u64) -> Range<u64> {
        let start = extent.saturating_mul(self.extent_size.bytes());
        let end = start.saturating_add(self.extent_size.bytes());
        start.min(self.size)..end.min(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(size: u64) -> Geometry {
        Geometry::new(size, ExtentSize::new(4096).unwrap(), 2).unwrap()
    }

    #[test]
    fn an_extent_size_is_a_power_of_two_in_range() {
        for bytes in [4096, 65536, 1 << 20] {
            assert_eq!(ExtentSize::new(bytes).unwrap().bytes(), u64::from(bytes));
        }
        for bytes in [0, 1, 2048, 5000, 3 << 12, 2 << 20] {
            assert!(matches!(
                ExtentSize::new(bytes),
                Err(MapError::ExtentSize { .. })
            ));
        }
    }

    #[test]
    fn extents_are_as_small_as_a_map_of_limited_size_allows() {
        let default = |size| ExtentSize::default_for(size).bytes();
        const GIB: u64 = 1 << 30;
        assert_eq!([0, 512, 20 * GIB, 256 * GIB].map(default), [4096; 4]);
        assert_eq!(default(256 * GIB + 1), 8192);
        assert_eq!(default(1024 * GIB), 16384);
        assert_eq!(default(32 * 1024 * GIB), 512 << 10);
        assert_eq!(default(32 * 1024 * GIB + 1), 1 << 20);
        assert_eq!(default(u64::MAX), 1 << 20);
        for size in [GIB, 100 * GIB + 512, 300 * GIB, 5000 * GIB, 64 << 40] {
            let geometry = Geometry::new(size, ExtentSize::default_for(size), 2).unwrap();
            assert!(geometry.file_len() <= WORDS_AT + DEFAULT_MAP);
        }
    }

    #[test]
    fn a_write_touches_every_extent_it_reaches_into() {
        let geometry = geometry(10 * 4096 + 512);
        assert_eq!(geometry.extents(), 11);
        assert_eq!(geometry.touched(0, 1), Some(0..1));
        assert_eq!(geometry.touched(4095, 2), Some(0..2));
        assert_eq!(geometry.touched(4096, 4096), Some(1..2));
        assert_eq!(geometry.touched(40960, 512), Some(10..11));
        assert_eq!(geometry.touched(8192, 0), Some(2..2));
    }

    #[test]
    fn a_range_behind_the_image_touches_nothing() {
        let geometry = geometry(8192);
        assert_eq!(geometry.touched(8192, 1), None);
        assert_eq!(geometry.touched(4096, 4097), None);
        assert_eq!(geometry.touched(u64::MAX, 2), None);
    }

    #[test]
    fn the_last_extent_is_cut_at_the_image_s_end() {
        let geometry = geometry(4096 + 512);
        assert_eq!(geometry.bytes_of(0), 0..4096);
        assert_eq!(geometry.bytes_of(1), 4096..4608);
        assert!(geometry.bytes_of(2).is_empty());
        assert!(geometry.bytes_of(u64::MAX).is_empty());
    }

    #[test]
    fn the_largest_image_does_not_overflow() {
        let geometry = geometry(u64::MAX);
        assert_eq!(geometry.extents(), 1 << 52);
        assert_eq!(geometry.file_len(), WORDS_AT + (1 << 53));
    }

    #[test]
    fn more_peers_than_an_extent_can_hold_are_refused() {
        let refused = Geometry::new(1, ExtentSize::default_for(1), 5);
        assert!(matches!(refused, Err(MapError::TooManyPeers { peers: 5 })));
    }
}
