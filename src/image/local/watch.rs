//! The local copy as the session's thread sees it: is it written by somebody else, does
//! it say that it misses data, is it durable.
//!
//! The guest's requests go past it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xattr::FileExt as _;

use crate::gluster::Pending;
use crate::image::replica::brick_set::BrickSet;

use super::disk_size;
use super::error::LocalError;

/// What changes when somebody writes to the file behind our back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    size: u64,
    modified: (i64, i64),
}

impl Fingerprint {
    /// Of several files as of one; of one it is that one's.
    pub fn combined(each: Vec<Self>) -> Self {
        if let [one] = each.as_slice() {
            return *one;
        }
        // Whatever changes in one changes in the whole: odd factors lose nothing.
        const FACTOR: i64 = 0x5851_f42d_4c95_7f2d;
        let mix = |sum: i64, value: i64| sum.wrapping_mul(FACTOR).wrapping_add(value);
        each.iter().fold(Self::NONE, |all, one| Self {
            size: all.size.wrapping_mul(31).wrapping_add(one.size),
            modified: (
                mix(all.modified.0, one.modified.0),
                mix(all.modified.1, one.modified.1),
            ),
        })
    }

    const NONE: Self = Self {
        size: 0,
        modified: (0, 0),
    };

    /// Of the file as it is now.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

/// What a session does with the local copy; the guest's requests go past it.
pub trait CopyWatch: Send {
    /// Stores marks of this value against these children on the copy itself, durably,
    /// where there are none. Only for when its brick's process is away.
    ///
    /// # Errors
    /// [`LocalError::Io`], [`LocalError::Sync`].
    fn mark(&self, children: BrickSet, stamp: i32) -> Result<(), LocalError>;

    /// Does it say itself that this child misses data? Unknown counts as that.
    fn accuses(&self, child: usize) -> bool;

    /// Is it as it was at the beginning? Unknown counts as touched.
    fn is_untouched(&self) -> bool;

    /// What would change if somebody else wrote to it; `None`: nobody knows.
    fn fingerprint(&self) -> Option<Fingerprint> {
        None
    }

    /// From now on, remembers it as it is now.
    ///
    /// # Errors
    /// [`LocalError::Io`]; it then counts as touched.
    fn rebase(&mut self) -> Result<(), LocalError>;

    /// Makes the disk `to` bytes large, durably; it must have `from` now. What is new reads as zeros.
    /// Of an image in pieces this is the first file's, whose attribute says so.
    ///
    /// # Errors
    /// [`LocalError::Io`], [`LocalError::Sync`], [`LocalError::Replaced`] with another size than `from`: it is
    /// as it was.
    fn resize(&mut self, from: u64, to: u64) -> Result<(), LocalError>;

    /// Blocks of 512 bytes that its file uses; `None`: nobody knows.
    fn blocks(&self) -> Option<u64> {
        None
    }

    /// Bytes that its disk has free.
    ///
    /// # Errors
    /// [`LocalError::Io`].
    fn free(&self) -> Result<u64, LocalError>;

    /// Makes its data and attributes durable. Once marks are cleared, what the other
    /// copies were healed from must survive a power cut. That it succeeds says nothing when
    /// one has failed before: see [`super::Durability`].
    ///
    /// # Errors
    /// [`LocalError::Sync`].
    fn sync(&self) -> Result<(), LocalError>;
}

/// Sees whether somebody else writes to the local file, marks it when its brick's
/// process cannot, and makes it durable at the end.
#[derive(Debug)]
pub struct LocalWatch {
    file: File,
    path: PathBuf,
    baseline: Fingerprint,
    /// Names of the pending attributes per child.
    pending_names: Arc<[String]>,
}

impl LocalWatch {
    /// Remembers the file as it is now.
    ///
    /// # Errors
    /// [`LocalError::Io`].
    pub fn begin(
        file: &File,
        path: &Path,
        pending_names: Arc<[String]>,
    ) -> Result<Self, LocalError> {
        let io_error = |source| LocalError::Io {
            what: "watch",
            path: path.to_owned(),
            source,
        };
        let file = open_again(file).map_err(io_error)?;
        let baseline = Fingerprint::of(&file).map_err(io_error)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            baseline,
            pending_names,
        })
    }

    fn store_marks(&self, children: BrickSet, stamp: i32) -> io::Result<()> {
        let names = self.pending_names.iter().enumerate();
        for (_, name) in names.filter(|(child, _)| children.contains(*child)) {
            let stored = self.file.get_xattr(name)?.unwrap_or_default();
            let stored = Pending::from_bytes(&stored).unwrap_or_default();
            if stored.data == 0 {
                let marked = Pending {
                    data: stamp,
                    ..stored
                };
                self.file.set_xattr(name, &marked.to_bytes())?;
            }
        }
        Ok(())
    }

    fn sync_error(&self, source: io::Error) -> LocalError {
        LocalError::Sync {
            path: self.path.clone(),
            source,
        }
    }
}

/// The same file, opened for itself: what cannot be written back is told to each that has it
/// open, so the guest's flushes do not take it away from the session's.
fn open_again(file: &File) -> io::Result<File> {
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let writable = rustix::fs::fcntl_getfl(file)?.contains(rustix::fs::OFlags::RDWR);
    OpenOptions::new().read(true).write(writable).open(again)
}

impl CopyWatch for LocalWatch {
    fn mark(&self, children: BrickSet, stamp: i32) -> Result<(), LocalError> {
        self.store_marks(children, stamp)
            .map_err(|source| LocalError::Io {
                what: "store marks on",
                path: self.path.clone(),
                source,
            })?;
        self.sync()
    }

    fn accuses(&self, child: usize) -> bool {
        let Some(name) = self.pending_names.get(child) else {
            return true;
        };
        let counter = |value: Option<Vec<u8>>| match value {
            None => false,
            Some(value) => Pending::from_bytes(&value).map_or(true, |marks| marks.data != 0),
        };
        self.file.get_xattr(name).map_or(true, counter)
    }

    fn is_untouched(&self) -> bool {
        Fingerprint::of(&self.file).is_ok_and(|now| now == self.baseline)
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        Fingerprint::of(&self.file)
            .inspect_err(|error| log::warn!("cannot look at {}: {error}", self.path.display()))
            .ok()
    }

    fn rebase(&mut self) -> Result<(), LocalError> {
        self.baseline = Fingerprint::of(&self.file).map_err(|source| LocalError::Io {
            what: "watch",
            path: self.path.clone(),
            source,
        })?;
        Ok(())
    }

    fn resize(&mut self, from: u64, to: u64) -> Result<(), LocalError> {
        let io_error = |source| LocalError::Io {
            what: "resize",
            path: self.path.clone(),
            source,
        };
        if disk_size::read(&self.file).map_err(io_error)? != from {
            return Err(LocalError::Replaced {
                path: self.path.clone(),
            });
        }
        disk_size::write(&self.file, to).map_err(io_error)?;
        self.file.sync_all().map_err(|error| {
            // Whether it would survive is not known: the old size is safe in any case.
            let _ = disk_size::write(&self.file, from);
            self.sync_error(error)
        })
    }

    fn blocks(&self) -> Option<u64> {
        Some(self.file.metadata().ok()?.blocks())
    }

    fn free(&self) -> Result<u64, LocalError> {
        let found = rustix::fs::fstatvfs(&self.file).map_err(|error| LocalError::Io {
            what: "look at the disk of",
            path: self.path.clone(),
            source: error.into(),
        })?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn sync(&self) -> Result<(), LocalError> {
        self.file
            .sync_all()
            .map_err(|source| self.sync_error(source))
    }
}
