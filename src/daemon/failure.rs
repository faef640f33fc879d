//! Failures of the commands, and the exit code of each: the table in the README
//! and in `--help` is this one.

use std::io::Write;

use thiserror::Error;

use crate::control::metrics::MetricsError;
use crate::control::one_line::OneLine;
use crate::control::socket::ControlError;
use crate::device::DeviceError;
use crate::gluster::rpc::BadLkOwner;
use crate::gluster::volume::VolfileError;
use crate::gluster::{GlusterdError, tls};
use crate::image::error_chain::chain;
use crate::image::heal::FollowError;
use crate::image::layout::error::ShardsError;
use crate::image::local::error::LocalError;
use crate::image::locate::LocateError;
use crate::image::replica::brick_port::Lock;
use crate::image::session::error::OpenError;
use crate::image::state_dir::StateError;
use crate::image::verify::VerifyError;

/// The codes, for `--help`.
pub const TABLE: &str = "\
Exit codes:
   0  done                                     40  locked by another session
   1  an error not listed here                 41  in use by another client (QEMU, a mount)
   2  wrong usage                              42  the local copy is stale
   3  migrate: the guest goes on here          43  split-brain
   4  migrate: it says where to look           44  no quorum of bricks
  10  glusterd down or not answering           45  a heal or rebalance is in progress
  11  unknown volume                           46  mandatory fencing is not available
  12  volume not started                       50  socket path in use
  13  volume not replicated                    51  socket cannot be made or used
  14  shards that cannot be served             52  the disk cannot be served by this device
  15  would bypass quota, bitrot, …            60  the session stopped while serving
  16  no brick answers                         70  not everything could be healed
  17  the volume refuses changes               71  verify: the copies differ
  18  the volume takes locks away              72  verify: not everything could be compared
  19  TLS: a certificate does not do           73  the copy may not be promoted
  20  no such image                            74  handover: the image cannot be given away
  21  not a regular file                       75  resize: the image keeps its size
  22  a DHT link file                          76  status: something could not be seen
  23  the image is empty
  24  its size is not whole blocks
  25  it looks like an image format
  30  no brick of this host has the image
  31  several bricks of this host have it
  32  the local brick is an arbiter
  33  the local file has another gfid
  34  not enough privilege
  35  the local brick's process is down
  36  the state directory cannot be used
What to do about each: docs/failures.md";

