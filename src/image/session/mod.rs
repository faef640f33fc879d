//! One session: the image open, by one daemon.
//!
//! * [`life`] opens and closes it, with its map ([`map_place`]); [`open`] is how, over the bricks, by [`terms`]; [`fencing`]
//!   keeps other clients out; [`error`] says why not.
//! * [`runner`] is the session's thread. It is told [`input`], steps the [`state_machine`],
//!   which decides, and carries out what that says.
//! * [`write_gate`] is all that a guest's request meets of a session.
//! * [`handle`] is the session for healers and operators, [`snapshot`] what it looks like,
//!   [`resize`] (with [`extension`]) and [`ending`] what can come of it.
//! * [`ownership`] is above sessions: whose the image is, in a live migration.

pub mod bell;
pub mod ending;
pub mod error;
pub mod extension;
pub mod fencing;
pub mod handle;
pub mod input;
pub mod life;
pub mod map_place;
pub mod open;
pub mod ownership;
pub mod resize;
pub mod runner;
pub mod snapshot;
pub mod state_machine;
pub mod terms;
pub mod write_gate;
