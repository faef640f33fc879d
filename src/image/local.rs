//! The image's file on the local brick: opened for direct I/O, and known to be
//! the file that Gluster means.
//!
//! Called after the locks are held and the copy was found fresh. It reads the
//! first bytes only, to recognise an image format; it writes nothing.

mod by_gfid;
mod cut;
mod disk_size;
mod durability;
pub mod error;
mod opening;
mod pieces;
mod watch;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;
use xattr::FileExt as _;

use error::LocalError;

pub use by_gfid::{Name, file_of, name_of};
pub use cut::place_of;
pub use durability::{Durability, SyncFailure};
pub use opening::{
    LocalTerms, go_on, look_at, look_at_image, may_see_trusted, open, open_image, open_more,
};
pub use pieces::{LocalPlace, PieceFile};
pub use watch::{CopyWatch, Fingerprint, LocalWatch};

use opening::{claim, give_back};

/// Gluster's identity of a file, on the brick.
const GFID_XATTR: &str = "trusted.gfid";

/// The sector of virtio-blk, in bytes: no disk has a part of one.
pub const SECTOR: u64 = 512;

/// The opened file.
#[derive(Debug)]
pub struct LocalFile {
    /// Opened with `O_DIRECT`, for reading only in a read-only session.
    pub file: File,
    /// Where it was opened.
    pub path: PathBuf,
    /// Its size in bytes, a multiple of [`SECTOR`].
    pub size: u64,
    /// What is known of its syncs.
    pub durability: Arc<Durability>,
    /// The files behind it, of an image in shards.
    pub pieces: Arc<[Arc<PieceFile>]>,
    /// It is one file, all of the image.
    pub whole: bool,
}

impl LocalFile {
    /// Claims a file that was only looked at, or given back. It must still be the file
    /// at its path, and of the same size: a heal may have made another in the meantime.
    ///
    /// # Errors
    /// [`LocalError::Replaced`], [`LocalError::InUse`], [`LocalError::Io`].
    pub fn claim_again(&self) -> Result<Self, LocalError> {
        claim(&self.file, &self.path)?;
        if let Err(error) = pieces::claim_all(&self.pieces) {
            give_back(&self.file, &self.path);
            return Err(error);
        }
        match self.check_places() {
            Ok(()) => self.try_clone(),
            Err(error) => {
                self.give_back();
                Err(error)
            }
        }
    }

    /// Are these still the files at their paths, and has nobody else resized the image?
    ///
    /// # Errors
    /// [`LocalError::Replaced`], [`LocalError::Io`].
    pub fn check_places(&self) -> Result<(), LocalError> {
        let io_error = |source| LocalError::Io {
            what: "look again at",
            path: self.path.clone(),
            source,
        };
        let there = self.path_now().map_err(io_error)?;
        let mut same = pieces::is_at(&self.file, &there).map_err(io_error)?;
        for piece in self.pieces.iter() {
            same &= pieces::is_at(&piece.file, &piece.path).map_err(io_error)?;
        }
        let size = disk_size::read(&self.file).map_err(io_error)?;
        let same_size = match self.whole {
            true => size == self.size,
            // An attribute may be old, of a copy that was away when the image grew.
            false => size <= self.size,
        };
        match same && same_size {
            true => Ok(()),
            false => Err(LocalError::Replaced {
                path: self.path.clone(),
            }),
        }
    }

    /// Where a file of this one's gfid is now.
    fn path_now(&self) -> io::Result<PathBuf> {
        let gfid = self.file.get_xattr(GFID_XATTR)?;
        let gfid = gfid.as_deref().and_then(|gfid| Uuid::from_slice(gfid).ok());
        Ok(gfid.map_or_else(|| self.path.clone(), |gfid| file_of(&self.path, gfid)))
    }

    /// What changes when somebody else writes to it.
    ///
    /// # Errors
    /// [`LocalError::Io`].
    pub fn fingerprint(&self) -> Result<Fingerprint, LocalError> {
        let pieces = self.pieces.iter().map(|piece| (&piece.file, &piece.path));
        let files = [(&self.file, &self.path)].into_iter().chain(pieces);
        let each = files.map(|(file, path)| {
            Fingerprint::of(file).map_err(|source| LocalError::Io {
                what: "look at",
                path: path.clone(),
                source,
            })
        });
        Ok(Fingerprint::combined(each.collect::<Result<_, _>>()?))
    }

    /// Gives the claim back; the file stays open.
    pub fn give_back(&self) {
        give_back(&self.file, &self.path);
        pieces::give_back_all(&self.pieces);
    }

    /// Another handle of the same open file: a claim is that of both.
    ///
    /// # Errors
    /// [`LocalError::Io`].
    pub fn try_clone(&self) -> Result<Self, LocalError> {
        let file = self.file.try_clone().map_err(|source| LocalError::Io {
            what: "use",
            path: self.path.clone(),
            source,
        })?;
        Ok(Self {
            file,
            path: self.path.clone(),
            size: self.size,
            durability: self.durability.clone(),
            pieces: self.pieces.clone(),
            whole: self.whole,
        })
    }

    /// The same, of an image that has grown to `size` bytes and has these files besides.
    ///
    /// # Errors
    /// [`LocalError::Io`].
    pub fn grown(&self, more: &[Arc<PieceFile>], size: u64) -> Result<Self, LocalError> {
        let pieces = self.pieces.iter().chain(more).cloned();
        Ok(Self {
            size,
            pieces: pieces.collect(),
            ..self.try_clone()?
        })
    }
}

/// A local copy that was opened.
pub trait Local {
    /// Its size in bytes, a multiple of [`SECTOR`].
    fn size(&self) -> u64;

    /// What is known of its syncs, shared by whoever syncs it.
    fn durability(&self) -> Arc<Durability>;

    /// What the session does with it. `pending_names` are the names of the pending
    /// attributes per child.
    ///
    /// # Errors
    /// [`LocalError::Io`].
    fn watch(&self, pending_names: Arc<[String]>) -> Result<Box<dyn CopyWatch>, LocalError>;

    /// The same of each file that it is made of.
    ///
    /// # Errors
    /// [`LocalError::Io`].
    fn watch_all(
        &self,
        pending_names: Arc<[String]>,
    ) -> Result<Vec<Box<dyn CopyWatch>>, LocalError> {
        Ok(vec![self.watch(pending_names)?])
    }
}

impl Local for LocalFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn durability(&self) -> Arc<Durability> {
        self.durability.clone()
    }

    fn watch(&self, pending_names: Arc<[String]>) -> Result<Box<dyn CopyWatch>, LocalError> {
        let watch = LocalWatch::begin(&self.file, &self.path, pending_names)?;
        Ok(Box::new(watch))
    }

    fn watch_all(
        &self,
        pending_names: Arc<[String]>,
    ) -> Result<Vec<Box<dyn CopyWatch>>, LocalError> {
        let mut all = vec![self.watch(pending_names.clone())?];
        for piece in self.pieces.iter() {
            all.push(piece.watch(pending_names.clone())?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests;