/// Why a command failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// The command line asks for something impossible.
    #[error("{0}")]
    Usage(String),
    /// The image was not found or may not be served.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// The image could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The device could not be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The metrics' socket or file.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The vhost-user socket's path belongs to somebody.
    #[error(
        "the socket path {path} is in use by a live process. Stop it, or choose another --socket-path"
    )]
    SocketInUse {
        /// The path.
        path: String,
    },
    /// Another healer runs.
    #[error(
        "a healer runs on this host already: it listens at {path}. One heals all images; stop that one first, or give this \
         one other folders with --run-dir and --state-dir"
    )]
    SecondHealer {
        /// Its socket.
        path: String,
    },
    /// The vhost-user socket cannot be made.
    #[error("cannot use the socket {what}")]
    Socket {
        /// Which.
        what: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The image is not clean.
    #[error("{image} is not clean: {why}")]
    NotClean {
        /// Which.
        image: String,
        /// Why.
        why: String,
    },
    /// The image stays here.
    #[error("{image} cannot be given away: {why}")]
    NotHandedOver {
        /// Which.
        image: String,
        /// Why.
        why: String,
    },
    /// The guest goes on here.
    #[error("the guest of {image} was not moved: {why}")]
    NotMoved {
        /// Which.
        image: String,
        /// Why.
        why: String,
    },
    /// The guest may be here or there.
    #[error("it is unclear where the guest of {image} is: {why}")]
    MovedUnclear {
        /// Which.
        image: String,
        /// What is known.
        why: String,
    },
    /// The image keeps its size.
    #[error("{image} keeps its size: {why}")]
    NotResized {
        /// Which.
        image: String,
        /// Why.
        why: String,
    },
    /// The image cannot be healed.
    #[error(transparent)]
    NotHealed(#[from] FollowError),
    /// The image could not be verified at all.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// There is no healer to tell anything.
    #[error(
        "no healer runs on this host (nobody listens at {path}). Start bypass-blk heald, or give its --run-dir"
    )]
    NoHealer {
        /// Where its socket would be.
        path: String,
    },
    /// Something could not be seen.
    #[error("not everything could be seen: {what}")]
    Unseen {
        /// What, and why not.
        what: String,
    },
    /// Copies differ.
    #[error("the copies of {image} differ{}", what_now(.repaired))]
    Differ {
        /// Which image.
        image: String,
        /// The differences were given to the healer.
        repaired: bool,
    },
    /// No difference was found, but not everything was compared.
    #[error("{image}: not everything could be verified; see above")]
    NotVerified {
        /// Which image.
        image: String,
    },
    /// No difference was found, and what was not compared is known to be behind.
    #[error(
        "{image}: {behind} of the copies is behind and was not compared; the rest is equal. Heal it, then verify again: bypass-blk heal {image} --wait"
    )]
    Behind {
        /// Which image.
        image: String,
        /// How much, for people.
        behind: String,
    },
    /// The copy may not be promoted.
    #[error("{image} is not promoted: {why}")]
    NotPromoted {
        /// Which.
        image: String,
        /// Why.
        why: String,
    },
    /// Our record does not fit a lock's owner.
    #[error(transparent)]
    LockOwner(#[from] BadLkOwner),
    /// The session ended by itself while serving.
    #[error("the session stopped: {0}")]
    Stopped(String),
    /// A fault of this program ended it: an error that it does not know how to go on from.
    #[error(
        "a fault of bypass-blk: {0} panicked. The image was given back; what is on the disk is not touched by that, and the \
         daemon may be started again. Please report the lines before this one"
    )]
    Panicked(&'static str),
    /// A process-wide facility failed (signals, threads, standard output).
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

impl Failure {
    /// The exit code; see [`TABLE`].
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::NotMoved { .. } => 3,
            Self::MovedUnclear { .. } => 4,
            Self::Locate(error) => locate_code(error),
            Self::Open(error) => open_code(error),
            Self::State(_) => 36,
            Self::Device(_) => 52,
            Self::Control(ControlError::InUse(_))
            | Self::Metrics(MetricsError::InUse(_))
            | Self::SecondHealer { .. }
            | Self::SocketInUse { .. } => 50,
            Self::Control(_) | Self::Metrics(_) | Self::Socket { .. } | Self::NoHealer { .. } => 51,
            Self::Stopped(_) => 60,
            Self::NotClean { .. } => 70,
            Self::Differ { .. } => 71,
            Self::NotVerified { .. } | Self::Behind { .. } => 72,
            Self::NotPromoted { .. } => 73,
            Self::NotHandedOver { .. } => 74,
            Self::NotResized { .. } => 75,
            Self::Unseen { .. } => 76,
            Self::Verify(error) => verify_code(error),
            Self::LockOwner(_) | Self::System { .. } | Self::NotHealed(_) | Self::Panicked(_) => 1,
        }
    }

    /// Prints the error with its causes to standard error.
    pub fn print(&self) {
        let text = chain(self);
        // The terminal may be gone: the exit code says it as well.
        let _ = writeln!(std::io::stderr(), "bypass-blk: {}", OneLine(text));
    }
}

fn what_now(repaired: &bool) -> &'static str {
    match repaired {
        true => ". They are being healed from the local copy: verify again when it is clean",
        false => ". See above where, and docs/failures.md for what to do",
    }
}

