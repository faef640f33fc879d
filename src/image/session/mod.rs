//! ROOM

pub mod ending;
pub mod error;
pub mod fencing;
pub mod handle;
pub mod input;
pub mod life;
pub mod open;
pub mod ownership;
pub mod resize;
pub mod runner;
pub mod snapshot;
pub mod state_machine;
pub mod terms;
pub mod write_gate;
