//! Opening the local files: each known to be the one that Gluster means, for direct I/O, and
//! claimed for this process.

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

use super::error::LocalError;
use super::{GFID_XATTR, LocalFile, LocalPlace, PieceFile, SECTOR, file_of, pieces};

/// How long requests of a killed process are waited for.
const CLAIM_LIMIT: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

/// Formats recognised by their first bytes: served raw, such an image would
/// show its guest the container instead of the disk.
pub(super) const FORMATS: [(&[u8], &str); 5] = [
    (b"QFI\xfb", "qcow2"),
    (b"QED\0", "qed"),
    (b"KDMV", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
];

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

/// Opens and claims those files of an image that has grown which it did not have when it was
/// `before` files.
///
/// # Errors
/// See [`LocalError`].
pub fn open_more(
    place: &LocalPlace,
    before: usize,
    terms: LocalTerms,
) -> Result<Vec<Arc<PieceFile>>, LocalError> {
    let more = pieces::open(place, before, terms)?;
    pieces::claim_all(&more)?;
    Ok(more)
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
        pieces: pieces::open(place, 1, terms)?.into(),
        whole: false,
    })
}

/// Goes on with the file at the image's path, which the process before had open and claimed;
/// those behind it, if there are any, are opened and claimed anew.
///
/// # Errors
/// See [`LocalError`].
pub fn go_on(file: File, place: &LocalPlace, terms: LocalTerms) -> Result<LocalFile, LocalError> {
    let size = file.metadata().map_err(|source| LocalError::Io {
        what: "stat",
        path: place.path.clone(),
        source,
    })?;
    let pieces = pieces::open(place, 1, terms)?;
    if !terms.read_only {
        pieces::claim_all(&pieces)?;
    }
    Ok(LocalFile {
        file,
        path: place.path.clone(),
        size: match place.layout.is_whole() {
            true => size.len(),
            false => place.layout.size(),
        },
        // Nobody is replaced after a failure.
        durability: Arc::default(),
        pieces: pieces.into(),
        whole: place.layout.is_whole(),
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
        whole: true,
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
pub(super) fn open_known(path: &Path, gfid: Uuid, terms: LocalTerms) -> Result<File, LocalError> {
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
pub(super) fn claim(file: &File, path: &Path) -> Result<(), LocalError> {
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

/// Gives a claim back.
pub(super) fn give_back(file: &File, path: &Path) {
    if let Err(error) = rustix::fs::flock(file, FlockOperation::Unlock) {
        log::warn!("cannot unlock {}: {error}", path.display());
    }
}
