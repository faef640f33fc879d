//! Why an image could not be found or may not be served.

use std::path::PathBuf;

use crate::gluster::GlusterdError;
use crate::gluster::volume::VolfileError;
use crate::image::layout::error::ShardsError;
use crate::image::layout::shards::BadCut;
use crate::image::replica::brick_set::MAX_BRICKS;

use super::Bypassable;

/// Why an image could not be found or may not be served.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// glusterd does not answer, or does not know the volume.
    #[error(transparent)]
    Glusterd(#[from] GlusterdError),
    /// The volume's layout is not one that can be served.
    #[error(transparent)]
    Volfile(#[from] VolfileError),
    /// The volume was created or stopped, not started.
    #[error("the volume {volume} is not started. Start it: gluster volume start {volume}")]
    NotStarted {
        /// Its name.
        volume: String,
    },
    /// The image is in shards, which a volume of several replica sets spreads over all.
    #[error(
        "{image} is in shards, and the volume {volume} has {sets} replica sets: Gluster spreads the shards over all of them, and no host has them all. Copy it to a volume of one replica set, or to a new file while features.shard is off"
    )]
    ShardsSpread {
        /// The volume.
        volume: String,
        /// The path in it.
        image: String,
        /// How many replica sets there are.
        sets: usize,
    },
    /// The image is in shards, and its attributes make no sense.
    #[error("{image} in the volume {volume} is in shards, but cannot be read")]
    BadShards {
        /// The volume.
        volume: String,
        /// The path in it.
        image: String,
        /// Why.
        #[source]
        source: BadCut,
    },
    /// The bricks enforce a fence on one file of an image only.
    #[error(
        "{image} is in shards: a mandatory fence would cover its first one only, and a truncate through a mount would still delete the others. Serve it with --fence advisory"
    )]
    ShardsFence {
        /// The path in the volume.
        image: String,
    },
    /// The image is in shards that cannot be served.
    #[error(transparent)]
    Shards(#[from] ShardsError),
    /// The replica set is larger than this program's sets of bricks.
    #[error("the replica set {set} has {bricks} bricks; at most {MAX_BRICKS} can be handled")]
    TooManyBricks {
        /// Its name.
        set: String,
        /// Its size.
        bricks: usize,
    },
    /// Features that must see every write, or may have to, would not see ours.
    #[error("{} on for the volume {volume}, and would not see the guest's reads and writes, which go past Gluster's processes. Turn it off, or insist with {}", on(.features), allow(.features))]
    Bypassed {
        /// The volume.
        volume: String,
        /// The features.
        features: Vec<Bypassable>,
    },
    /// The bricks refuse changes.
    #[error(
        "the volume {volume} is write-once or read-only (features.worm, features.read-only): its bricks refuse changes. Turn that off, or serve with --read-only"
    )]
    Unchangeable {
        /// The volume.
        volume: String,
    },
    /// The bricks take locks away, and with them what keeps heals from running underneath
    /// the guest.
    #[error(
        "the volume {volume} takes locks away from whoever holds them for long (features.locks-revocation-secs, features.locks-revocation-max-blocked): Gluster would heal the image underneath its guest. Reset both options, or serve with --read-only"
    )]
    LocksRevoked {
        /// The volume.
        volume: String,
    },
    /// No such file in the volume.
    #[error("there is no image {image} in the volume {volume} ({component:?} does not exist)")]
    NoImage {
        /// The volume.
        volume: String,
        /// The path in it.
        image: String,
        /// The part of the path that is missing.
        component: String,
    },
    /// Something else than a regular file.
    #[error("{image} in the volume {volume} is {what}, not an image file")]
    NotAFile {
        /// The volume.
        volume: String,
        /// The path in it.
        image: String,
        /// What it is instead.
        what: &'static str,
    },
    /// Only DHT's pointers were found, not the file.
    #[error(
        "{image} is only a DHT link file here; its data is on the replica set {target}, none of whose bricks has it or answers. Bring that replica set up, or fix the layout: gluster volume rebalance {volume} fix-layout start"
    )]
    LinkFile {
        /// The volume.
        volume: String,
        /// The path in it.
        image: String,
        /// Where the pointer points to.
        target: String,
    },
    /// No brick of any replica set answered.
    #[error("no brick of the volume {volume} answers: {why}")]
    NoBrick {
        /// The volume.
        volume: String,
        /// The reasons, brick by brick.
        why: String,
    },
    /// No brick answered, and TLS is why.
    #[error("no brick of the volume {volume} can be reached with TLS: {why}")]
    NoTls {
        /// The volume.
        volume: String,
        /// The reasons, brick by brick.
        why: String,
    },
    /// The brick from which an image was opened is not in the volume any more.
    #[error(
        "{brick}, from which the image was opened, is no brick of the volume {volume} any more. Serve the image from one of its bricks"
    )]
    BrickGone {
        /// The volume.
        volume: String,
        /// The brick.
        brick: String,
    },
    /// This host has no copy.
    #[error(
        "no brick of this host has a copy of {image}; its bricks are {bricks}. Run bypass-blk on one of those hosts"
    )]
    NoLocalBrick {
        /// The path in the volume.
        image: String,
        /// The bricks of its replica set.
        bricks: String,
    },
    /// This host has several copies.
    #[error(
        "several bricks of this host have a copy of {image}: {bricks}. Choose one with --brick"
    )]
    SeveralLocalBricks {
        /// The path in the volume.
        image: String,
        /// Those on this host.
        bricks: String,
    },
    /// `--brick` names none of the replica set's bricks.
    #[error("{brick} is not a brick of the replica set of {image}; those are {bricks}")]
    UnknownBrick {
        /// What was asked for.
        brick: String,
        /// The path in the volume.
        image: String,
        /// The bricks of its replica set.
        bricks: String,
    },
    /// `--brick` names a brick whose directory is not on this host.
    #[error("the brick {brick} is not on this host: {} here is not what its process serves. Run bypass-blk on that brick's host, or name this host's brick", .path.display())]
    NotOnThisHost {
        /// The brick.
        brick: String,
        /// Its directory.
        path: PathBuf,
    },
    /// The file on this host is not the one that Gluster means.
    #[error("{} has the gfid {found}, but Gluster says {expected} for the image: this is not the brick's live copy. Check --brick", .path.display())]
    OtherFile {
        /// The file.
        path: PathBuf,
        /// Its gfid.
        found: uuid::Uuid,
        /// The image's.
        expected: uuid::Uuid,
    },
    /// A brick that may be this host's does not answer.
    #[error(
        "cannot tell whether {brick} is this host's brick, because its process does not answer ({why}). Start it: gluster volume start {volume} force"
    )]
    Unproven {
        /// The volume.
        volume: String,
        /// The brick.
        brick: String,
        /// The connection's error.
        why: String,
    },
    /// The local brick is an arbiter.
    #[error(
        "the local brick {brick} is an arbiter: it has no data to serve. Run bypass-blk on a host of a data brick: {others}"
    )]
    Arbiter {
        /// The brick.
        brick: String,
        /// The data bricks.
        others: String,
    },
    /// The process may not see `trusted.*` attributes.
    #[error("not enough privilege for trusted.* attributes: run as root or with CAP_SYS_ADMIN")]
    Privilege,
}

fn on(features: &[Bypassable]) -> String {
    let verb = if features.len() == 1 { "is" } else { "are" };
    let name = |feature: &Bypassable| match feature {
        Bypassable::Translator(kind) => format!("the translator {kind}"),
        named => named.to_string(),
    };
    let names: Vec<_> = features.iter().map(name).collect();
    format!("{} {verb}", names.join(" and "))
}

fn allow(features: &[Bypassable]) -> String {
    let names: Vec<_> = features.iter().map(ToString::to_string).collect();
    format!("--allow {}", names.join(","))
}
