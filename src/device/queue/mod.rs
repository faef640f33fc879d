//! The virtqueues: one thread each, which takes requests from its ring, drives them and puts
//! the answers back.
//!
//! * [`work`] is the queue at work; how its thread waits is in `work/waiting`.
//! * [`intake`] and [`ring`] are its two ends in the guest's memory.
//! * [`vring`] is what the control plane set up, [`control`] and [`shared`] how it and the
//!   threads meet.

pub mod control;
pub mod intake;
pub mod ring;
pub mod shared;
pub mod vring;
pub mod work;
