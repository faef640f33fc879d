//! One image: where its copies are, which one is fresh, who may write, what must be marked
//! and healed. Knows nothing of virtio.
//!
//! * [`locate`] finds it in a volume; [`surroundings`] looks whether the volume changes.
//! * [`layout`]: which files it is made of.
//! * [`replica`]: the copies and AFR's rules. [`session`]: the image open.
//! * [`dirty_map`]: which extents the other copies miss. [`heal`] copies them,
//!   [`verify`] compares; [`holes`] is what both need not read. [`stream`]: the guest's writes in
//!   their order, for copies that can be started from.
//! * [`local`]: the copy on this host. [`state_dir`]: what this host remembers, written by
//!   [`durable`].
//! * [`brick_client`]: all of it over Gluster's protocol.
//! * [`scheduler`]: threads and clocks, real or a simulator's. [`error_chain`]: an error in one
//!   line.

pub mod brick_client;
pub mod dirty_map;
pub mod durable;
pub mod error_chain;
pub mod heal;
pub mod holes;
pub mod layout;
pub mod local;
pub mod locate;
pub mod replica;
pub mod scheduler;
pub mod session;
pub mod state_dir;
pub mod stream;
pub mod surroundings;
pub mod verify;
