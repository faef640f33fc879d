//! A session's dirty map: where it is, how it is made ahead of the session and opened with it,
//! and what must be durable first.

use std::path::PathBuf;
use std::sync::Arc;

use crate::image::dirty_map::{self, DirtyMap, ExtentSize, MapError, Record, Trust};
use crate::image::error_chain::chain;
use crate::image::layout::{FileIndex, Layout};
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
    layout: &Layout,
) -> Result<(), MapError> {
    if place.path.exists() {
        return Ok(());
    }
    let (map, trust) = DirtyMap::open(&place.path, &identity(place, shape, names, layout))?;
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
    layout: &Layout,
) -> dirty_map::Identity {
    let by_default = || ExtentSize::default_for(layout.size());
    let extent_size = place.extent_size.unwrap_or_else(by_default);
    dirty_map::Identity {
        gfid: layout.gfid(FileIndex::BASE),
        size: layout.size(),
        extent_size: within_pieces(layout, extent_size),
        local: names.one(shape.local),
        peers: shape.peers().iter().map(|peer| names.one(peer)).collect(),
    }
}

/// No extent lies in two files: the largest size up to `wanted` of which a piece has a whole
/// number. Pieces are of so many times the smallest.
pub(super) fn within_pieces(layout: &Layout, wanted: ExtentSize) -> ExtentSize {
    let mut bytes = wanted.bytes();
    while !layout.is_whole() && !layout.piece().is_multiple_of(bytes) {
        bytes /= 2;
    }
    let smaller = u32::try_from(bytes).ok().map(ExtentSize::new);
    smaller.and_then(Result::ok).unwrap_or(wanted)
}

/// Opens the dirty map, or makes it. What is not trusted counts as dirty.
pub(super) fn open_map(
    place: &MapPlace,
    shape: &Shape,
    names: &Names,
    layout: &Layout,
) -> Result<(Arc<DirtyMap>, Trust), MapError> {
    let identity = identity(place, shape, names, layout);
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
pub(super) fn sync_first<'a>(
    mut files: impl Iterator<Item = &'a dyn CopyWatch>,
    durability: &Durability,
    map: &DirtyMap,
) -> Result<(), LocalError> {
    let synced = files.try_for_each(CopyWatch::sync);
    synced.inspect_err(|error| {
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
