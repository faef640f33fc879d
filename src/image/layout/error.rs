//! Why an image in shards cannot be opened: one variant a cause, each saying what is wrong,
//! where, and what to do.

use std::time::Duration;

use crate::gluster::BrickError;

use super::shards::BadCut;

/// The most files of one image: 1 TiB in the smallest pieces that guides recommend (64 MiB).
pub const MOST_FILES: u64 = 16_384;
/// Pieces begin at multiples of this: no block of any disk lies in two of them.
pub const PIECE_UNIT: u64 = 4096;
/// How long others' locks on the folder of shards are waited for.
pub const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Why an image in shards cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    /// Too many pieces.
    #[error(
        "{image} is in {files} shards, and this program takes {MOST_FILES} at most. Copy it to a new file on a volume with a larger features.shard-block-size (64MB, say)"
    )]
    TooMany {
        /// The image.
        image: String,
        /// Its pieces.
        files: u64,
    },
    /// Pieces of a size that no disk can be cut into.
    #[error("{image} is in shards of {block} bytes, which is no multiple of {PIECE_UNIT}")]
    Block {
        /// The image.
        image: String,
        /// Bytes of a piece.
        block: u64,
    },
    /// Too few bricks were reached, or not the local one.
    #[error(
        "the shards of {image} can be looked up on {reached} only, which is no quorum with this host's brick. Bring the bricks up ({why})"
    )]
    NoQuorum {
        /// The image.
        image: String,
        /// Those that were reached.
        reached: String,
        /// Why not the others.
        why: String,
    },
    /// The local brick lacks a piece.
    #[error(
        "shard {name} of {image} is not on this host's brick yet, but on {on}. Let Gluster heal it (gluster volume heal VOLUME), or open the image there"
    )]
    NotHere {
        /// The image.
        image: String,
        /// The piece.
        name: String,
        /// Who has it.
        on: String,
    },
    /// Its pieces are going to be deleted.
    #[error(
        "{image} is being removed: {brick} has /.shard/.remove_me/{gfid}, by which Gluster's clients delete its shards. If nobody is at it any more, remove that file from every brick, with its link in .glusterfs"
    )]
    BeingRemoved {
        /// The image.
        image: String,
        /// Its identity.
        gfid: uuid::Uuid,
        /// Who says so.
        brick: String,
    },
    /// Two files under one name.
    #[error(
        "shard {name} of {image} is not the same file on all bricks (their gfids differ). Choose one as for a split-brain, before the image is used"
    )]
    IdentitiesDiffer {
        /// The image.
        image: String,
        /// The piece.
        name: String,
    },
    /// The bricks that were reached have old attributes.
    #[error(
        "the size of {image} is not known: {old} missed a change of it. Bring the other bricks up, and let Gluster heal the image (gluster volume heal VOLUME)"
    )]
    SizeUnknown {
        /// The image.
        image: String,
        /// Who has old ones.
        old: String,
    },
    /// It has two sizes.
    #[error(
        "{image} has {one} bytes on one brick and {other} on another, and no mark says which is right. If it is being resized, try again; else set its size through a mount (truncate -s)"
    )]
    SizesDiffer {
        /// The image.
        image: String,
        /// One, in bytes.
        one: u64,
        /// Another.
        other: u64,
    },
    /// The size is no disk's.
    #[error("{image} has a size that makes no sense on a brick")]
    BadSize {
        /// The image.
        image: String,
        /// What is wrong.
        #[source]
        source: BadCut,
    },
    /// The volume has no folder for shards, and a brick is away.
    #[error(
        "the volume {volume} has no shards yet: the first are made when all bricks are up. Away: {away}"
    )]
    NoFolder {
        /// The volume.
        volume: String,
        /// Who is away.
        away: String,
    },
    /// Somebody keeps AFR's lock on the folder.
    #[error(
        "{brick}: another client keeps the lock on /.shard for more than {} s. Look for a heal or a mount that hangs",
        LOCK_LIMIT.as_secs()
    )]
    Busy {
        /// The brick.
        brick: String,
    },
    /// A brick refused.
    #[error(
        "the shards of {image} could not be looked up, or missing ones not be made. Is there room, and are there free inodes, on every brick? What was made stays: it is empty, and any client finishes it"
    )]
    Make {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: BrickError,
    },
}
