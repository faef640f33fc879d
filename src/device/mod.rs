//! The vhost-user-blk device over one local file.
//!
//! Owns the conversation with one front-end after the other: the vhost-user
//! messages, the virtqueues in the guest's memory, the io_uring that moves bytes
//! between that memory and the file. The command that serves an image makes a
//! [`Disk`] and a [`Gate`](gate::Gate) and calls [`Server::serve`] with each connection.
//!
//! It does not open the file, does not listen on a socket, and does not know why
//! a write may have to wait: that is the gate's business.
//!
//! One request's way through the files: `intake` and `ring` take the head of a
//! descriptor chain from the available ring, `chain` walks the descriptors,
//! `request` decides what they ask for, `queue` asks the gate and drives `slot`,
//! the state machine of one request, whose operations `engine` hands to io_uring;
//! the answer goes back through `ring`. How a queue's thread waits is in `queue/waiting`.
//! `relay`, `intercept`, `backend` and `vring` are the control plane, and take no part in it.
//!
//! A front-end can go on with another server, of another process even: `said` keeps what
//! it has said, `pause` stops its rings and tells that again.
//!
//! Two things are shared with the front-end so that others can go on where we
//! stop: `inflight`, the record of requests in flight, and `dirty_log`, the log of
//! written pages of a migration, which `logging` switches.

mod access;
mod announce;
mod backend;
mod bounce;
mod cache;
mod chain;
mod config;
mod config_space;
mod control;
mod dirty_log;
mod disk;
mod engine;
mod error;
pub mod gate;
mod inflight;
mod intake;
mod intercept;
mod logging;
mod mapping;
mod memory;
mod patience;
mod pause;
mod queue;
mod ranges;
mod relay;
mod request;
mod ring;
mod said;
mod server;
mod shared;
mod slot;
mod space;
mod stats;
mod transfer;
mod vring;

pub use cache::CacheMode;
pub use config::{Config, Idle};
pub use disk::{Alignment, Disk};
pub use error::{DeviceError, HandlerError};
pub use patience::{MESSAGE_LIMIT, Patience};
pub use pause::FrontEnd;
pub use said::Message;
pub use server::{EndReason, PauseHandle, Served, Server, StopHandle};
pub use space::{Full, Space};
pub use stats::{QueueSnapshot, Snapshot, Stats};
