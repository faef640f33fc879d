//! The image's file on the local brick: opened for direct I/O, and known to be
//! the file that Gluster means.
//!
//! Called after the locks are held and the copy was found fresh. It reads the
//! first bytes only, to recognise an image format; it writes nothing.

mod by_gfid;
mod durability;
pub mod error;
mod watch;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use uuid::Uuid;
use xattr::FileExt as _;

use super::local::error::LocalError;

pub use by_gfid::{Name, file_of, name_of};
pub use durability::{Durability, SyncFailure};
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
        let ours = self.file.metadata().map_err(io_error)?;
        let there = self.path_now().map_err(io_error)?;
        let there = std::fs::symlink_metadata(there).map_err(io_error)?;
        let same = (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        if !same || ours.len() != self.size {
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
        Fingerprint::of(&self.file).map_err(|source| LocalError::Io {
            what: "look at",
            path: self.path.clone(),
            source,
        })
    }

    /// Gives the claim back; the file stays open.
    pub fn give_back(&self) {
        if let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            log::warn!("cannot unlock {}: {error}", self.path.display());
        }
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
    fn watch(&self, pending_names: Vec<String>) -> Result<Box<dyn CopyWatch>, LocalError>;
}

impl Local for LocalFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn durability(&self) -> Arc<Durability> {
        self.durability.clone()
    }

    fn watch(&self, pending_names: Vec<String>) -> Result<Box<dyn CopyWatch>, LocalError> {
        Ok(Box::new(LocalWatch::begin(self, pending_names)?))
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

/// [`open`] without the claim: whose the image is, is not known yet.
///
/// # Errors
/// See [`LocalError`].
pub fn look_at(path: &Path, gfid: Uuid, terms: LocalTerms) -> Result<LocalFile, LocalError> {
    let path = &*file_of(path, gfid);
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
    // Before the size, which is that of a disk only if the file is one.
    if !terms.force_raw
        && let Some(format) = format_of(path).map_err(io_error("read"))?
    {
        return Err(LocalError::Formatted {
            path: path.to_owned(),
            format,
        });
    }
    let size = file.metadata().map_err(io_error("stat"))?.len();
    check_size(path, size)?;
    Ok(LocalFile {
        file,
        path: path.to_owned(),
        size,
        durability: Arc::default(),
    })
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
mod tests {
    use super::*;
    use crate::gluster::Pending;
    use crate::image::replica::brick_set::BrickSet;

    const GFID: Uuid = Uuid::from_u128(0x1234);
    const RAW: LocalTerms = LocalTerms {
        read_only: false,
        force_raw: false,
    };

    /// A file on a disk (tmpfs takes no `trusted.*` attributes for everyone).
    fn image(contents: &[u8], size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        file.as_file().write_all_at(contents, 0).unwrap();
        file.as_file().set_len(size).unwrap();
        xattr::set(file.path(), GFID_XATTR, GFID.as_bytes()).unwrap();
        file
    }

    #[test]
    fn an_image_format_is_refused_unless_raw_is_forced() {
        for (magic, name) in FORMATS {
            let file = image(magic, 4096);
            match open(file.path(), GFID, RAW) {
                Err(LocalError::Formatted { format, .. }) => assert_eq!(format, name),
                other => panic!("{other:?}"),
            }
            let force_raw = LocalTerms {
                force_raw: true,
                ..RAW
            };
            assert_eq!(open(file.path(), GFID, force_raw).unwrap().size, 4096);
        }
    }

    #[test]
    fn an_image_format_is_told_before_a_size_that_no_disk_has() {
        for size in [196_624, 4] {
            let qcow2 = open(image(b"QFI\xfb", size).path(), GFID, RAW);
            assert!(matches!(qcow2, Err(LocalError::Formatted { .. })), "{size}");
        }
        let force_raw = LocalTerms {
            force_raw: true,
            ..RAW
        };
        let odd = open(image(b"QFI\xfb", 196_624).path(), GFID, force_raw);
        assert!(matches!(odd, Err(LocalError::OddSize { .. })));
        let short = open(image(b"QFI", 3).path(), GFID, RAW);
        assert!(matches!(short, Err(LocalError::OddSize { size: 3, .. })));
    }

    #[test]
    fn a_file_with_another_gfid_or_none_is_refused() {
        let file = image(b"", 4096);
        let other = Uuid::from_u128(9);
        assert!(matches!(
            open(file.path(), other, RAW),
            Err(LocalError::OtherFile { .. })
        ));
        xattr::remove(file.path(), GFID_XATTR).unwrap();
        assert!(matches!(
            open(file.path(), GFID, RAW),
            Err(LocalError::OtherFile { .. })
        ));
    }

    #[test]
    fn empty_and_odd_sizes_and_directories_are_refused() {
        let empty = open(image(b"", 0).path(), GFID, RAW);
        assert!(matches!(empty, Err(LocalError::Empty { .. })));
        let odd = open(image(b"", 1000).path(), GFID, RAW);
        assert!(matches!(odd, Err(LocalError::OddSize { size: 1000, .. })));
        let folder = open(Path::new("/var/tmp"), GFID, RAW);
        assert!(matches!(folder, Err(LocalError::NotAFile { .. })));
    }

    #[test]
    fn a_file_that_was_given_back_is_claimed_again_only_if_it_is_still_there() {
        let file = image(b"", 4096);
        let ours = look_at(file.path(), GFID, RAW).unwrap();
        let theirs = open(file.path(), GFID, RAW).unwrap();
        drop(theirs);
        let claimed = ours.claim_again().unwrap();
        let other = File::open(file.path()).unwrap();
        let try_lock = || rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
        assert!(try_lock().is_err(), "claimed");
        drop(claimed);
        assert!(try_lock().is_err(), "the other handle is still open");
        ours.give_back();
        try_lock().unwrap();
        drop(other);
        file.as_file().set_len(8192).unwrap();
        assert!(matches!(
            ours.claim_again(),
            Err(LocalError::Replaced { .. })
        ));
        file.as_file().set_len(4096).unwrap();
        let path = file.path().to_owned();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, [0; 4096]).unwrap();
        assert!(matches!(
            ours.claim_again(),
            Err(LocalError::Replaced { .. })
        ));
    }

    #[test]
    fn marks_are_stored_on_the_file_once_and_keep_the_other_counters() {
        let file = image(b"", 4096);
        let names = ["trusted.afr.v-client-0", "trusted.afr.v-client-1"];
        let metadata = Pending {
            metadata: 7,
            ..Pending::default()
        };
        xattr::set(file.path(), names[1], &metadata.to_bytes()).unwrap();
        let local = open(file.path(), GFID, RAW).unwrap();
        let watch = LocalWatch::begin(&local, names.map(str::to_owned).into()).unwrap();
        for _ in 0..2 {
            watch.mark(BrickSet::only(1), 5).unwrap();
        }
        let stored = xattr::get(file.path(), names[1]).unwrap().unwrap();
        let marked = Pending {
            data: 5,
            ..metadata
        };
        assert_eq!(Pending::from_bytes(&stored), Ok(marked));
        assert_eq!(xattr::get(file.path(), names[0]).unwrap(), None);
    }

    #[test]
    fn a_fingerprint_changes_with_a_write() {
        let file = image(b"", 4096);
        let before = Fingerprint::of(file.as_file()).unwrap();
        file.as_file()
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        assert_ne!(before, Fingerprint::of(file.as_file()).unwrap());
    }
}
