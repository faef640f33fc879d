//! The image's file on the local brick: opened for direct I/O, and known to be
//! the file that Gluster means.
//!
//! Called after the locks are held and the copy was found fresh. It reads the
//! first bytes only, to recognise an image format; it writes nothing.

mod by_gfid;
mod cut;
mod durability;
pub mod error;
mod pieces;
mod watch;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use uuid::Uuid;
use xattr::FileExt as _;

use crate::image::layout::FileIndex;

use super::local::error::LocalError;

pub use by_gfid::{Name, file_of, name_of};
pub use cut::place_of;
pub use durability::{Durability, SyncFailure};
pub use pieces::{LocalPlace, PieceFile};
pub use watch::{CopyWatch, Fingerprint, LocalWatch};

/// Gluster's identity of a file, on the brick.
const GFID_XATTR: &str = "trusted.gfid";

/// The sector of virtio-blk, in bytes: no disk has a part of one.
pub const SECTOR: u64 = 512;

/// How long requests of a killed process are waited for.
const CLAIM_LIMIT: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

/// Formats recognised by their first bytes: served raw, such an image would
/// show its guest the container instead of the disk.
const FORMATS: [(&[u8], &str); 5] = [
    (b"QFI\xfb", "qcow2"),
    (b"QED\0", "qed"),
    (b"KDMV", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
];

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
    pub pieces: Arc<[PieceFile]>,
}

impl LocalFile {
    /// Claims a file that was only looked at, or given back. It must still be the file
    /// at its path, and of the same size: a heal may have made another in the meantime.
    ///
    /// # Errors
    /// [`LocalError::Replaced`], [`LocalError::InUse`], [`LocalError::Io`].
    pub fn claim_again(&self) -> Result<Self, LocalError> {
        let io_error = |source| LocalError::Io {
            what: "look again at",
            path: self.path.clone(),
            source,
        };
        claim(&self.file, &self.path)?;
        if let Err(error) = pieces::claim_all(&self.pieces) {
            give_back(&self.file, &self.path);
            return Err(error);
        }
        let there = self.path_now().map_err(io_error)?;
        let mut same = pieces::is_at(&self.file, &there).map_err(io_error)?;
        for piece in self.pieces.iter() {
            same &= pieces::is_at(&piece.file, &piece.path).map_err(io_error)?;
        }
        let size = self.file.metadata().map_err(io_error)?.len();
        if !same || self.pieces.is_empty() && size != self.size {
            self.give_back();
            return Err(LocalError::Replaced {
                path: self.path.clone(),
            });
        }
        self.try_clone()
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
        })
    }
}

fn give_back(file: &File, path: &Path) {
    if let Err(error) = rustix::fs::flock(file, FlockOperation::Unlock) {
        log::warn!("cannot unlock {}: {error}", path.display());
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
        for PieceFile { file, path } in self.pieces.iter() {
            all.push(Box::new(LocalWatch::begin(
                file,
                path,
                pending_names.clone(),
            )?));
        }
        Ok(all)
    }
}

/// How to open the file.
#[derive(Clone, Copy, Debug)]
pub struct LocalTerms {
    /// Open it for reading only.
    pub read_only: bool,
    /// Serve it raw even if it looks like an image format.
    pub force_raw: bool,
}

/// Opens the local copy at `path`, which Gluster says has the identity `gfid`, or
/// wherever in its brick it is if it was renamed since, and claims it for this process unless it is for reading only.
///
/// # Errors
/// See [`LocalError`].
pub fn open(path: &Path, gfid: Uuid, terms: LocalTerms) -> Result<LocalFile, LocalError> {
    let local = look_at(path, gfid, terms)?;
    if !terms.read_only {
        claim(&local.file, path)?;
    }
    Ok(local)
}

/// [`open`] of an image that may be several files.
///
/// # Errors
/// See [`LocalError`].
pub fn open_image(place: &LocalPlace, terms: LocalTerms) -> Result<LocalFile, LocalError> {
    let local = look_at_image(place, terms)?;
    if !terms.read_only {
        claim(&local.file, &local.path)?;
        pieces::claim_all(&local.pieces)?;
    }
    Ok(local)
}

/// [`look_at`] of an image that may be several files.
///
/// # Errors
/// See [`LocalError`].
pub fn look_at_image(place: &LocalPlace, terms: LocalTerms) -> Result<LocalFile, LocalError> {
    let gfid = place.layout.gfid(FileIndex::BASE);
    if place.layout.is_whole() {
        return look_at(&place.path, gfid, terms);
    }
    let (file, path) = open_checked(&place.path, gfid, terms)?;
    let size = place.layout.size();
    check_size(&path, size)?;
    Ok(LocalFile {
        file,
        path,
        size,
        durability: Arc::default(),
        pieces: pieces::open(place, terms)?.into(),
    })
}

