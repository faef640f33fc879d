//! One image and its session: where its copies are, which one is fresh, who may
//! write, what must be marked. Knows nothing of virtio.

pub mod bricks;
pub mod decide;
pub mod gate;
pub mod holder;
pub mod machine;
pub mod port;
