//! ROOM

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
