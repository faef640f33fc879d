//! A session's state at one moment, for the status report.

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
}
