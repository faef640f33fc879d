//! Where the copies of an image are: the seam through which a follower opens the
//! local one and connects to the others. Tests put simulated bricks here.

use std::fs::File;

use crate::image::dirty_map::{DirtyMap, Peer};
use crate::image::local::error::LocalError;

use super::peer::{HealPeer, PeerError};

/// The copies of one image.
pub trait Copies: Send + Sync {
    /// Opens the local one, for reading only.
    ///
    /// # Errors
    /// See [`LocalError`].
    fn local(&self) -> Result<File, LocalError>;

    /// Connects to the copy of a peer of `map`, and takes the copy lock there.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn connect(&self, map: &DirtyMap, peer: Peer) -> Result<Box<dyn HealPeer>, PeerError>;
}
