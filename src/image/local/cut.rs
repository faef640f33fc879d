//! How an image is cut into files, as the local brick's copy of it says.
//!
//! For a healer: its session has looked every file up on all bricks, and made what was missing.

use std::io;
use std::path::Path;

use uuid::Uuid;

use super::error::LocalError;
use super::pieces::LocalPlace;
use super::{GFID_XATTR, file_of, may_see_trusted};
use crate::image::layout::shards::{self, Cut};
use crate::image::layout::{Layout, Pieces};

/// Where the image of `size` bytes is that was at `path` in the brick at `brick`.
///
/// # Errors
/// See [`LocalError`].
pub fn place_of(
    path: &Path,
    gfid: Uuid,
    brick: &Path,
    size: u64,
) -> Result<LocalPlace, LocalError> {
    let (path, folder) = (file_of(path, gfid), brick.join(shards::FOLDER));
    let pieces = match attribute(&path, shards::BLOCK_SIZE)? {
        Some(block) => {
            let told = attribute(&path, shards::FILE_SIZE)?;
            let cut = Cut::parse(&block, told.as_deref());
            let cut = cut.map_err(|source| LocalError::BadShards {
                path: path.clone(),
                source,
            })?;
            let shard = |piece| gfid_of(&folder.join(shards::name(gfid, piece)));
            let gfids = (1..Layout::count(size, cut.block)).map(shard);
            Some(Pieces {
                size: cut.block,
                gfids: gfids.collect::<Result<_, _>>()?,
            })
        }
        None => None,
    };
    Ok(LocalPlace {
        path,
        shards: folder,
        layout: Layout::new(gfid, size, pieces.as_ref()),
    })
}

fn gfid_of(path: &Path) -> Result<Uuid, LocalError> {
    let bad = |why| LocalError::NoShard {
        path: path.to_owned(),
        why,
    };
    match attribute(path, GFID_XATTR) {
        Ok(None) if !may_see_trusted() => Err(LocalError::Privilege {
            path: path.to_owned(),
        }),
        Ok(gfid) => {
            let gfid = gfid.and_then(|gfid| Uuid::from_slice(&gfid).ok());
            gfid.ok_or_else(|| bad("has no trusted.gfid"))
        }
        Err(LocalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(bad("is not there"))
        }
        Err(error) => Err(error),
    }
}

fn attribute(path: &Path, name: &str) -> Result<Option<Vec<u8>>, LocalError> {
    xattr::get(path, name).map_err(|source| LocalError::Io {
        what: "read the attributes of",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::image::layout::FileIndex;
    use crate::image::local::{LocalTerms, open_image};

    const BASE: Uuid = Uuid::from_u128(7);
    const BLOCK: u64 = 1 << 20;

    /// A brick with an image of two blocks and a half, whose first one is empty.
    fn brick() -> tempfile::TempDir {
        let brick = tempfile::tempdir_in("/var/tmp").unwrap();
        let base = brick.path().join("image");
        std::fs::write(&base, []).unwrap();
        xattr::set(&base, GFID_XATTR, BASE.as_bytes()).unwrap();
        xattr::set(&base, shards::BLOCK_SIZE, &BLOCK.to_be_bytes()).unwrap();
        let mut size = [0; 32];
        size[..8].copy_from_slice(&(5 * BLOCK / 2).to_be_bytes());
        xattr::set(&base, shards::FILE_SIZE, &size).unwrap();
        std::fs::create_dir(brick.path().join(shards::FOLDER)).unwrap();
        for piece in 1..3 {
            let path = piece_of(brick.path(), piece);
            std::fs::write(&path, [1; 4096]).unwrap();
            let gfid = Uuid::from_u128(70 + u128::from(piece));
            xattr::set(&path, GFID_XATTR, gfid.as_bytes()).unwrap();
        }
        brick
    }

    fn piece_of(brick: &Path, piece: u64) -> PathBuf {
        brick.join(shards::FOLDER).join(shards::name(BASE, piece))
    }

    fn found(brick: &Path, size: u64) -> Result<LocalPlace, LocalError> {
        place_of(&brick.join("image"), BASE, brick, size)
    }

    #[test]
    fn the_shards_of_an_image_are_found_by_its_size_and_can_be_opened() {
        let brick = brick();
        let place = found(brick.path(), 5 * BLOCK / 2).unwrap();
        assert_eq!((place.layout.len(), place.layout.piece()), (3, BLOCK));
        let gfids = [7, 71, 72].map(Uuid::from_u128);
        assert_eq!(place.layout.gfids(), gfids);
        assert_eq!(place.file(FileIndex(2)), piece_of(brick.path(), 2));
        let terms = LocalTerms {
            read_only: true,
            force_raw: true,
        };
        assert_eq!(open_image(&place, terms).unwrap().pieces.len(), 2);
        assert_eq!(found(brick.path(), BLOCK).unwrap().layout.len(), 1);
    }

    #[test]
    fn a_shard_that_is_not_there_is_named() {
        let brick = brick();
        std::fs::remove_file(piece_of(brick.path(), 2)).unwrap();
        let error = found(brick.path(), 5 * BLOCK / 2).unwrap_err();
        assert!(
            error.to_string().contains(&shards::name(BASE, 2)),
            "{error}"
        );
        std::fs::write(piece_of(brick.path(), 2), []).unwrap();
        let error = found(brick.path(), 5 * BLOCK / 2).unwrap_err();
        assert!(error.to_string().contains("trusted.gfid"), "{error}");
    }

    #[test]
    fn an_image_without_a_block_size_is_one_file() {
        let brick = brick();
        let base = brick.path().join("image");
        xattr::remove(&base, shards::BLOCK_SIZE).unwrap();
        let place = found(brick.path(), 5 * BLOCK / 2).unwrap();
        assert!(place.layout.is_whole());
        assert_eq!(place.layout.size(), 5 * BLOCK / 2);
    }
}
