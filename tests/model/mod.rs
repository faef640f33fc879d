//! The model's parts. See `tests/model.rs`.

pub mod heal;
pub mod properties;
pub mod rim;
pub mod setting;
pub mod steps;
pub mod world;
