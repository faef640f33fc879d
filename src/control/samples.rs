//! Sessions in every situation, for the tests of the document, the screen and the
//! metrics.

use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::image::heal::{Figures, HealReport, HealState, Obstacle, PeerReport};
use crate::image::replica::brick_port::Fence;
use crate::image::replica::holder::Holder;
use crate::image::session::snapshot::{Behind, CopySnapshot, Healing, Lagging, Snapshot};
use crate::image::session::state_machine::Phase;

use super::serving_status::{OwnershipStatus, QueueStatus, Serving};
use super::status::{Identity, Status};

pub const MIB: u64 = 1 << 20;

/// `vms/vm1.img` of 1 GiB, served on `node1`.
pub fn identity() -> Identity {
    Identity {
        volume: "vms".to_owned(),
        image: "/vm1.img".to_owned(),
        gfid: uuid::Uuid::from_u128(1),
        size: 1024 * MIB,
        local: Some(0),
        arbiter: None,
        last_verified: None,
    }
}

/// Three copies, all reached, nothing marked, nothing behind, no healer.
pub fn clean() -> Snapshot {
    let copy = |node| CopySnapshot {
        brick: format!("node{node}:/bricks/vms"),
        locked: true,
        why_away: None,
        pending: Some(vec![0, 0, 0]),
        read_at: Some(Instant::now()),
    };
    Snapshot {
        phase: Phase::Unmarked,
        read_only: false,
        fence: Fence::Advisory,
        holder: Holder {
            host: "node1".to_owned(),
            pid: 1805,
            since: UNIX_EPOCH + Duration::from_secs(1_795_425_664),
            session: uuid::Uuid::from_u128(2),
        },
        copies: (1..=3).map(copy).collect(),
        write_waiting: false,
        clean_before_writes: None,
        files: None,
        healing: Some(Healing {
            behind: vec![behind(1, 0), behind(2, 0)],
            extent_size: 65536,
            healer: None,
        }),
        sync_failed: None,
    }
}

/// Both peers are marked and miss so many bytes.
pub fn dirty(first: u64, second: u64) -> Snapshot {
    let mut snapshot = clean();
    snapshot.phase = Phase::Dirty;
    for copy in &mut snapshot.copies {
        copy.pending = Some(vec![0, 71, 71]);
    }
    healing(&mut snapshot).behind = vec![behind(1, first), behind(2, second)];
    snapshot
}

/// A peer that misses so many bytes of at most 128 MiB since 12 seconds.
pub fn behind(child: usize, bytes: u64) -> Behind {
    Behind {
        child,
        extents: bytes / 65536,
        bytes,
        suspect: false,
        lag: Lagging {
            since: Duration::from_secs(12),
            inherited: false,
            most: if bytes == 0 { 0 } else { 128 * MIB },
            growing: false,
        },
    }
}

/// A healer that does this for each peer.
pub fn healer(peers: [PeerReport; 2]) -> HealReport {
    HealReport {
        pid: 4711,
        bandwidth: 0,
        peers: peers.into(),
        trouble: None,
    }
}

/// It copies so many bytes per second; what is older than 400 ms is sent.
pub fn copying(rate: u64) -> PeerReport {
    PeerReport {
        state: HealState::Copying,
        rate,
        sent_before: Some(Duration::from_millis(400)),
        failing_for: None,
        figures: Figures {
            bytes_read: 90 * MIB,
            bytes_sent: 64 * MIB,
            bytes_zeroed: 16 * MIB,
            bytes_compared: 10 * MIB,
            extents_cleared: 1440,
            extents_again: 3,
        },
    }
}

/// It cannot copy.
pub fn waiting(why: &str) -> PeerReport {
    PeerReport {
        state: HealState::Waiting {
            on: Obstacle::Lock,
            why: why.to_owned(),
        },
        rate: 0,
        sent_before: None,
        failing_for: None,
        figures: Figures::default(),
    }
}

pub fn healing(snapshot: &mut Snapshot) -> &mut Healing {
    snapshot.healing.as_mut().unwrap()
}

/// The report of a session with a device of one queue.
pub fn report(snapshot: &Snapshot) -> Status {
    let serving = Serving {
        socket: "/run/vm1.sock".to_owned(),
        front_end: true,
        read_only: false,
        write_waiting: snapshot.write_waiting,
        ownership: OwnershipStatus::Held,
        dropped: None,
        full: None,
        queues: vec![
            QueueStatus {
                reads: 10,
                read_bytes: 4 * MIB,
                writes: 20,
                written_bytes: 8 * MIB,
                flushes: 3,
                discards: 2,
                write_zeroes: 1,
                errors: 5,
                in_flight: 4,
                parked: 1,
                dead: None,
                held: 0,
            };
            2
        ],
    };
    Status::of_session(&identity(), snapshot, Some(serving))
}
