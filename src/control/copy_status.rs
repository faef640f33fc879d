//! One copy of an image in the status document, and what it misses.

use serde::{Deserialize, Serialize};

use crate::image::session::snapshot::Behind;

/// One brick's copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// `host:/path` of the brick.
    pub brick: String,
    /// The daemon serves this copy.
    pub local: bool,
    /// The brick is an arbiter: it keeps marks, not data.
    pub arbiter: bool,
    /// The brick answered (in a session: our locks are held there).
    pub reachable: bool,
    /// Why it did not.
    pub reason: Option<String>,
    /// What this brick's counters say of each copy, in order: non-zero, that
    /// copy misses data. Absent when never read.
    pub marks: Option<Vec<i32>>,
    /// How long ago they were read, in whole seconds; absent when that is not known.
    #[serde(default)]
    pub marks_age_seconds: Option<u64>,
    /// Some brick says that this copy misses data.
    pub stale: bool,
    /// What it misses; absent for the local copy, an arbiter, and when nobody knows.
    pub behind: Option<BehindStatus>,
    /// The copy carries the attribute of a mandatory fence. With nobody holding
    /// the image it was left by a killed daemon.
    pub fenced: bool,
}

/// What one peer misses, for [`CopyStatus::behind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BehindStatus {
    /// Bytes of the image in extents that it misses.
    pub bytes: u64,
    /// Those extents.
    pub extents: u64,
    /// They may be equal: nobody knows, so they are compared first.
    pub suspect: bool,
}

impl From<&Behind> for BehindStatus {
    fn from(behind: &Behind) -> Self {
        Self {
            bytes: behind.bytes,
            extents: behind.extents,
            suspect: behind.suspect,
        }
    }
}
