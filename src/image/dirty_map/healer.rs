//! The one who copies. Only one process at a time may begin and end copies on a
//! map, or a copy begun by one could be ended by another that read earlier.

use std::sync::Arc;

use super::error::MapError;
use super::extent::{Copied, Peer, Peers};
use super::map::DirtyMap;
use super::mapping::RoleLock;
use super::open::is_at;
use super::terms::Role;

/// The right to copy, until it is dropped or the process is gone.
pub struct Healer {
    map: Arc<DirtyMap>,
    _role: RoleLock,
}

impl Healer {
    /// Claims it on a map that was opened or attached to. The copies that a dead
    /// healer had under way are forgotten; their extents are still dirty.
    ///
    /// # Errors
    ///
    /// [`MapError::InUse`] by another healer, [`MapError::Replaced`] when a session
    /// has made the map anew since, [`MapError::Io`].
    pub fn claim(map: Arc<DirtyMap>) -> Result<Self, MapError> {
        let path = map.path();
        let role = RoleLock::take(map.file(), Role::Healer)
            .map_err(|e| MapError::of("lock", path, 0, e))?
            .ok_or_else(|| MapError::InUse {
                path: path.to_owned(),
                role: Role::Healer,
            })?;
        // With the role held the file is not replaced any more.
        if !is_at(map.file(), path)? {
            return Err(MapError::Replaced {
                path: path.to_owned(),
            });
        }
        for peer in map.geometry().all_peers().iter() {
            forget_copies(&map, peer);
        }
        Ok(Self { map, _role: role })
    }

    /// The map.
    pub fn map(&self) -> &Arc<DirtyMap> {
        &self.map
    }

    /// May a copy of `extent` to `peer` begin? Not when it is clean, when a write
    /// is in flight in it, or when it is being copied there already. Read the
    /// extent after this call, never before; then [`Healer::end_copy`] or
    /// [`Healer::abandon_copy`] is owed.
    #[must_use]
    pub fn begin_copy(&self, peer: Peer, extent: u64) -> bool {
        let extent = self.map.extent(extent);
        extent.is_some_and(|extent| extent.begin_copy(peer))
    }

    /// What was read since [`Healer::begin_copy`] is durable at the peer (its
    /// FSYNC has answered). [`Copied::Again`] when a write came in between.
    pub fn end_copy(&self, peer: Peer, extent: u64) -> Copied {
        let extent = self.map.extent(extent);
        extent.map_or(Copied::Again, |extent| extent.end_copy(peer))
    }

    /// The copy begun failed; the extent stays dirty.
    pub fn abandon_copy(&self, peer: Peer, extent: u64) {
        if let Some(extent) = self.map.extent(extent) {
            extent.forget_copies(peer.into());
        }
    }
}

fn forget_copies(map: &DirtyMap, peer: Peer) {
    let copying = Peers::from(peer).copying_bits();
    let mut from = 0;
    while let Some(extent) = map.scan().next(copying, from) {
        if let Some(extent) = map.extent(extent) {
            extent.forget_copies(peer.into());
        }
        from = extent + 1;
    }
}
