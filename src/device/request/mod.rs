//! One request: what it asks for ([`decode`]), and its way from the first byte to the answer
//! ([`slot`], a state machine driven by the queue). It touches neither ring nor file.

pub mod decode;
pub mod outcome;
pub mod ranges;
pub mod slot;
pub mod transfer;