fn verify_code(error: &VerifyError) -> u8 {
    match error {
        VerifyError::Held { .. } => 40,
        VerifyError::Healing => 45,
        VerifyError::NoCopy { .. } => 16,
        VerifyError::NoReference { .. }
        | VerifyError::Size { .. }
        | VerifyError::Extents { .. } => 43,
        VerifyError::ReferenceAway { .. } => 35,
        VerifyError::Locked => 41,
        VerifyError::Map(_) => 36,
        VerifyError::Link(_) => 51,
    }
}

fn locate_code(error: &LocateError) -> u8 {
    match error {
        LocateError::Glusterd(GlusterdError::UnknownVolume { .. }) => 11,
        LocateError::NoTls { .. } => 19,
        LocateError::Glusterd(error) if tls::cause(error).is_some() => 19,
        LocateError::Glusterd(_) => 10,
        LocateError::Volfile(
            VolfileError::NotReplicated { .. } | VolfileError::ThinArbiter { .. },
        ) => 13,
        LocateError::Volfile(_) | LocateError::TooManyBricks { .. } => 1,
        LocateError::NotStarted { .. } => 12,
        LocateError::Shards(ShardsError::NoQuorum { .. }) => 44,
        LocateError::ShardsSpread { .. }
        | LocateError::BadShards { .. }
        | LocateError::Shards(_) => 14,
        LocateError::ShardsFence { .. } => 46,
        LocateError::Bypassed { .. } => 15,
        LocateError::Unchangeable { .. } => 17,
        LocateError::LocksRevoked { .. } => 18,
        LocateError::NoBrick { .. } => 16,
        LocateError::NoImage { .. } => 20,
        LocateError::NotAFile { .. } => 21,
        LocateError::LinkFile { .. } => 22,
        LocateError::NoLocalBrick { .. }
        | LocateError::BrickGone { .. }
        | LocateError::NotOnThisHost { .. }
        | LocateError::UnknownBrick { .. } => 30,
        LocateError::SeveralLocalBricks { .. } => 31,
        LocateError::Arbiter { .. } => 32,
        LocateError::Privilege => 34,
        LocateError::OtherFile { .. } => 33,
        LocateError::Unproven { .. } => 35,
    }
}

fn open_code(error: &OpenError) -> u8 {
    match error {
        OpenError::Shard { why, .. } => open_code(why),
        OpenError::Locked { .. } => 40,
        OpenError::InUse { .. } => 41,
        OpenError::Stale { .. } | OpenError::PromotedElsewhere { .. } => 42,
        OpenError::SplitBrain { .. }
        | OpenError::IdentitiesDiffer { .. }
        | OpenError::SizesDiffer { .. } => 43,
        OpenError::NoQuorum { .. } => 44,
        OpenError::Busy {
            lock: Lock::Session { .. } | Lock::Data,
            ..
        } => 40,
        OpenError::Busy { .. } => 45,
        OpenError::FenceUnavailable { .. } => 46,
        OpenError::LocalAway { .. } => 35,
        OpenError::Local(error) => local_code(error),
        OpenError::BrickFailed { .. } | OpenError::Thread { .. } => 1,
    }
}

fn local_code(error: &LocalError) -> u8 {
    match error {
        LocalError::Io { .. } | LocalError::Sync { .. } | LocalError::Unsure { .. } => 1,
        LocalError::NotAFile { .. } => 21,
        LocalError::Empty { .. } => 23,
        LocalError::OddSize { .. } => 24,
        LocalError::Formatted { .. } => 25,
        LocalError::OtherFile { .. } => 33,
        LocalError::Privilege { .. } => 34,
        LocalError::Replaced { .. } | LocalError::NoShard { .. } => 33,
        LocalError::BadShards { .. } => 14,
        LocalError::InUse { .. } => 40,
        LocalError::WrittenSince { .. } => 60,
        LocalError::Map(_) | LocalError::State(_) => 36,
    }
}
