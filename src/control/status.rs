//! The status document: stable, and the same for people and machines.
//!
//! `docs/status.md` describes every field. A field may be added within one
//! [`VERSION`]; none is removed or changes its meaning.

use super::serving_status::Serving;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::image::local::SyncFailure;
use crate::image::replica::brick_port::Fence;
use crate::image::replica::brick_set::{BrickSet, SetChange, Shape};
use crate::image::replica::holder::Holder;
use crate::image::replica::names::Names;
use crate::image::session::error::stop_message;
use crate::image::session::snapshot::{FilesSnapshot, Snapshot};
use crate::image::session::state_machine::Phase;
use crate::image::verify::VerifyRecord;

use super::copy_status::CopyStatus;
use super::heal::HealStatus;

/// The version of the document.
pub const VERSION: u32 = 2;

/// One image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// The volume's name.
    pub volume: String,
    /// The image's path in the volume.
    pub image: String,
    /// Gluster's identity of the image.
    pub gfid: String,
    /// Size in bytes.
    pub size: u64,
    /// What state the copies are in, or the session that serves them.
    pub state: State,
    /// A sentence on the state, where one is due.
    pub detail: Option<String>,
    /// What somebody should know and do about what others did around the image: it was
    /// removed, or bricks of its volume were added or replaced while it is open.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Who holds the image's lock, if anybody.
    pub holder: Option<HolderStatus>,
    /// How other clients are kept away: `mandatory`, `advisory`; absent when
    /// nobody serves the image.
    pub fence: Option<String>,
    /// The copies in the order of the volume's bricks.
    pub copies: Vec<CopyStatus>,
    /// The files that the image is made of; absent when it is one.
    #[serde(default)]
    pub files: Option<FilesStatus>,
    /// What the peers miss and how they are healed; absent when the report was read
    /// from the bricks alone, or the disk is read-only.
    pub heal: Option<HealStatus>,
    /// When the copies were last compared; absent when they never were, or nobody
    /// remembers.
    pub last_verified: Option<Verified>,
    /// Why the local copy cannot be vouched for: the guest's flushes fail, and the marks stay.
    #[serde(default)]
    pub sync_failed: Option<SyncFailed>,
    /// The daemon's part; absent when the report was read from the bricks alone.
    pub serving: Option<Serving>,
    /// Why no daemon of this host answers for an image of this host; absent when one does,
    /// and when nothing is remembered here that is still to be done.
    #[serde(default)]
    pub unserved: Option<Unserved>,
}

/// The files of an image in shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesStatus {
    /// How many there are; number 0 is the one at the image's path.
    pub count: usize,
    /// Bytes of the image in each but the last.
    pub piece_bytes: u64,
    /// The numbers of those that are marked: some copy of them misses data, or may.
    pub marked: Vec<u32>,
}

impl From<&FilesSnapshot> for FilesStatus {
    fn from(files: &FilesSnapshot) -> Self {
        Self {
            count: files.count,
            piece_bytes: files.piece,
            marked: files.marked.iter().map(|file| file.0).collect(),
        }
    }
}

/// What is known on this host of an image for which no daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unserved {
    /// What became of its daemon.
    pub daemon: Fate,
    /// The daemon's process id, by its control socket.
    pub pid: Option<u32>,
    /// That socket.
    pub socket: Option<String>,
    /// All copies were found equal since, or not; absent when nothing is remembered.
    pub settled: Option<bool>,
}

/// What became of the daemon of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It ended, and left the copies to be healed.
    Ended,
    /// It was killed: its control socket is still there.
    Killed,
    /// It is there and does not answer, or this process may not ask it.
    Silent,
}

/// A sync of the local copy, or of its dirty map, that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncFailed {
    /// What failed and why.
    pub reason: String,
    /// When, as seconds since the epoch.
    pub at: u64,
}

impl From<&SyncFailure> for SyncFailed {
    fn from(failure: &SyncFailure) -> Self {
        let since = failure.at.duration_since(UNIX_EPOCH);
        Self {
            reason: failure.to_string(),
            at: since.map_or(0, |since| since.as_secs()),
        }
    }
}

