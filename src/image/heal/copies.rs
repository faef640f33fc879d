//! Where the copies of an image are: the seam through which a follower opens the
//! local one and connects to the others. Tests put simulated bricks here.

use std::sync::Arc;

use crate::image::dirty_map::{DirtyMap, Peer};
use crate::image::layout::Layout;
use crate::image::local::error::LocalError;

use super::local::LocalFiles;
use super::peer::{HealPeer, PeerError};

/// The copies of one image.
pub trait Copies: Send + Sync {
    /// Opens all files of the local one, whose map this is, for reading only.
    ///
    /// # Errors
    /// See [`LocalError`].
    fn local(&self, map: &DirtyMap) -> Result<LocalFiles, LocalError>;

    /// Connects to the copy of a peer of `map`, which is cut as the local one, and takes the
    /// copy lock there.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn connect(
        &self,
        map: &DirtyMap,
        layout: &Arc<Layout>,
        peer: Peer,
    ) -> Result<Box<dyn HealPeer>, PeerError>;
}
