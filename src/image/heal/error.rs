//! Why a pass of the healer failed.

use std::io;
use std::ops::Range;

use crate::image::dirty_map::MapError;
use crate::image::layout::FileIndex;

use super::link::Obstacle;
use super::peer::PeerError;

/// Why nothing more can be healed now. Everything that was not durable at the
/// peer is still dirty.
#[derive(Debug, thiserror::Error)]
pub enum HealError {
    /// The peer. See [`HealError::lost_peer`] for what to do.
    #[error("the copy on the peer cannot be healed")]
    Peer(#[from] PeerError),
    /// The engine's connection broke in an earlier pass.
    #[error("the connection to {peer} is not used any more. Connect again for a new engine")]
    Broken {
        /// `host:path`.
        peer: String,
    },
    /// The local copy cannot be read.
    #[error(
        "cannot read the local copy at bytes {} to {}. Look at the disk of the local brick",
        .range.start, .range.end
    )]
    Read {
        /// The bytes.
        range: Range<u64>,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The peer does not accuse itself with a stamp of the map. Its copy may have been
    /// healed and written to by others.
    #[error(
        "{peer} does not carry this session's mark{} now, but {counter}: somebody else healed or marked it. Copying goes on when the session has marked it again",
        on_shard(*.file)
    )]
    Unexplained {
        /// `host:path`.
        peer: String,
        /// The file of the image's layout.
        file: FileIndex,
        /// Its counter against itself.
        counter: i32,
    },
    /// The map's record of the marks cannot be read.
    #[error("what the dirty map says about the marks is not known")]
    Record(#[from] MapError),
    /// The file is not the one that the map is of.
    #[error(
        "the local copy has {found} bytes, but its dirty map is of {expected}. Open the image anew"
    )]
    Size {
        /// The map's, in bytes.
        expected: u64,
        /// The file's, in bytes.
        found: u64,
    },
}

fn on_shard(file: FileIndex) -> String {
    match file {
        FileIndex::BASE => String::new(),
        FileIndex(shard) => format!(" on shard {shard}"),
    }
}

impl HealError {
    /// What has to change before it is worth another attempt.
    pub fn obstacle(&self) -> Obstacle {
        match self {
            Self::Peer(error) => error.obstacle(),
            Self::Broken { .. } => Obstacle::Peer,
            Self::Unexplained { .. } => Obstacle::Mark,
            Self::Read { .. } | Self::Record(_) | Self::Size { .. } => Obstacle::Local,
        }
    }

    /// Did the peer say no to what it was asked?
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Peer(PeerError::Refused { .. }))
    }

    /// Is the peer's connection gone, so that a new peer and engine are needed?
    /// Otherwise the same engine may try again later.
    pub fn lost_peer(&self) -> bool {
        matches!(
            self,
            Self::Peer(PeerError::Away { .. } | PeerError::Unusable { .. }) | Self::Broken { .. }
        )
    }
}
