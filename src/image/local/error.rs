//! Why the file on the local brick cannot be used: one variant a cause, each saying what is
//! wrong, where, and what to do.

use std::path::PathBuf;

use crate::image::dirty_map::MapError;
use crate::image::layout::shards::BadCut;
use crate::image::state_dir::StateError;

use super::SyncFailure;

/// Why the file on the local brick could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A system call on the file failed.
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// What was tried: `open`, `read`, …
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file's own gfid is not the one that Gluster gave for the path.
    #[error("{} has the gfid {found}, but Gluster says {expected} for this path: this is not the brick's live copy. Check --brick", .path.display())]
    OtherFile {
        /// The file.
        path: PathBuf,
        /// The gfid in its `trusted.gfid`, or a word for its absence.
        found: String,
        /// The gfid that the bricks gave.
        expected: String,
    },
    /// The process may not see `trusted.*` attributes.
    #[error("not enough privilege for trusted.* attributes on {}: run as root or with CAP_SYS_ADMIN", .path.display())]
    Privilege {
        /// The file or directory.
        path: PathBuf,
    },
    /// Not a regular file.
    #[error("{} is {what}, not a regular file", .path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// Zero bytes.
    #[error("the image {} is empty. Give it a size first: truncate -s SIZE through a mount of the volume", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Not a whole number of blocks.
    #[error("the size of the image {}, {size} bytes, is not a multiple of {block}. Resize it through a mount of the volume", .path.display())]
    OddSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The block size in bytes that it must be a multiple of.
        block: u64,
    },
    /// The contents look like an image format, and this program serves raw bytes.
    #[error("the image {} looks like {format}, and would be served as raw bytes. Convert it (qemu-img convert -O raw), or insist with --force-raw", .path.display())]
    Formatted {
        /// The file.
        path: PathBuf,
        /// The format's name.
        format: &'static str,
    },
    /// How it is cut into shards is not known.
    #[error("the image {} is in shards, but cannot be read", .path.display())]
    BadShards {
        /// The file at the image's path.
        path: PathBuf,
        /// Why.
        #[source]
        source: BadCut,
    },
    /// A shard of it cannot be used.
    #[error("the shard {} of the image {why}. Let Gluster heal it (gluster volume heal VOLUME), then open the image anew", .path.display())]
    NoShard {
        /// The shard's file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Another process on this host has it open to serve it.
    #[error("the image {} is still open in another bypass-blk process on this host, or requests of a killed one are not over yet. End that process, or look at the disk if there is none", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It changed after it was given away, and its guest wants to go on.
    #[error("the image {} was written to by another host since it was given away: what this guest remembers of it is old. End this guest; the image goes on where it was written to", .path.display())]
    WrittenSince {
        /// The file.
        path: PathBuf,
    },
    /// It is another file, or of another size, than when it was opened.
    #[error("the image {} is not the file any more that this process opened: it was healed anew, resized or replaced. Start the daemon again", .path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// Nobody could finish later what this session leaves.
    #[error(transparent)]
    State(#[from] StateError),
    /// Without a dirty map nothing may be written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// What was written to it may not be on the disk.
    #[error("cannot make the image {} durable. Look at the disk and its file system", .path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It cannot be vouched for.
    #[error(
        "an earlier sync of the local copy failed ({failure}): the image must be opened anew by another process, and compared"
    )]
    Unsure {
        /// What failed.
        failure: SyncFailure,
    },
}
