//! One image and its session: where its copies are, which one is fresh, who may
//! write, what must be marked. Knows nothing of virtio.

pub mod brick_client;
pub mod chain;
pub mod dirty_map;
pub mod durable;
pub mod heal;
pub mod local;
pub mod locate;
pub mod replica;
pub mod scheduler;
pub mod session;
pub mod state_dir;
pub mod surroundings;
pub mod verify;
