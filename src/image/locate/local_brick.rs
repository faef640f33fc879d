//! Which brick of an image's replica set is on this host.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{LocateError, Located};
use crate::image::error::Names;
use crate::image::local::may_see_trusted;

/// The volume that a brick's directory belongs to.
const VOLUME_ID_XATTR: &str = "trusted.glusterfs.volume-id";
/// Gluster's identity of a file, on the brick.
const GFID_XATTR: &str = "trusted.gfid";

/// The brick of this host whose copy to serve. `wanted` is `HOST:/PATH` when the
/// operator chose.
///
/// # Errors
/// See [`LocateError`].
pub fn local_brick(located: &Located, wanted: Option<&str>) -> Result<usize, LocateError> {
    if !may_see_trusted() {
        return Err(LocateError::Privilege);
    }
    let names = located.names();
    let chosen = match wanted {
        Some(wanted) => chosen_brick(located, &names, wanted)?,
        None => only_local_brick(located, &names)?,
    };
    match located.arbiter() {
        Some(arbiter) if arbiter == chosen => Err(LocateError::Arbiter {
            brick: names.one(chosen),
            others: names.list(located.shape(chosen).copies()),
        }),
        _ => Ok(chosen),
    }
}

fn chosen_brick(located: &Located, names: &Names, wanted: &str) -> Result<usize, LocateError> {
    let wanted_name = wanted.trim_end_matches('/');
    let Some(brick) = names.0.iter().position(|name| name == wanted_name) else {
        return Err(LocateError::UnknownBrick {
            brick: wanted.to_owned(),
            image: located.image.clone(),
            bricks: names.list(located.shape(0).all()),
        });
    };
    let path = PathBuf::from(&located.set.bricks[brick].path);
    if !is_brick_of(&path, located.volume_id) {
        return Err(LocateError::NotOnThisHost {
            brick: wanted.to_owned(),
            path,
        });
    }
    Ok(brick)
}

fn only_local_brick(located: &Located, names: &Names) -> Result<usize, LocateError> {
    let here = |&brick: &usize| {
        is_brick_of(
            Path::new(&located.set.bricks[brick].path),
            located.volume_id,
        )
    };
    let mut mine: Vec<usize> = (0..located.set.bricks.len()).filter(here).collect();
    if mine.len() > 1 {
        mine.retain(|&brick| has_copy(located, brick));
    }
    match mine.as_slice() {
        [brick] => Ok(*brick),
        [] => Err(LocateError::NoLocalBrick {
            image: located.image.clone(),
            bricks: names.list(located.shape(0).all()),
        }),
        several => Err(LocateError::SeveralLocalBricks {
            image: located.image.clone(),
            bricks: names.list(several.iter().copied().collect()),
        }),
    }
}

/// Has this directory the image's file, by Gluster's identity of it?
fn has_copy(located: &Located, brick: usize) -> bool {
    let gfid = xattr::get(located.local_path(brick), GFID_XATTR)
        .ok()
        .flatten();
    gfid.as_deref() == Some(located.gfid.as_bytes())
}

/// Is the directory on this host a brick of the volume? A name of the host proves
/// nothing: the directory must carry the volume's identity.
fn is_brick_of(path: &Path, volume_id: Uuid) -> bool {
    let found = xattr::get(path, VOLUME_ID_XATTR).ok().flatten();
    found.as_deref() == Some(volume_id.as_bytes())
}
