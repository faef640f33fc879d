//! The model's parts. See `tests/model.rs`.

pub mod apply;
pub mod daemon;
pub mod debt;
pub mod healing;
pub mod promoting;
pub mod properties;
pub mod rim;
pub mod round;
pub mod setting;
pub mod steps;
pub mod stock;
pub mod world;
