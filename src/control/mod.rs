//! The control socket of a running daemon, and the status report.
//!
//! [`status`] is the report's document, [`render`] its one screen for people,
//! [`socket`] carries it from a daemon to the `status` command, and a healer's words
//! to the session that it heals for ([`remote`]). Nothing here decides anything about
//! an image.

pub mod remote;
pub mod render;
pub mod socket;
pub mod status;
