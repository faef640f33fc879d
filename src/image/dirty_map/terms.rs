//! Words of the dirty map that its errors say, too: who has a role on it, why it is not
//! believed, how fine it can be.

use std::fmt;

use uuid::Uuid;

/// The layout of header and words. A map of another version is not trusted.
pub const VERSION: u32 = 2;
/// The smallest extent, in bytes.
pub const MIN_EXTENT_SIZE: u32 = 4 << 10;
/// The largest extent, in bytes.
pub const MAX_EXTENT_SIZE: u32 = 1 << 20;

/// What a process does with a map that nobody else may do at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Writes to the image.
    Session,
    /// Copies to the peers.
    Healer,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "a session",
            Self::Healer => "a healer",
        })
    }
}

/// Why a map is not believed, so that everything counts as dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// Not as long as a map of its kind.
    #[error("its file is cut short")]
    Truncated,
    /// Something else.
    #[error("its file is not a dirty map")]
    Magic,
    /// Of another version of the program.
    #[error("it has version {found}, this program reads {VERSION}")]
    Version {
        /// The file's.
        found: u32,
    },
    /// Damaged.
    #[error("the checksum of its header is wrong")]
    Checksum,
    /// Well-formed, but no image can be like that.
    #[error("its header makes no sense")]
    Impossible,
    /// Of another file.
    #[error("it belongs to the gfid {found}")]
    Gfid {
        /// The map's.
        found: Uuid,
    },
    /// The image was resized.
    #[error("it was made for an image of {found} bytes")]
    Size {
        /// The map's, in bytes.
        found: u64,
    },
    /// Another extent size was configured.
    #[error("it has extents of {found} bytes")]
    ExtentSize {
        /// The map's, in bytes.
        found: u64,
    },
    /// Of another copy.
    #[error("it was made on another brick")]
    Local,
    /// The replica set changed.
    #[error("it was made for other peers")]
    Peers,
    /// The host went down while the map was in use.
    #[error("the host was restarted and the map had not been closed")]
    HostRestarted,
    /// What the peers have may be newer than what the local copy lost.
    #[error("a sync of the local copy or of the map failed while it was in use")]
    SyncFailed,
}
