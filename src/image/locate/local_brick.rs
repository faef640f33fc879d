//! Which brick of an image's replica set is on this host.
//!
//! Neither names nor paths tell: hosts have several names, and the bricks of a
//! volume usually have the same path on every host. So a brick counts as local
//! only when its own process proves it: a mark set on the image through the brick
//! is seen on the file here. Serving the wrong brick's file would accuse the very
//! copy that the guest writes to.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::gluster::{Brick, BrickError, BrickSpec, Gfid, Identity, Timeouts};
use crate::image::error_chain::chain;
use crate::image::local::may_see_trusted;
use crate::image::replica::brick_set::BrickSet;

use super::{Catalog, LocateError, Located};

/// The volume that a brick's directory belongs to.
const VOLUME_ID_XATTR: &str = "trusted.glusterfs.volume-id";
/// Gluster's identity of a file, on the brick.
const GFID_XATTR: &str = "trusted.gfid";
/// What the name of a proof begins with. Each has a name of its own, so that
/// two daemons that prove at the same moment do not disturb each other.
const PROOF_XATTR: &str = "trusted.bypass-blk.proof";

/// What is known about one brick.
enum Proof {
    Local,
    Elsewhere,
    /// The directory is here, but under the image's name there is another file.
    OtherFile(Uuid),
    /// Its process did not answer.
    Unknown(String),
}

/// The brick of this host whose copy to serve. `wanted` is `HOST:/PATH` when the
/// operator chose.
///
/// # Errors
/// See [`LocateError`].
pub fn local_brick(
    catalog: &Catalog,
    located: &Located,
    wanted: Option<&str>,
    identity: &Identity,
    timeouts: &Timeouts,
) -> Result<usize, LocateError> {
    if !may_see_trusted() {
        return Err(LocateError::Privilege);
    }
    let prove = |brick: usize| prove(catalog, located, brick, identity, timeouts);
    let chosen = match wanted {
        Some(wanted) => chosen_brick(located, wanted, prove)?,
        None => only_local_brick(located, prove)?,
    };
    match located.arbiter() {
        Some(arbiter) if arbiter == chosen => Err(LocateError::Arbiter {
            brick: located.names().one(chosen),
            others: located.names().list(located.shape(chosen).copies()),
        }),
        _ => Ok(chosen),
    }
}

fn chosen_brick(
    located: &Located,
    wanted: &str,
    prove: impl Fn(usize) -> Proof,
) -> Result<usize, LocateError> {
    let names = located.names();
    let Some(brick) = names.position(wanted.trim_end_matches('/')) else {
        return Err(LocateError::UnknownBrick {
            brick: wanted.to_owned(),
            image: located.image.clone(),
            bricks: names.list(located.shape(0).all()),
        });
    };
    match prove(brick) {
        Proof::Local => Ok(brick),
        Proof::Elsewhere => Err(LocateError::NotOnThisHost {
            brick: wanted.to_owned(),
            path: brick_dir(located, brick),
        }),
        Proof::OtherFile(found) => Err(LocateError::OtherFile {
            path: located.local_path(brick),
            found,
            expected: located.gfid,
        }),
        Proof::Unknown(why) => Err(LocateError::Unproven {
            volume: located.volume.clone(),
            brick: wanted.to_owned(),
            why,
        }),
    }
}

fn only_local_brick(
    located: &Located,
    prove: impl Fn(usize) -> Proof,
) -> Result<usize, LocateError> {
    let names = located.names();
    let mut mine = BrickSet::EMPTY;
    let mut unknown = None;
    for brick in located.shape(0).all().iter() {
        match prove(brick) {
            Proof::Local => mine.insert(brick),
            Proof::Elsewhere | Proof::OtherFile(_) => {}
            Proof::Unknown(why) => unknown = Some((brick, why)),
        }
    }
    let first = mine.iter().next();
    match (first, mine.len(), unknown) {
        (Some(brick), 1, _) => Ok(brick),
        (None, _, Some((brick, why))) => Err(LocateError::Unproven {
            volume: located.volume.clone(),
            brick: names.one(brick),
            why,
        }),
        (None, _, None) => Err(LocateError::NoLocalBrick {
            image: located.image.clone(),
            bricks: names.list(located.shape(0).all()),
        }),
        (Some(_), _, _) => Err(LocateError::SeveralLocalBricks {
            image: located.image.clone(),
            bricks: names.list(mine),
        }),
    }
}

fn prove(
    catalog: &Catalog,
    located: &Located,
    brick: usize,
    identity: &Identity,
    timeouts: &Timeouts,
) -> Proof {
    let Some(spec) = located.set.bricks.get(brick) else {
        return Proof::Elsewhere;
    };
    // Cheap, and right for most: no such directory, or another volume's.
    if !is_brick_of(&brick_dir(located, brick), located.volume_id) {
        return Proof::Elsewhere;
    }
    let file = located.local_path(brick);
    let gfid = xattr::get(&file, GFID_XATTR).ok().flatten();
    match gfid.as_deref().map(Uuid::from_slice) {
        Some(Ok(found)) if found != located.gfid => return Proof::OtherFile(found),
        _ => {}
    }
    match shows_mark(catalog, spec, Gfid(located.gfid), &file, identity, timeouts) {
        Ok(true) => Proof::Local,
        Ok(false) => Proof::Elsewhere,
        Err(error) => Proof::Unknown(chain(&error)),
    }
}

fn shows_mark(
    catalog: &Catalog,
    spec: &BrickSpec,
    gfid: Gfid,
    file: &Path,
    identity: &Identity,
    timeouts: &Timeouts,
) -> Result<bool, BrickError> {
    let brick = Brick::connect(spec, catalog.volume.volume_id, identity, timeouts)?;
    let name = format!("{PROOF_XATTR}.{}", Uuid::new_v4());
    brick.setxattr(gfid, &name, b"1")?;
    let seen = matches!(xattr::get(file, &name), Ok(Some(_)));
    brick.removexattr(gfid, &name)?;
    brick.close();
    Ok(seen)
}

fn brick_dir(located: &Located, brick: usize) -> PathBuf {
    let spec = located.set.bricks.get(brick);
    PathBuf::from(spec.map(|spec| spec.path.as_str()).unwrap_or_default())
}

fn is_brick_of(path: &Path, volume_id: Uuid) -> bool {
    let found = xattr::get(path, VOLUME_ID_XATTR).ok().flatten();
    found.as_deref() == Some(volume_id.as_bytes())
}
