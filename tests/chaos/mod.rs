//! Random faults on a real cluster under a guest-like load, and an oracle that
//! knows what must be there afterwards.
//!
//! [`schedule`] draws a round from a seed, [`world`] makes it happen, [`load`]
//! writes through [`device`] and tells the [`oracle`], [`checks`] compare it with
//! the bricks' files.

pub mod checks;
pub mod device;
pub mod guest;
pub mod healer;
pub mod image;
pub mod load;
pub mod oracle;
pub mod rng;
pub mod schedule;
pub mod world;
