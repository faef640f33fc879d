//! The io_uring that moves bytes between the guest's memory and the disk's files, the files, and
//! the buffers between the two where one of them is not aligned.
//!
//! Used by the queues. It knows operations, not requests.

pub mod bounce;
pub mod disk;
pub mod engine;
pub mod examine;
pub mod table;
pub mod unsynced;

/// The atomics that [`unsynced`] is made of. The loom model compiles the same source with
/// loom's in their place.
mod sync {
    pub use std::sync::atomic::{AtomicU64, Ordering};
}
