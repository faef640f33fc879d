//! The vhost-user-blk device over one local file, or several.
//!
//! Owns the conversation with one front-end after the other: the vhost-user
//! messages, the virtqueues in the guest's memory, the io_uring that moves bytes
//! between that memory and the files. The daemon that serves an image (`daemon/serve`) makes a
//! [`Disk`] and a [`Gate`](gate::Gate) and calls [`Server::serve_on`] with each front-end.
//!
//! It does not open the files, does not listen on a socket, and does not know why
//! a write may have to wait: that is the gate's business.
//!
//! One request's way through the rooms: [`queue`] takes the head of a descriptor chain from
//! the available ring, [`guest`] walks the descriptors, [`request`] decides what they ask for;
//! the queue asks the gate and drives the request's state machine, whose operations [`io`]
//! hands to io_uring; the answer goes back through the ring. [`vhost_user`] is the control
//! plane, and takes no part in it. [`shared_memory`] is what the front-end keeps, so that
//! others can go on where we stop. docs/ARCHITECTURE.md has the way file by file.

mod cache_mode;
mod config;
mod error;
pub mod gate;
pub mod guest;
mod io;
mod limits;
mod queue;
mod request;
mod shared_memory;
mod size_change;
mod space;
mod stats;
mod vhost_user;

pub use cache_mode::CacheMode;
pub use config::{Config, Idle};
pub use error::{DeviceError, HandlerError};
pub use io::disk::Disk;
pub use io::examine::Alignment;
pub use space::{Full, Space};
pub use stats::{QueueSnapshot, Snapshot, Stats};
pub use vhost_user::message_deadline::{MESSAGE_LIMIT, Patience};
pub use vhost_user::pause::FrontEnd;
pub use vhost_user::server::{EndReason, PauseHandle, Served, Server, StopHandle};
pub use vhost_user::transcript::Message;
