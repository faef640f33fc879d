//! Why a dirty map cannot be used: one variant a cause, each saying what is wrong,
//! where, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::extent::MAX_PEERS;
use super::terms::{Distrust, MAX_EXTENT_SIZE, MIN_EXTENT_SIZE, Role};

/// Why an operation on a map's file was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The state of an extent has no room for so many.
    #[error(
        "the replica set has {peers} peers that hold data, and a dirty map can follow {MAX_PEERS}. Serve images of smaller replica sets"
    )]
    TooManyPeers {
        /// How many.
        peers: usize,
    },
    /// Not a power of two in range.
    #[error(
        "an extent size of {bytes} bytes: give a power of two from {} to {}",
        MIN_EXTENT_SIZE,
        MAX_EXTENT_SIZE
    )]
    ExtentSize {
        /// What was given.
        bytes: u32,
    },
    /// Zero bytes.
    #[error("an empty image has no dirty map. Give the image a size first")]
    EmptyImage,
    /// Another process has that role on the map.
    #[error("{role} already works on the dirty map {}. End it first", .path.display())]
    InUse {
        /// The map's file.
        path: PathBuf,
        /// Who.
        role: Role,
    },
    /// The disk of the state directory is full.
    #[error("no room for the dirty map {}: it needs {bytes} bytes. Free some space there, or give another --state-dir", .path.display())]
    NoSpace {
        /// The map's file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The state directory is missing, read-only or somebody else's.
    #[error("cannot write the dirty map {}. Make its directory and let this user write there, or give another --state-dir", .path.display())]
    Unwritable {
        /// The map's file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {what} {}. Look at the disk of the state directory, or give another --state-dir", .path.display())]
    Io {
        /// What was tried: `map`, `sync`, …
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel does not say which boot this is.
    #[error(
        "cannot read the host's boot id, which says whether a dirty map is still whole. Mount /proc"
    )]
    BootId {
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// There is no map to attach to.
    #[error("there is no dirty map {}. A session makes it when it opens the image", .path.display())]
    Missing {
        /// The map's file.
        path: PathBuf,
    },
    /// A map that only a session may take over.
    #[error("the dirty map {} cannot be trusted: {reason}. Open the image anew; everything then counts as dirty", .path.display())]
    Untrusted {
        /// The map's file.
        path: PathBuf,
        /// Why.
        reason: Distrust,
    },
    /// The file has been replaced since it was opened.
    #[error("the dirty map {} was made anew by another session. Attach to it again", .path.display())]
    Replaced {
        /// The map's file.
        path: PathBuf,
    },
    /// Only the session that opened a map may close it.
    #[error("the dirty map {} is closed by the session that opened it, not by one who attached", .path.display())]
    NotOwner {
        /// The map's file.
        path: PathBuf,
    },
    /// Writes are in flight at the close.
    #[error("the dirty map {} has writes in flight in {extents} extents: drain them before closing it", .path.display())]
    InFlight {
        /// The map's file.
        path: PathBuf,
        /// In how many extents.
        extents: u64,
    },
}

impl MapError {
    /// Whether the map's file may not be on the disk as it should be.
    pub fn is_of_the_disk(&self) -> bool {
        matches!(
            self,
            Self::Io { .. } | Self::NoSpace { .. } | Self::Unwritable { .. }
        )
    }

    /// A failed system call on the map's file; causes with a remedy of their own
    /// get their own variant. `bytes` is the length of the file.
    pub(super) fn of(what: &'static str, path: &Path, bytes: u64, source: io::Error) -> Self {
        let path = path.to_owned();
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Self::NoSpace {
                path,
                bytes,
                source,
            },
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOENT | Errno::NOTDIR) => {
                Self::Unwritable { path, source }
            }
            _ => Self::Io { what, path, source },
        }
    }
}
