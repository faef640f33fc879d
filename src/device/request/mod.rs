//! One request: what it asks for ([`decode`]), and its way from the first byte to the answer
//! ([`slot`], a state machine driven by the queue), in a slot that is free again only when it is
//! settled ([`slots`]). It touches neither ring nor file.

pub mod decode;
pub mod outcome;
pub mod ranges;
pub mod slot;
pub mod slots;
pub mod syncs;
pub mod transfer;
