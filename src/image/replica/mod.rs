//! The copies of an image on the bricks of a replica set, by AFR's rules: which is fresh, what
//! marks say, how they are stored and removed, which locks keep whom away.
//!
//! * [`brick_port`] is the seam to a brick, [`brick_worker`] its thread, [`brick_set`] a set
//!   of bricks and the quorum, [`names`] what they are called.
//! * Pure decisions: [`freshness`] (may the local copy be opened?), [`map_trust`] (what an older
//!   map is worth), the plan of a [`promotion`], and what [`unmarking`] may remove.
//! * Locks: [`session_lock`], [`data_lock`], [`copy_lock`]; [`holder`] is who has them.
//! * Rounds over several bricks: [`marking`], [`unmarking`].
//! * [`missed_writes`]: the dirty map together with the marks that stand for it.

pub mod brick_port;
pub mod brick_set;
pub mod brick_worker;
pub mod copy_lock;
pub mod data_lock;
pub mod freshness;
pub mod holder;
pub mod map_trust;
pub mod marking;
pub mod missed_writes;
pub mod names;
pub mod promotion;
#[cfg(test)]
pub mod recording_port;
pub mod session_lock;
pub mod unmarking;
