//! One image and its session: where its copies are, which one is fresh, who may
//! write, what must be marked. Knows nothing of virtio.

pub mod belief;
pub mod bricks;
pub mod copy_lock;
pub mod custody;
pub mod data_lock;
pub mod debt;
pub mod decide;
pub mod dirty;
pub mod durable;
pub mod error;
pub mod fencing;
pub mod gate;
pub mod gluster_port;
pub mod handle;
pub mod heal;
pub mod holder;
pub mod local;
pub mod locate;
pub mod locking;
pub mod machine;
pub mod marking;
pub mod open;
pub mod port;
pub mod promote;
#[cfg(test)]
mod recording_port;
pub mod resize;
pub mod runner;
pub mod session;
pub mod snapshot;
pub mod state_dir;
pub mod surroundings;
pub mod threads;
pub mod unmarking;
pub mod verify;
pub mod worker;
