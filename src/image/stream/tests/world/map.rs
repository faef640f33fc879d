//! A dirty map of a few extents for one peer, of the very states that a real one has.

use std::sync::atomic::AtomicU64;

use crate::image::dirty_map::extent::{Extent, LANES};
use crate::image::dirty_map::{Copied, Peer};
use crate::image::stream::outstanding::CopyMap;

pub struct Map([AtomicU64; 2]);

impl Map {
    pub fn clean() -> Self {
        Self([AtomicU64::new(0), AtomicU64::new(0)])
    }

    pub fn extent(&self, number: u64) -> Extent<'_> {
        let number = number as usize;
        Extent::new(&self.0[number / LANES], number % LANES)
    }

    pub fn is_dirty(&self, extent: u64) -> bool {
        self.extent(extent).state().is_dirty(peer())
    }
}

pub fn peer() -> Peer {
    Peer::new(0).unwrap()
}

impl CopyMap for Map {
    fn begin(&self, extent: u64) -> bool {
        self.extent(extent).begin_copy(peer())
    }

    fn end(&self, extent: u64) -> bool {
        self.extent(extent).end_copy(peer()) == Copied::Cleared
    }

    fn abandon(&self, extent: u64) {
        self.extent(extent).forget_copies(peer().into());
    }
}
