//! The files of an image in shards on the local brick, all but the one at its path: opened,
//! known to be those that Gluster means, and claimed for this process.
//!
//! Each is claimed by itself: what a killed process left with the kernel keeps open, and so
//! claimed, the file that it goes to and no other.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::image::layout::{FileIndex, Layout, shards};

use super::error::LocalError;
use super::opening::{LocalTerms, claim, give_back, open_known};
use super::{CopyWatch, LocalWatch};

/// What reads as nothing: for a piece that no brick has, of an image that is only read.
const NOTHING: &str = "/dev/null";

/// Where an image is on the local brick.
#[derive(Clone, Debug)]
pub struct LocalPlace {
    /// The file at the image's path.
    pub path: PathBuf,
    /// The brick's folder of shards.
    pub shards: PathBuf,
    /// The files.
    pub layout: Layout,
}

impl LocalPlace {
    /// Where a file is, or was when it was looked up.
    pub fn file(&self, file: FileIndex) -> PathBuf {
        let base = self.layout.gfid(FileIndex::BASE);
        match file {
            FileIndex::BASE => self.path.clone(),
            file => self.shards.join(shards::name(base, file.0.into())),
        }
    }
}

/// One of them, open for direct I/O.
#[derive(Debug)]
pub struct PieceFile {
    /// For reading and writing, or for reading only.
    pub file: File,
    /// Where it was opened.
    pub path: PathBuf,
}

impl PieceFile {
    /// What a session does with it.
    ///
    /// # Errors
    /// [`LocalError::Io`].
    pub fn watch(&self, pending_names: Arc<[String]>) -> Result<Box<dyn CopyWatch>, LocalError> {
        let watch = LocalWatch::begin(&self.file, &self.path, pending_names)?;
        Ok(Box::new(watch))
    }
}

/// Opens all but the first so many.
///
/// # Errors
/// See [`LocalError`].
pub(super) fn open(
    place: &LocalPlace,
    skip: usize,
    terms: LocalTerms,
) -> Result<Vec<Arc<PieceFile>>, LocalError> {
    let files = place.layout.files().skip(skip);
    let open = |file| open_one(place, file, terms).map(Arc::new);
    files.map(open).collect()
}

fn open_one(
    place: &LocalPlace,
    index: FileIndex,
    terms: LocalTerms,
) -> Result<PieceFile, LocalError> {
    let gfid = place.layout.gfid(index);
    if gfid.is_nil() && terms.read_only {
        let path = PathBuf::from(NOTHING);
        return match File::open(&path) {
            Ok(file) => Ok(PieceFile { file, path }),
            Err(source) => Err(LocalError::Io {
                what: "open",
                path,
                source,
            }),
        };
    }
    let path = place.file(index);
    let file = open_known(&path, gfid, terms)?;
    Ok(PieceFile { file, path })
}

/// Claims all of them, or none.
///
/// # Errors
/// [`LocalError::InUse`], [`LocalError::Io`].
pub(super) fn claim_all(pieces: &[Arc<PieceFile>]) -> Result<(), LocalError> {
    for (number, piece) in pieces.iter().enumerate() {
        if let Err(error) = claim(&piece.file, &piece.path) {
            give_back_all(pieces.get(..number).unwrap_or_default());
            return Err(error);
        }
    }
    Ok(())
}

/// Gives the claims back.
pub(super) fn give_back_all(pieces: &[Arc<PieceFile>]) {
    for piece in pieces {
        give_back(&piece.file, &piece.path);
    }
}

/// Is this still the file at its path?
pub(super) fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    let (ours, there) = (file.metadata()?, std::fs::symlink_metadata(path)?);
    Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
}
