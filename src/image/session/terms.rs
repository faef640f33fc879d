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
    /// Above so many files that are marked, those whose peers miss nothing lose their marks at
    /// once, of an image in shards.
    pub hot_files: usize,
}

/// The default of [`Terms::hot_files`]: in shards of 64 MiB, 4 GiB are compared at most after a
/// crash of this host, if the peers were reached and healed meanwhile.
pub const HOT_FILES: usize = 64;
