//! Why a session cannot be opened over its bricks: one variant a cause, each saying what is
//! wrong, where, and what to do.

use crate::image::layout::FileIndex;
use crate::image::local::error::LocalError;
use crate::image::replica::brick_port::{Conflict, Lock};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::freshness::Refusal;
use crate::image::replica::holder::Holder;
use crate::image::replica::names::Names;

use super::state_machine::StopReason;

/// Why a session could not be opened over the bricks.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file of the image that is not the first forbids it.
    #[error("shard {shard}")]
    Shard {
        /// Its number.
        shard: usize,
        /// How.
        #[source]
        why: Box<OpenError>,
    },
    /// Another bypass-blk session has the image.
    #[error("the image is locked on {brick} by another session: {}. End that session first, or serve the image there", holder_or_opening(.holder))]
    Locked {
        /// Where the lock was refused.
        brick: String,
        /// The other session, if its record stands.
        holder: Option<Holder>,
    },
    /// A client that is not bypass-blk has the image open.
    #[error("the image is in use on {brick} by {conflict}. Close it there first")]
    InUse {
        /// Where the posix lock was refused.
        brick: String,
        /// Who.
        conflict: Conflict,
    },
    /// Gluster is healing or moving the image.
    #[error("{}", busy(.volume, .lock, .brick))]
    Busy {
        /// The volume.
        volume: String,
        /// Which of Gluster's locks is held.
        lock: Lock,
        /// Where.
        brick: String,
    },
    /// Too few bricks answered.
    #[error(
        "no quorum: only these bricks of the replica set answered: {reached}. Not reached: {missing}. Start their brick processes or mend the network, then try again"
    )]
    NoQuorum {
        /// Names of those that answered.
        reached: String,
        /// Names of the others, each with its reason.
        missing: String,
    },
    /// The local brick's process does not answer.
    #[error(
        "the process of the local brick {brick} does not answer ({why}). Start it: gluster volume start {volume} force"
    )]
    LocalAway {
        /// The volume.
        volume: String,
        /// Its name.
        brick: String,
        /// The connection's error.
        why: String,
    },
    /// The local copy misses data.
    #[error(
        "the local copy {local} is stale: {accusers} say that it misses data. The fresh copy is on {fresh}. Serve the image there, or heal it first: gluster volume heal {volume}"
    )]
    Stale {
        /// The volume.
        volume: String,
        /// The local brick.
        local: String,
        /// Who accuses it.
        accusers: String,
        /// Where the fresh copies are.
        fresh: String,
    },
    /// Another copy was promoted, and the lost one may still come back.
    #[error(
        "the copy on {brick} was promoted, and the one that was lost then is not healed or replaced yet. Serve the image there until `bypass-blk status` says that all copies are clean"
    )]
    PromotedElsewhere {
        /// The promoted copy's brick.
        brick: String,
    },
    /// No copy is unaccused.
    #[error(
        "split-brain: every copy is accused of missing data ({local} by {accusers}). Choose the copy to keep with: gluster volume heal {volume} split-brain"
    )]
    SplitBrain {
        /// The volume.
        volume: String,
        /// The local brick.
        local: String,
        /// Who accuses it.
        accusers: String,
    },
    /// The bricks have different files under the image's path.
    #[error(
        "{others} have another file (gfid) under the image's path than {local}. This is a gfid split-brain: gluster volume heal {volume} info split-brain"
    )]
    IdentitiesDiffer {
        /// The volume.
        volume: String,
        /// The local brick.
        local: String,
        /// Those that differ.
        others: String,
    },
    /// Unaccused copies differ in size.
    #[error(
        "the copies on {others} have another size than the one on {local}, and no mark says which is right. Let Gluster heal the image first: gluster volume heal {volume}"
    )]
    SizesDiffer {
        /// The volume.
        volume: String,
        /// The local brick.
        local: String,
        /// Those that differ.
        others: String,
    },
    /// `--fence mandatory` where the volume does not allow it.
    #[error(
        "the brick {brick} does not allow mandatory fencing. Set it on the volume (gluster volume set {volume} locks.mandatory-locking optimal; gluster volume set {volume} features.enforce-mandatory-lock on) and restart it, or use --fence auto"
    )]
    FenceUnavailable {
        /// The volume.
        volume: String,
        /// Which brick refused it.
        brick: String,
    },
    /// A brick failed in the middle of opening.
    #[error("the brick {brick} failed while the image was being opened: {why}")]
    BrickFailed {
        /// Which.
        brick: String,
        /// How.
        why: String,
    },
    /// The local file could not be used.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// A thread could not be started.
    #[error("cannot start a thread for the brick {brick}")]
    Thread {
        /// For which brick.
        brick: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

impl OpenError {
    /// What stands in the way of a file does in that of the image.
    #[must_use]
    pub fn of_file(self, file: FileIndex) -> Self {
        match file {
            FileIndex::BASE => self,
            file => Self::Shard {
                shard: file.at(),
                why: Box::new(self),
            },
        }
    }

    /// A refusal of [`crate::image::replica::freshness`] with the bricks' names in it. `why_away(i)`
    /// tells why brick `i` did not answer.
    pub fn from_refusal(
        refusal: Refusal,
        names: &Names,
        local: usize,
        all: BrickSet,
        why_away: impl Fn(usize) -> String,
    ) -> Self {
        let local_name = names.one(local);
        let volume = names.volume.clone();
        match refusal {
            Refusal::NoQuorum { reached } => Self::NoQuorum {
                reached: names.list(reached),
                missing: all
                    .without(reached)
                    .iter()
                    .map(|brick| format!("{} ({})", names.one(brick), why_away(brick)))
                    .collect::<Vec<_>>()
                    .join(", "),
            },
            Refusal::LocalAway => Self::LocalAway {
                volume,
                brick: local_name,
                why: why_away(local),
            },
            Refusal::IdentitiesDiffer { others } => Self::IdentitiesDiffer {
                volume,
                local: local_name,
                others: names.list(others),
            },
            Refusal::SizesDiffer { others } => Self::SizesDiffer {
                volume,
                local: local_name,
                others: names.list(others),
            },
            Refusal::Stale { fresh, accusers } => Self::Stale {
                volume,
                local: local_name,
                accusers: names.list(accusers),
                fresh: names.list(fresh),
            },
            Refusal::SplitBrain { accusers } => Self::SplitBrain {
                volume,
                local: local_name,
                accusers: names.list(accusers),
            },
        }
    }
}

fn holder_or_opening(holder: &Option<Holder>) -> String {
    match holder {
        Some(holder) => holder.to_string(),
        None => "one that is just opening it".to_owned(),
    }
}

fn busy(volume: &str, lock: &Lock, brick: &str) -> String {
    match lock {
        Lock::Heal => format!(
            "heal in progress: Gluster's self-heal works on the image (its lock on {brick} is held). \
             Wait for it (gluster volume heal {volume} info), or give a longer --lock-timeout"
        ),
        Lock::Rebalance => format!(
            "a rebalance works on the image (its lock on {brick} is held). Wait for it, or give a longer --lock-timeout"
        ),
        Lock::Copy => format!(
            "a healer still copies to {brick} for a session that is over. It stops by itself; try again, or give a longer --lock-timeout"
        ),
        Lock::Session { .. } | Lock::Data => format!("the {lock} lock on {brick} is held"),
    }
}

/// Why a session ended by itself, for the log, the status and the exit message.
pub fn stop_message(reason: StopReason, names: &Names) -> String {
    match reason {
        StopReason::CopyAccused { by } => format!(
            "{} says that our copy misses data: somebody wrote to another copy. The disk is stopped; \
             look at the copies with `bypass-blk status` and serve the fresh one",
            names.one(by)
        ),
        StopReason::LockTaken { on } => format!(
            "another session holds the image's lock on {}, and we no longer hold it on a quorum. The disk is stopped",
            names.one(on)
        ),
        StopReason::ChangedUnderneath => {
            "the local copy was changed by somebody else while we had lost the \
             lock's quorum. The disk is stopped; start a new session to serve it as it is now"
                .to_owned()
        }
        StopReason::ShardMoved(file) => format!(
            "the volume {} has got another replica set, and shard {} has gone there, or is on its way (add-brick, rebalance): this \
             host has not all of the image any more. The disk is stopped; use the image through a mount, which finds all shards, \
             when they are healed",
            names.volume, file.0
        ),
        StopReason::ShardsMayMove => format!(
            "the volume {} has got another replica set (add-brick), and nothing keeps shards that are only read from being \
             moved there. The disk is stopped; use the image through a mount",
            names.volume
        ),
        StopReason::Panicked => {
            "a fault of bypass-blk: the session's thread panicked. The daemon ends, and may be started again under the \
             guest; please report the lines before this one"
                .to_owned()
        }
    }
}
