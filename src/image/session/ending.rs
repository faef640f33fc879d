//! How a session ends, or rests.

use std::sync::mpsc::Sender;

use crate::image::replica::brick_port::{Fence, KeptBrick};

/// A session at rest, for another process to go on with. If this is dropped instead, it
/// goes on here.
#[derive(Debug)]
pub struct KeptSession {
    /// Per brick, those that are held.
    pub bricks: Vec<Option<KeptBrick>>,
    /// The fence that stands.
    pub fence: Fence,
    /// As long as this is there.
    pub(super) _resting: Sender<()>,
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// Its owner is done with the image, for now.
    Closed,
    /// The image is another host's from now on.
    HandedOver,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All copies are equal and no mark stands.
    AllEqual,
    /// Some copy misses something, or is marked so, or nobody knows.
    Behind,
}
