//! The guest's memory, of which nothing is believed: the memory itself, the descriptor
//! chains in it, and the one way to read and write it.
//!
//! Used by the queues and by requests. It does not know what a request means.

pub mod access;
pub mod chain;
pub mod memory;
