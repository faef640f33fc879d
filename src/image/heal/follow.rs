//! x
mod idle;
mod meter;
mod retry;
