//! The control socket of a running daemon, and the status report.
//!
//! [`status`] is the report's document, with [`heal`] in it, [`render`] its one screen
//! for people, [`metrics`] the same for Prometheus,
//! [`socket`] carries it from a daemon to the `status` command, and a healer's words
//! to the session that it heals for ([`remote`]); `answering` is the daemon's end of it.
//! [`survey`] puts the images of a host
//! together, [`severity`] says which is worst. Nothing here decides anything about an image.

pub mod copy_status;
pub mod heal;
pub mod line;
pub mod metrics;
pub mod one_line;
pub mod remote;
pub mod render;
#[cfg(test)]
pub(crate) mod samples;
pub mod serving_status;
pub mod severity;
pub mod socket;
pub mod status;
pub mod survey;
pub mod unix_socket;
