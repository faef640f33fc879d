//! Why an image could not be verified at all.

use crate::image::dirty_map::MapError;
use crate::image::heal::LinkError;
use crate::image::replica::holder::Holder;

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A session has the image, and it is not known to be one of this host.
    #[error("{}", held(.brick, .holder))]
    Held {
        /// Where the lock was refused.
        brick: String,
        /// The session, if its record stands.
        holder: Option<Holder>,
    },
    /// This host's healer has opened the image for itself.
    #[error(
        "this host's healer is healing the image. Wait for it (bypass-blk heal VOLUME/IMAGE --wait), then verify"
    )]
    Healing,
    /// No brick with data was reached.
    #[error(
        "no brick that has a copy of the image was reached ({why}). Start their processes or mend the network"
    )]
    NoCopy {
        /// The bricks' reasons.
        why: String,
    },
    /// Every copy that was reached is accused.
    #[error(
        "no copy that was reached can be the reference: each is accused of missing data by {accusers}. Start the other bricks, or resolve the split-brain: gluster volume heal VOLUME split-brain"
    )]
    NoReference {
        /// Who accuses.
        accusers: String,
    },
    /// The local brick, whose copy is the truth, does not answer.
    #[error(
        "the local brick {brick} does not answer ({why}). Start it: gluster volume start VOLUME force"
    )]
    ReferenceAway {
        /// Its name.
        brick: String,
        /// The connection's error.
        why: String,
    },
    /// Another client kept AFR's lock of the whole file.
    #[error(
        "another client kept its lock on the image for the whole time that was waited. Try again when it writes less"
    )]
    Locked,
    /// The dirty map is not of this image as it is.
    #[error(
        "the copy on {brick} has {found} bytes, but the session's dirty map is of {expected}. Serve the image anew"
    )]
    Size {
        /// The local brick.
        brick: String,
        /// The map's, in bytes.
        expected: u64,
        /// The file's, in bytes.
        found: u64,
    },
    /// The session's dirty map counts parts that lie in two files.
    #[error(
        "the session's dirty map counts {extent} bytes at a time, and the image is in shards of {shard} bytes. Serve the image anew"
    )]
    Extents {
        /// Bytes of an extent.
        extent: u64,
        /// Bytes of a shard.
        shard: u64,
    },
    /// The session's dirty map cannot be read.
    #[error("what the session knows of the peers cannot be read")]
    Map(#[from] MapError),
    /// The session did not tell what it serves.
    #[error("the session that serves the image cannot be asked")]
    Link(#[from] LinkError),
}

fn held(brick: &str, holder: &Option<Holder>) -> String {
    match holder {
        Some(holder) => format!(
            "the image is locked on {brick} by a session: {holder}. Verify it on that host: \
             bypass-blk verify there compares it while it is served (with the daemon's --run-dir)"
        ),
        None => format!(
            "the image is locked on {brick} by a session that is just opening it. Try again, on the host that serves it"
        ),
    }
}
