//! The dirty map of one image: which extents each peer misses.
//!
//! Owns a file in the state directory, mapped shared: it outlives a killed
//! daemon, and a healer in another process works on it at the same time. The
//! session's gate calls [`DirtyMap::begin_write`] and [`DirtyMap::end_write`]
//! around every change of the disk; a healer claims [`Healer`], finds dirty
//! extents and clears them once they are copied.
//!
//! It does not copy anything, knows no marks and no locks of Gluster, and does
//! not decide what to do about a map that is not trusted: it then says why
//! ([`Trust`]) and counts every extent as dirty for every peer.
//!
//! * [`extent`]: the atomic state of one extent, the part proved with loom
//!   (`tests/loom_extent.rs`).
//! * [`scan`]: finding and counting over many extents at once.
//! * [`header`]: what the file says about itself, and whether to believe it.
//! * [`mapping`]: the file in memory and the locks on it; the only `unsafe` code.
//! * [`open`]: creating, re-opening and closing the file.
//! * [`map`]: the operations. [`healer`]: those that only one healer may do.
//! * `part`: those on a part of the image.
//! * [`grow`]: a larger map in place of one, when the image grows.

pub mod error;
pub mod extent;
pub mod geometry;
pub mod grow;
pub mod header;
pub mod healer;
pub mod map;
pub mod mapping;
pub mod open;
mod part;
pub mod scan;
mod terms;

/// The atomics that [`extent`] is made of. The loom model compiles the same
/// source with loom's in their place.
mod sync {
    pub use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
}

#[cfg(test)]
mod tests;

pub use error::MapError;
pub use extent::{Copied, Peer, Peers};
pub use geometry::{ExtentSize, Geometry};
pub use grow::Draft;
pub use header::{Identity, Record};
pub use healer::Healer;
pub use map::{Begun, DirtyMap, Ended};
pub use open::Trust;
pub use terms::{Distrust, Role};
