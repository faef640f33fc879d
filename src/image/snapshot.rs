//! A session's state at one moment, for the status report.

use super::heal::HealReport;
use super::holder::Holder;
use super::machine::Phase;
use super::port::Fence;

/// One copy, as the session knows it.
#[derive(Clone, Debug)]
pub struct CopySnapshot {
    /// `host:/path`.
    pub brick: String,
    /// Our locks are held there: it is connected.
    pub locked: bool,
    /// Why not.
    pub why_away: Option<String>,
    /// Its data counters against each child, as last read.
    pub pending: Option<Vec<i32>>,
}

/// What one peer misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Its child index.
    pub child: usize,
    /// Extents that it misses.
    pub extents: u64,
    /// Bytes of the image in those extents.
    pub bytes: u64,
    /// They are not known to differ, but not known to be equal either.
    pub suspect: bool,
}

/// What the peers miss, and who heals them.
#[derive(Clone, Debug)]
pub struct Healing {
    /// Per peer.
    pub behind: Vec<Behind>,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// The last report of the healer; absent when none is at work.
    pub healer: Option<HealReport>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Where the session stands.
    pub phase: Phase,
    /// It serves reads only.
    pub read_only: bool,
    /// How other clients are kept away.
    pub fence: Fence,
    /// Our own record.
    pub holder: Holder,
    /// The copies in child order.
    pub copies: Vec<CopySnapshot>,
    /// A guest's write waits at the gate.
    pub write_waiting: bool,
    /// Absent in a read-only session.
    pub healing: Option<Healing>,
}
