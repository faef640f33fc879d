//! The control plane: the conversation with one front-end after the other, and what it
//! changes of the device. It takes no part in a request's way.
//!
//! * [`server`] serves one connection; [`relay`] reads its messages, [`intercept`] looks at
//!   those that the `vhost` crate does not answer as we need, [`backend`] carries them out.
//! * [`transcript`] keeps what the front-end has said, [`pause`] stops the rings and tells that
//!   again to another server, of another process even.

pub mod backend;
pub mod config_space;
pub mod intercept;
pub mod message_deadline;
pub mod pause;
pub mod relay;
pub mod server;
pub mod transcript;
