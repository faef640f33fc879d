//! What a daemon answers on its control socket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::control::socket::{Answer, Request};
use crate::control::status::{Identity, QueueStatus, Serving, Status, Verified};
use crate::device::Stats;
use crate::image::handle::SessionHandle;
use crate::image::heal::{HealReport, Job, LinkError};
use crate::image::machine::Phase;
use crate::image::state_dir::StateDir;

/// A session, and the device in front of it if there is one.
pub struct Service {
    /// What is served.
    pub identity: Identity,
    /// Its session.
    pub session: SessionHandle,
    /// Where it is kept what was found by comparing the copies.
    pub state: StateDir,
    /// What a healer needs to know.
    pub job: Job,
    /// Absent in a session of a healer.
    pub serving: Option<Device>,
    /// Requests timed until the last report of a healer, and their time.
    pub last_timed: Mutex<(u64, Duration)>,
}

/// The device in front of a session.
pub struct Device {
    /// Its counters.
    pub stats: Arc<Stats>,
    /// A front-end is connected.
    pub front_end: Arc<AtomicBool>,
    /// Where front-ends connect.
    pub socket: String,
    /// The disk is read-only.
    pub read_only: bool,
}

impl Service {
    /// Answers one request.
    pub fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Job => self.job(),
            Request::Report(report) => self.hint(&report),
            Request::Unmark => Answer::or_failed(self.session.unmark().map(Answer::Unmarked)),
            Request::Repair { child, ranges } => {
                Answer::or_failed(self.repair(child, &ranges).map(|()| Answer::Done))
            }
            Request::Bandwidth { .. } | Request::Yield => Answer::Refused {
                why: "this is no healer".to_owned(),
            },
        }
    }

    /// The report of this moment.
    pub fn status(&self) -> Status {
        let session = self.session.snapshot();
        let serving = self.serving.as_ref().map(|device| Serving {
            socket: device.socket.clone(),
            front_end: device.front_end.load(Ordering::SeqCst),
            read_only: device.read_only,
            write_waiting: session.write_waiting,
            queues: device
                .stats
                .snapshot()
                .queues
                .iter()
                .map(QueueStatus::from)
                .collect(),
        });
        let entry = self.state.entry(&self.identity.volume, self.identity.gfid);
        let verified = entry.and_then(|entry| entry.verified);
        let identity = Identity {
            last_verified: verified.as_ref().map(Verified::from),
            ..self.identity.clone()
        };
        Status::of_session(&identity, &session, serving)
    }

    /// What there is to heal, and to compare, as long as the session has the image.
    fn job(&self) -> Answer {
        match self.session.snapshot().phase {
            Phase::Stopped(_) => Answer::Ended {
                why: "it has stopped".to_owned(),
            },
            _ => Answer::Job(self.job.clone()),
        }
    }

    fn hint(&self, report: &HealReport) -> Answer {
        let hint = self.session.report(report).map(|mut hint| {
            hint.latency = self.latency();
            Answer::Hint(hint)
        });
        Answer::or_failed(hint)
    }

    /// The mean time of the guest's requests since this was last asked.
    fn latency(&self) -> Option<Duration> {
        let now = self.serving.as_ref()?.stats.timed();
        let mut last = self.last_timed.lock().unwrap_or_else(|e| e.into_inner());
        let (count, time) = std::mem::replace(&mut *last, now);
        let requests = u32::try_from(now.0.checked_sub(count)?).ok()?;
        now.1.checked_sub(time)?.checked_div(requests)
    }

    fn repair(&self, child: usize, ranges: &[(u64, u64)]) -> Result<(), LinkError> {
        let unknown = || LinkError::Failed(format!("brick {child} is not a peer"));
        let peer = self.job.peers.iter().position(|&peer| peer == child);
        let peer = peer.and_then(crate::image::dirty::Peer::new);
        let ranges = ranges.iter().map(|&(start, end)| start..end);
        self.session
            .repair(peer.ok_or_else(unknown)?, ranges.collect())
    }
}

impl From<&crate::device::QueueSnapshot> for QueueStatus {
    fn from(queue: &crate::device::QueueSnapshot) -> Self {
        Self {
            reads: queue.reads,
            read_bytes: queue.read_bytes,
            writes: queue.writes,
            written_bytes: queue.written_bytes,
            flushes: queue.flushes,
            discards: queue.discards,
            write_zeroes: queue.write_zeroes,
            errors: queue.errors,
            in_flight: queue.in_flight,
            parked: queue.parked,
        }
    }
}
