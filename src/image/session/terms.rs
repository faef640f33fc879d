//! How a session is to be opened.

use std::time::Duration;

use crate::image::replica::brick_port::Fence;

/// What the operator wants of the fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceWish {
    /// Mandatory where the volume allows it.
    Auto,
    /// This one or nothing.
    Exactly(Fence),
}

/// How to open.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// No writes, shared session lock, heals go on.
    pub read_only: bool,
    /// See [`FenceWish`].
    pub fence: FenceWish,
    /// How long to wait for locks of others.
    pub lock_timeout: Duration,
    /// A guest stands still meanwhile: ask for them more often.
    pub urgent: bool,
}