/// The state of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// No copy is accused: all are equal.
    Clean,
    /// Some copies miss data and are marked so.
    Dirty,
    /// The session stores the marks; the first write waits for it.
    Marking,
    /// The guest's writes wait for a quorum of bricks.
    Stalled,
    /// The guest's writes fail until a quorum is back.
    Failed,
    /// The session stopped by itself; every request fails.
    Stopped,
    /// Every copy is accused: Gluster needs a decision.
    SplitBrain,
    /// Too few bricks answered to know.
    Unknown,
}

impl State {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Clean,
        Self::Dirty,
        Self::Marking,
        Self::Stalled,
        Self::Failed,
        Self::Stopped,
        Self::SplitBrain,
        Self::Unknown,
    ];

    /// Its name in the document.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Dirty => "dirty",
            Self::Marking => "marking",
            Self::Stalled => "stalled",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::SplitBrain => "split-brain",
            Self::Unknown => "unknown",
        }
    }
}

/// Who holds the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderStatus {
    /// Host name.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// Since when, as seconds since the epoch.
    pub since: u64,
}

impl From<&Holder> for HolderStatus {
    fn from(holder: &Holder) -> Self {
        Self {
            host: holder.host.clone(),
            pid: holder.pid,
            since: holder.since_secs(),
        }
    }
}

/// The last comparison of all copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// When it ended, as seconds since the epoch.
    pub at: u64,
    /// Every byte of every copy was compared, but for what was known to be behind.
    pub complete: bool,
    /// Bytes that differed, in whole extents.
    pub differing_bytes: u64,
    /// Bytes that were not compared, for they were known to be behind.
    #[serde(default)]
    pub behind_bytes: u64,
    /// What differed was given to the healer.
    pub repaired: bool,
}

impl From<&VerifyRecord> for Verified {
    fn from(record: &VerifyRecord) -> Self {
        Self {
            at: record.when.saturating_add(record.seconds),
            complete: record.complete,
            differing_bytes: record.bytes_differing,
            behind_bytes: record.bytes_behind,
            repaired: record.repaired,
        }
    }
}

/// What a daemon knows of its image besides its session.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The volume's name.
    pub volume: String,
    /// The image's path in the volume.
    pub image: String,
    /// Gluster's identity of the image.
    pub gfid: uuid::Uuid,
    /// Size in bytes.
    pub size: u64,
    /// Child index of the served copy, if one is served.
    pub local: Option<usize>,
    /// Child index of the arbiter.
    pub arbiter: Option<usize>,
    /// When the copies were last compared, if that is known.
    pub last_verified: Option<Verified>,
}

impl Status {
    /// The report of a running session.
    pub fn of_session(identity: &Identity, session: &Snapshot, serving: Option<Serving>) -> Self {
        let names = Names {
            volume: identity.volume.clone(),
            bricks: session
                .copies
                .iter()
                .map(|copy| copy.brick.clone())
                .collect(),
        };
        let seen = session.copies.iter().map(|copy| CopyStatus {
            brick: copy.brick.clone(),
            local: false,
            arbiter: false,
            reachable: copy.locked,
            reason: copy.why_away.clone(),
            marks: copy.pending.clone(),
            marks_age_seconds: copy.read_at.map(|at| at.elapsed().as_secs()),
            stale: false,
            behind: None,
            fenced: copy.locked && session.fence == Fence::Mandatory,
        });
        let mut copies = judge(identity, seen.collect());
        let healing = session.healing.as_ref();
        for behind in healing.iter().flat_map(|healing| &healing.behind) {
            if let Some(copy) = copies.get_mut(behind.child) {
                copy.behind = Some(behind.into());
            }
        }
        let any_stale = copies.iter().any(|copy| copy.stale);
        let (state, detail) = match session.phase {
            Phase::Unmarked if any_stale => (State::Dirty, None),
            Phase::Unmarked => (State::Clean, None),
            Phase::Marking => (State::Marking, None),
            Phase::Unmarking { .. } => (State::Dirty, None),
            Phase::Dirty => (State::Dirty, None),
            Phase::Stalled => (
                State::Stalled,
                Some("writes wait for a quorum of bricks".to_owned()),
            ),
            Phase::Failed => (
                State::Failed,
                Some("writes fail until a quorum of bricks is back".to_owned()),
            ),
            Phase::Stopped(reason) => (State::Stopped, Some(stop_message(reason, &names))),
        };
        Self {
            version: VERSION,
            volume: identity.volume.clone(),
            image: identity.image.clone(),
            gfid: identity.gfid.to_string(),
            size: identity.size,
            state,
            detail,
            warnings: Vec::new(),
            holder: Some(HolderStatus::from(&session.holder)),
            fence: Some(fence_name(session.fence)),
            files: session.files.as_ref().map(FilesStatus::from),
            heal: healing.map(|healing| HealStatus::of(healing, &copies)),
            copies,
            last_verified: identity.last_verified,
            sync_failed: session.sync_failed.as_ref().map(SyncFailed::from),
            serving,
            unserved: None,
        }
    }

