//! A session's dirty map: where it is, how it is made ahead of the session and opened with it,
//! and what must be durable first.

use std::path::PathBuf;
use std::sync::Arc;

use crate::image::dirty_map::{self, DirtyMap, ExtentSize, MapError, Record, Trust};
use crate::image::error_chain::chain;
use crate::image::local::error::LocalError;
use crate::image::local::{CopyWatch, Durability};
use crate::image::replica::brick_set::Shape;
use crate::image::replica::names::Names;

/// Where a dirty map is, and how fine.
#[derive(Clone, Debug)]
pub struct MapPlace {
    /// Its file.
    pub path: PathBuf,
    /// How finely it counts; `None`: as [`ExtentSize::default_for`] the image.
    pub extent_size: Option<ExtentSize>,
}

/// Makes the dirty map of a session to come, where there is none: to fill and to sync a
/// new one takes the longer the larger the image is, and the target of a migration opens
/// its session while the guest stands still.
///
/// It is clean, and knows of no session. So the one that opens it believes the marks on
/// the bricks alone, as it would without a map. One that is there is left as it is.
///
/// # Errors
/// As [`DirtyMap::open`].
pub fn prepare_map(
    place: &MapPlace,
    shape: &Shape,
    names: &Names,
    gfid: uuid::Uuid,
    size: u64,
) -> Result<(), MapError> {
    if place.path.exists() {
        return Ok(());
    }
    let (map, trust) = DirtyMap::open(&place.path, &identity(place, shape, names, gfid, size))?;
    match trust {
        Trust::Fresh => {
            map.declare_clean(map.geometry().all_peers());
            map.close_clean()
        }
        // Somebody else was faster.
        _ => Ok(()),
    }
}

fn identity(
    place: &MapPlace,
    shape: &Shape,
    names: &Names,
    gfid: uuid::Uuid,
    size: u64,
) -> dirty_map::Identity {
    let by_default = || ExtentSize::default_for(size);
    dirty_map::Identity {
        gfid,
        size,
        extent_size: place.extent_size.unwrap_or_else(by_default),
        local: names.one(shape.local),
        peers: shape.peers().iter().map(|peer| names.one(peer)).collect(),
    }
}

/// Opens the dirty map, or makes it. What is not trusted counts as dirty.
pub(super) fn open_map(
    place: &MapPlace,
    shape: &Shape,
    names: &Names,
    gfid: uuid::Uuid,
    size: u64,
) -> Result<(Arc<DirtyMap>, Trust), MapError> {
    let identity = identity(place, shape, names, gfid, size);
    let (map, trust) = DirtyMap::open(&place.path, &identity)?;
    match trust {
        Trust::Fresh | Trust::CleanClose => {}
        Trust::Kept { interrupted } => log::info!(
            "the former daemon did not close the dirty map (killed, or upgraded); {interrupted} extents had writes in flight"
        ),
        Trust::Distrusted(why) => log::warn!(
            "the dirty map {} is not trusted ({why}): copies that are marked are compared as a whole",
            place.path.display()
        ),
    }
    Ok((Arc::new(map), trust))
}

/// What a killed daemon's guest was told is written may be in the disk's cache only, and may
/// have been copied to the peers meanwhile: it must survive a power cut before anybody
/// calls them equal. Later it could not be told any more what was lost.
pub(super) fn sync_first(
    local: &dyn CopyWatch,
    durability: &Durability,
    map: &DirtyMap,
) -> Result<(), LocalError> {
    local.sync().inspect_err(|error| {
        durability.fail("the sync of the local copy at open", &chain(error));
        let unsynced = Record {
            unsynced: true,
            ..map.record()
        };
        if let Err(error) = map.set_record(unsynced) {
            log::error!("{}", chain(&error));
        }
    })
}
