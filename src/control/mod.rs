//! The control socket of a running daemon, and the status report.
//!
//! [`status`] is the report's document, [`render`] its one screen for people,
//! [`socket`] carries it from a daemon to the `status` command. Nothing here
//! decides or changes anything about an image.

pub mod render;
pub mod socket;
pub mod status;