    /// The report of a daemon that does not have its image now. What state the copies
    /// are in is not known to it.
    pub fn without_session(identity: &Identity, serving: Option<Serving>) -> Self {
        Self {
            version: VERSION,
            volume: identity.volume.clone(),
            image: identity.image.clone(),
            gfid: identity.gfid.to_string(),
            size: identity.size,
            state: State::Unknown,
            detail: Some(
                "the image is not held here now; `bypass-blk status VOLUME/IMAGE` asks the bricks"
                    .to_owned(),
            ),
            warnings: Vec::new(),
            holder: None,
            fence: None,
            copies: Vec::new(),
            files: None,
            heal: None,
            last_verified: identity.last_verified,
            sync_failed: None,
            serving,
            unserved: None,
        }
    }

    /// The report of an image of this host for which no daemon answers. Its bricks were not
    /// asked.
    pub fn unserved(
        volume: &str,
        image: &str,
        gfid: uuid::Uuid,
        unserved: Unserved,
        detail: String,
    ) -> Self {
        Self {
            version: VERSION,
            volume: volume.to_owned(),
            image: image.to_owned(),
            gfid: gfid.to_string(),
            size: 0,
            state: State::Unknown,
            detail: Some(detail),
            warnings: Vec::new(),
            holder: None,
            fence: None,
            copies: Vec::new(),
            files: None,
            heal: None,
            last_verified: None,
            sync_failed: None,
            serving: None,
            unserved: Some(unserved),
        }
    }

    /// The report of an image that was looked at from outside.
    pub fn of_bricks(identity: &Identity, seen: Vec<CopyStatus>, holder: Option<&Holder>) -> Self {
        let copies = judge(identity, seen);
        let reached: BrickSet = (0..copies.len()).filter(|&i| copies[i].reachable).collect();
        let shape = Shape {
            bricks: copies.len(),
            local: 0,
            arbiter: identity.arbiter,
            since: SetChange::NONE,
        };
        let data: Vec<_> = copies.iter().filter(|copy| !copy.arbiter).collect();
        let state = if !shape.is_quorum(reached) {
            State::Unknown
        } else if data.iter().all(|copy| copy.stale) {
            State::SplitBrain
        } else if data.iter().any(|copy| copy.stale) {
            State::Dirty
        } else {
            State::Clean
        };
        Self {
            version: VERSION,
            volume: identity.volume.clone(),
            image: identity.image.clone(),
            gfid: identity.gfid.to_string(),
            size: identity.size,
            state,
            detail: (state == State::Unknown)
                .then(|| "fewer bricks than a quorum answered".to_owned()),
            warnings: Vec::new(),
            holder: holder.map(HolderStatus::from),
            fence: None,
            copies,
            files: None,
            heal: None,
            last_verified: identity.last_verified,
            sync_failed: None,
            serving: None,
            unserved: None,
        }
    }
}

/// Fills in what follows from the marks of all.
fn judge(identity: &Identity, mut copies: Vec<CopyStatus>) -> Vec<CopyStatus> {
    let accused: BrickSet = copies
        .iter()
        .filter_map(|copy| copy.marks.as_ref())
        .flat_map(|marks| (0..marks.len()).filter(|&child| marks[child] != 0))
        .collect();
    for (child, copy) in copies.iter_mut().enumerate() {
        copy.local = identity.local == Some(child);
        copy.arbiter = identity.arbiter == Some(child);
        copy.stale = accused.contains(child) && !copy.arbiter;
    }
    copies
}

fn fence_name(fence: Fence) -> String {
    fence.to_string()
}