/// [`open`] without the claim: whose the image is, is not known yet.
///
/// # Errors
/// See [`LocalError`].
pub fn look_at(path: &Path, gfid: Uuid, terms: LocalTerms) -> Result<LocalFile, LocalError> {
    let (file, path) = open_checked(path, gfid, terms)?;
    let size = file.metadata().map_err(|source| LocalError::Io {
        what: "stat",
        path: path.clone(),
        source,
    })?;
    check_size(&path, size.len())?;
    Ok(LocalFile {
        file,
        path,
        size: size.len(),
        durability: Arc::default(),
        pieces: Arc::default(),
    })
}

/// The file at the image's path, and where it is.
fn open_checked(path: &Path, gfid: Uuid, terms: LocalTerms) -> Result<(File, PathBuf), LocalError> {
    let path = file_of(path, gfid);
    let file = open_known(&path, gfid, terms)?;
    // Before the size, which is that of a disk only if the file is one.
    if !terms.force_raw {
        let format = format_of(&path).map_err(|source| LocalError::Io {
            what: "read",
            path: path.clone(),
            source,
        })?;
        if let Some(format) = format {
            return Err(LocalError::Formatted { path, format });
        }
    }
    Ok((file, path))
}

/// A regular file of this identity, open for direct I/O.
fn open_known(path: &Path, gfid: Uuid, terms: LocalTerms) -> Result<File, LocalError> {
    let io_error = |what| {
        move |source| LocalError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let kind = std::fs::symlink_metadata(path)
        .map_err(io_error("look at"))?
        .file_type();
    if !kind.is_file() {
        let what = kind_name(&kind);
        return Err(LocalError::NotAFile {
            path: path.to_owned(),
            what,
        });
    }
    let file = OpenOptions::new()
        .read(true)
        .write(!terms.read_only)
        .custom_flags(libc::O_DIRECT | libc::O_NOFOLLOW)
        .open(path)
        .map_err(io_error("open"))?;
    check_gfid(&file, path, gfid)?;
    Ok(file)
}

/// One writer per file on this host. The claim lasts as long as the open file, and
/// requests that a killed process left with the kernel keep that open: so whoever
/// comes next finds none of them under way.
fn claim(file: &File, path: &Path) -> Result<(), LocalError> {
    let begin = Instant::now();
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if begin.elapsed() < CLAIM_LIMIT => {
                std::thread::sleep(CLAIM_PAUSE);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LocalError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(error) => {
                return Err(LocalError::Io {
                    what: "lock",
                    path: path.to_owned(),
                    source: error.into(),
                });
            }
        }
    }
}

fn check_gfid(file: &File, path: &Path, expected: Uuid) -> Result<(), LocalError> {
    let found = match file.get_xattr(GFID_XATTR) {
        Ok(found) => found,
        Err(source) => {
            return Err(LocalError::Io {
                what: "read trusted.gfid of",
                path: path.to_owned(),
                source,
            });
        }
    };
    match found.as_deref().map(Uuid::from_slice) {
        Some(Ok(gfid)) if gfid == expected => Ok(()),
        None if !may_see_trusted() => Err(LocalError::Privilege {
            path: path.to_owned(),
        }),
        other => Err(LocalError::OtherFile {
            path: path.to_owned(),
            found: match other {
                Some(Ok(gfid)) => gfid.to_string(),
                Some(Err(_)) => "(malformed)".to_owned(),
                None => "(none)".to_owned(),
            },
            expected: expected.to_string(),
        }),
    }
}

fn check_size(path: &Path, size: u64) -> Result<(), LocalError> {
    if size == 0 {
        return Err(LocalError::Empty {
            path: path.to_owned(),
        });
    }
    if !size.is_multiple_of(SECTOR) {
        return Err(LocalError::OddSize {
            path: path.to_owned(),
            size,
            block: SECTOR,
        });
    }
    Ok(())
}

/// Reads through the page cache, whose few bytes do no harm: `O_DIRECT` would
/// need an aligned buffer.
fn format_of(path: &Path) -> io::Result<Option<&'static str>> {
    let mut head = [0; 8];
    let length = File::open(path)?.read_at(&mut head, 0)?;
    let head = head.get(..length).unwrap_or_default();
    let known = FORMATS.iter().find(|(magic, _)| head.starts_with(magic));
    Ok(known.map(|(_, format)| *format))
}

fn kind_name(kind: &std::fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "a special file"
    }
}

/// `trusted.*` attributes are invisible, not forbidden, without `CAP_SYS_ADMIN`
/// (xattr(7)).
pub fn may_see_trusted() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| {
        sets.effective
            .contains(rustix::thread::CapabilitySet::SYS_ADMIN)
    })
}

#[cfg(test)]
mod tests;
