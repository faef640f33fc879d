//! What a daemon serves, in the status document: its front-end, its queues, whose the image
//! is, and whether the local disk is full.

use serde::{Deserialize, Serialize};

use crate::device::Full;
use crate::image::session::ownership::Ownership;

/// The daemon that serves the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// The vhost-user socket's path, or `passed file descriptor`.
    pub socket: String,
    /// A front-end is connected.
    pub front_end: bool,
    /// The disk is read-only.
    pub read_only: bool,
    /// A write of the guest waits for the marks to be stored.
    pub write_waiting: bool,
    /// Whose the image is; documents have called it so from the beginning.
    #[serde(rename = "custody")]
    pub ownership: OwnershipStatus,
    /// Why the last front-end was dropped, if no ring has started since.
    #[serde(default)]
    pub dropped: Option<String>,
    /// The local disk is full, and the guest's writes wait for room.
    #[serde(default)]
    pub full: Option<FullStatus>,
    /// Counters per queue.
    pub queues: Vec<QueueStatus>,
}

impl Serving {
    /// What keeps the guest from its disk, as far as it is the front-end's or the driver's
    /// doing: one sentence for each.
    pub fn troubles(&self) -> impl Iterator<Item = String> {
        let dropped = self.dropped.iter();
        let dropped = dropped.map(|why| format!("the last front-end was dropped: {why}"));
        let dead = self.queues.iter().enumerate().filter_map(|(index, queue)| {
            let why = queue.dead.as_ref()?;
            Some(format!(
                "queue {index} does nothing until the guest's driver starts it anew: {why}"
            ))
        });
        dropped.chain(dead)
    }
}

/// A local disk that is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullStatus {
    /// For so long.
    pub seconds: u64,
    /// Requests that wait for room.
    pub waiting: u64,
    /// The byte of the image at which the first of them wants it.
    pub offset: u64,
}

impl From<Full> for FullStatus {
    fn from(full: Full) -> Self {
        Self {
            seconds: full.since.as_secs(),
            waiting: full.waiting as u64,
            offset: full.offset,
        }
    }
}

/// Whether this daemon has the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OwnershipStatus {
    /// It has not: it waits for a front-end's rings to start, before a migration or
    /// after one.
    Vacant,
    /// It takes the locks, for the rings have started.
    Opening,
    /// It has.
    Held,
    /// It gives the image away when the rings stop.
    Armed,
    /// The rings have stopped: the other copies get what they miss, then it is given away.
    Leaving,
    /// It could not have it, or the session stopped.
    Ended,
}

impl From<Ownership> for OwnershipStatus {
    fn from(ownership: Ownership) -> Self {
        match ownership {
            Ownership::Vacant => Self::Vacant,
            Ownership::Opening => Self::Opening,
            Ownership::Held => Self::Held,
            Ownership::Armed => Self::Armed,
            Ownership::Leaving => Self::Leaving,
            Ownership::Ended => Self::Ended,
        }
    }
}

/// What one queue has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Reads done.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes done.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Discards done.
    pub discards: u64,
    /// Write-zeroes done.
    pub write_zeroes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Requests not answered yet.
    pub in_flight: u64,
    /// Requests that wait at the gate.
    pub parked: u64,
    /// Why it does nothing until the guest's driver starts it anew, if that is so.
    #[serde(default)]
    pub dead: Option<String>,
    /// Requests that wait for room on the local disk.
    #[serde(default)]
    pub held: u64,
}
