//! What a healer and the session whose image it heals tell each other.
//!
//! The session may live in the same process or behind the control socket; the
//! healer does not know. It asks for the [`Job`] once, reports about twice a second
//! and asks for the marks to be removed when there is nothing left to copy. It never
//! removes a mark itself. While there is nothing to do, its reports wait for the session
//! to say otherwise ([`Wait`]).

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::progress::Figures;

/// The way to a session.
pub trait SessionLink: Send + Sync {
    /// What there is to heal. Does not change while the session lasts.
    ///
    /// # Errors
    /// See [`LinkError`], here and below.
    fn job(&self) -> Result<Job, LinkError>;

    /// Tells how the healing goes; the answer says what the session knows. With `wait` it
    /// may be kept back, as that says; a session need not, nor one of an older version.
    ///
    /// # Errors
    /// See [`LinkError`].
    fn report(&self, report: &HealReport, wait: Option<&Wait>) -> Result<Hint, LinkError>;

    /// From now on no report waits, and one that does comes back.
    fn hurry(&self) {}

    /// Asks to remove the marks against every peer that misses nothing.
    ///
    /// # Errors
    /// See [`LinkError`].
    fn unmark(&self) -> Result<Unmarked, LinkError>;
}

/// The image to heal, and from where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The volume's name.
    pub volume: String,
    /// The image's path in the volume.
    pub image: String,
    /// Gluster's identity of the image.
    pub gfid: Uuid,
    /// The session, as its record on the bricks names it.
    pub session: Uuid,
    /// Host of the glusterd to ask for the volume's layout.
    pub server: String,
    /// Its port.
    pub port: u16,
    /// The local copy.
    pub local_path: PathBuf,
    /// Child index of the local brick.
    pub local: usize,
    /// Name of each brick that the session was opened with, in child order.
    pub bricks: Vec<String>,
    /// Its dirty map.
    pub map: PathBuf,
    /// Child index of each peer of the dirty map, in the map's order.
    pub peers: Vec<usize>,
}

/// How long the answer to a report may be kept back: until the session has something else
/// to say, or the time is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// At most so long.
    pub time: Duration,
    /// What the session said last.
    pub unlike: Hint,
}

/// How the healing goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealReport {
    /// The healer: its process id.
    pub pid: u32,
    /// The bandwidth limit in bytes per second, of all peers together; 0 is none.
    pub bandwidth: u64,
    /// One per peer of the dirty map.
    pub peers: Vec<PeerReport>,
    /// Why nothing is healed at all; there are no peers then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How the healing of one peer goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// What the healer does.
    pub state: HealState,
    /// Bytes per second sent, zeroed and compared, of late.
    pub rate: u64,
    /// Every write acknowledged longer ago than this has been sent. `None`: not
    /// known, no pass was completed yet.
    pub sent_before: Option<Duration>,
    /// For how long every attempt has failed, if the last one did, for another reason than
    /// the session's.
    #[serde(default)]
    pub failing_for: Option<Duration>,
    /// What was done for this peer since the healer began.
    pub figures: Figures,
}

/// What a healer does for a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum HealState {
    /// Nothing is dirty.
    #[default]
    Idle,
    /// It copies.
    Copying,
    /// It cannot copy now and tries again.
    Waiting {
        /// What has to change.
        on: Obstacle,
        /// In the healer's words.
        why: String,
    },
}

/// What keeps a healer from copying to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Obstacle {
    /// The session does not hold the peer, or its marks do not stand yet.
    Session,
    /// The peer does not carry the session's mark: the session should store it again.
    Mark,
    /// Another client's lock on a part of the image.
    Lock,
    /// The peer does not do what it is asked, or is out of reach.
    Peer,
    /// The local copy or its map cannot be read.
    Local,
}

/// What the session tells its healer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Marks stand against every peer: whatever is copied meanwhile, no brick takes
    /// what it gets for a whole copy.
    pub marked: bool,
    /// Per peer: marks against it stand on every brick that is held, though they may not
    /// against all the others. So it may be copied to as well.
    #[serde(default)]
    pub stands: Vec<bool>,
    /// Some mark could go now: against a peer that misses nothing, while no other that
    /// is held misses anything, or only such as cannot be healed for now.
    pub removable: bool,
    /// Per peer: its extents are dirty because nobody knows better, so checksums
    /// are to be compared first.
    pub suspect: Vec<bool>,
    /// Per peer: the session holds its locks there now.
    pub held: Vec<bool>,
    /// The image is about to be given to another host, whose guest waits: look often,
    /// and keep no lock that is not needed.
    #[serde(default)]
    pub urgent: bool,
    /// Somebody waits for the copies to be equal: do not hold back for the guest's sake.
    #[serde(default)]
    pub forced: bool,
    /// Mean time of the guest's requests since the last report, if there were any.
    pub latency: Option<Duration>,
    /// There is nothing to do: no peer that is held misses anything, no mark could go, and
    /// before the guest writes the session has other things to say. So the healer need not
    /// look for dirty extents, and its next report may wait.
    #[serde(default)]
    pub at_rest: bool,
}

impl Hint {
    /// Does it say what the other one said? The guest's latency is another one each time.
    pub fn says_what(&self, other: &Self) -> bool {
        let but_latency = |hint: &Self| Self {
            latency: None,
            ..hint.clone()
        };
        but_latency(self) == but_latency(other)
    }
}

/// The answer to [`SessionLink::unmark`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "unmarked")]
pub enum Unmarked {
    /// No mark stands on any brick that the session holds, against anybody.
    All,
    /// No mark stands against these peers of the map; the others miss data.
    Some {
        /// Per peer of the map.
        peers: Vec<bool>,
    },
    /// Nothing was changed.
    NotYet {
        /// Why.
        why: String,
    },
}

/// Why the session did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It is over, or never hears again: copy nothing more on its behalf.
    #[error("the session has ended: {0}")]
    Ended(String),
    /// It lives, but could not answer this.
    #[error("the session did not answer: {0}")]
    Failed(String),
}
