//! What a daemon answers on its control socket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::control::serving_status::{QueueStatus, Serving};
use crate::control::socket::{Answer, FORCED, Request};
use crate::control::status::{Identity, Status, Verified};
use crate::device::{CacheMode, QueueSnapshot, Space, Stats};
use crate::image::error_chain::chain;
use crate::image::heal::{HealReport, Hint, Job, LinkError, Wait};
use crate::image::replica::brick_set::VolumeChange;
use crate::image::session::handle::SessionHandle;
use crate::image::session::ownership::{Ownership, OwnershipEvent};
use crate::image::session::resize::{Insist, NewSize};
use crate::image::session::state_machine::Phase;
use crate::image::state_dir::StateDir;
use crate::image::surroundings::Surroundings;

use super::served_image::ServedImage;

/// An image, and the device in front of it if there is one.
pub struct ControlService {
    /// What is served.
    pub identity: Identity,
    /// Its session, as long as there is one.
    pub image: Image,
    /// What others do around it.
    pub surroundings: Arc<Surroundings>,
    /// Where it is kept what was found by comparing the copies.
    pub state: StateDir,
    /// Absent in a session of a healer.
    pub serving: Option<Device>,
    /// Requests timed until the last report of a healer, and their time.
    pub last_timed: Mutex<(u64, Duration)>,
    /// Until then healers do not hold back for the guest, see [`Request::Force`].
    pub forced_until: Mutex<Option<Instant>>,
}

/// Where the image's session is.
pub enum Image {
    /// In this process, from its beginning to its end, with what a healer needs to know.
    Ours(SessionHandle, Box<Job>),
    /// It comes and goes.
    ServedImage(Arc<ServedImage>),
}

/// The device in front of a session.
pub struct Device {
    /// Its counters.
    pub stats: Arc<Stats>,
    /// A front-end is connected.
    pub front_end: Arc<AtomicBool>,
    /// Whether the disk is full.
    pub space: Arc<Space>,
    /// Where front-ends connect.
    pub socket: String,
    /// The disk is read-only.
    pub read_only: bool,
    /// How the guest wants its writes.
    pub cache: Arc<CacheMode>,
}

impl Device {
    /// Why a migration would harm the guest now: what another host does not learn.
    fn must_stay(&self, no_guest: bool) -> Option<String> {
        let queues = self.stats.snapshot().total();
        match no_guest {
            true => (queues.in_flight > 0).then(|| {
                "a guest of this host has requests under way, and --no-guest says that there is none"
                    .to_owned()
            }),
            false => must_stay(queues, self.cache.writeback()),
        }
    }
}

fn must_stay(queues: QueueSnapshot, writeback: bool) -> Option<String> {
    if queues.starts == 0 {
        return Some(
            "no guest has used the disk since this daemon was started. One that runs connects within moments: \
             try again then. If none runs here, say so with --no-guest"
                .to_owned(),
        );
    }
    if queues.held > 0 {
        return Some(format!(
            "the local disk is full, and {} writes of the guest wait for room: they would fail. Free some space on the \
             brick's file system first",
            queues.held
        ));
    }
    if queues.unrepeated > 0 {
        return Some(format!(
            "{} requests that were in flight when the daemon before this one died wait to be done again, and would be \
             lost: try again when `bypass-blk status` shows no stalled write",
            queues.unrepeated
        ));
    }
    (!writeback).then(|| {
        "the guest has set its disk to write-through, which QEMU does not tell the other host: its writes would not be \
         durable there. Set it to write-back while it is migrated (in Linux /sys/block/vda/cache_type), and back after"
            .to_owned()
    })
}

impl ControlService {
    /// Answers one request.
    pub fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Job => self.job(),
            Request::Report {
                session,
                report,
                wait,
            } => Answer::or_failed(
                self.session(session)
                    .and_then(|(session, _)| self.hint(&session, &report, wait.as_ref())),
            ),
            Request::Unmark { session } => Answer::or_failed(
                self.session(session)
                    .and_then(|(session, _)| session.unmark())
                    .map(Answer::Unmarked),
            ),
            Request::Repair {
                session,
                child,
                ranges,
            } => Answer::or_failed(
                self.session(session)
                    .and_then(|(session, job)| repair(&session, &job, child, &ranges))
                    .map(|()| Answer::Done),
            ),
            Request::HandOver {
                armed,
                to,
                no_guest,
            } => self.arm(armed, to, no_guest),
            Request::Force => {
                *lock(&self.forced_until) = Some(Instant::now() + FORCED);
                Answer::Done
            }
            Request::Resize {
                size,
                force,
                overcommit,
            } => {
                let away = force;
                self.resize(size, Insist { away, overcommit })
            }
            Request::Bandwidth { .. } | Request::Queue | Request::Yield => Answer::Refused {
                why: "this is no healer".to_owned(),
            },
        }
    }

    /// The session of this moment.
    fn any_session(&self) -> Option<(SessionHandle, Job)> {
        match &self.image {
            Image::Ours(session, job) => Some((session.clone(), (**job).clone())),
            Image::ServedImage(served) => served.now().session,
        }
    }

    /// This session, if it is still there.
    fn session(&self, wanted: Uuid) -> Result<(SessionHandle, Job), LinkError> {
        let now = self.any_session();
        now.filter(|(_, job)| job.session == wanted)
            .ok_or_else(|| LinkError::Ended("it was closed".to_owned()))
    }

    fn ownership(&self) -> Ownership {
        match &self.image {
            Image::Ours(..) => Ownership::Held,
            Image::ServedImage(served) => served.now().ownership,
        }
    }

    fn arm(&self, armed: bool, to: Option<usize>, no_guest: bool) -> Answer {
        let Image::ServedImage(served) = &self.image else {
            return not_served();
        };
        let held = armed && self.ownership() == Ownership::Held;
        let unsynced = self
            .any_session()
            .and_then(|(s, _)| s.snapshot().sync_failed);
        if let Some(failure) = unsynced.filter(|_| held) {
            let why = format!("the local copy cannot be vouched for: {failure}");
            return Answer::Refused { why };
        }
        let device = self.serving.as_ref().filter(|_| held);
        if let Some(why) = device.and_then(|device| device.must_stay(no_guest)) {
            return Answer::Refused { why };
        }
        let wish = match (armed, no_guest) {
            (true, false) => OwnershipEvent::Arm,
            (true, true) => OwnershipEvent::GiveAway,
            (false, _) => OwnershipEvent::Disarm,
        };
        let answer = served.hand_over(wish, to);
        if let Some((session, _)) = self.any_session() {
            session.ring();
        }
        match answer {
            Some(Ownership::Ended) | None => Answer::Ended {
                why: "it has stopped".to_owned(),
            },
            Some(ownership) => Answer::Ownership {
                ownership: ownership.into(),
            },
        }
    }

    fn resize(&self, size: NewSize, insist: Insist) -> Answer {
        let Image::ServedImage(served) = &self.image else {
            return not_served();
        };
        match served.resize(size, insist) {
            Ok((resized, told)) => Answer::Resized { resized, told },
            Err(why) => Answer::Refused { why: chain(&why) },
        }
    }

    /// Bytes of the image.
    fn size(&self) -> u64 {
        match &self.image {
            Image::Ours(..) => self.identity.size,
            Image::ServedImage(served) => served.now().size,
        }
    }

    /// The volume is not as it was when the image was opened, or is again.
    pub fn volume_changed(&self, change: VolumeChange) {
        if let Some((session, _)) = self.any_session() {
            session.volume_changed(change);
        }
    }

    /// The report of this moment.
    pub fn status(&self) -> Status {
        let session = self.any_session().map(|(session, _)| session.snapshot());
        let waiting = session
            .as_ref()
            .is_some_and(|session| session.write_waiting);
        let ownership = self.ownership();
        let serving = self.serving.as_ref().map(|device| Serving {
            socket: device.socket.clone(),
            front_end: device.front_end.load(Ordering::SeqCst),
            read_only: device.read_only,
            write_waiting: waiting,
            ownership: ownership.into(),
            full: device.space.full().map(Into::into),
            dropped: device.stats.dropped(),
            queues: queues(&device.stats),
        });
        let entry = self.state.entry(&self.identity.volume, self.identity.gfid);
        let verified = entry.and_then(|entry| entry.verified);
        let identity = Identity {
            last_verified: verified.as_ref().map(Verified::from),
            size: self.size(),
            image: self.surroundings.image(),
            ..self.identity.clone()
        };
        let status = match session {
            Some(session) => Status::of_session(&identity, &session, serving),
            None => Status::without_session(&identity, serving),
        };
        Status {
            warnings: self.surroundings.warnings(),
            ..status
        }
    }

    /// What there is to heal, and to compare, as long as the session has the image.
    fn job(&self) -> Answer {
        let Some((session, job)) = self.any_session() else {
            return Answer::Refused {
                why: "the image is not held now".to_owned(),
            };
        };
        if session.is_resizing() {
            return Answer::Refused {
                why: "the image is being resized".to_owned(),
            };
        }
        match session.snapshot().phase {
            Phase::Stopped(_) => Answer::Ended {
                why: "it has stopped".to_owned(),
            },
            _ => Answer::Job(job),
        }
    }

    fn hint(
        &self,
        session: &SessionHandle,
        report: &HealReport,
        wait: Option<&Wait>,
    ) -> Result<Answer, LinkError> {
        let told = |hint: Hint| {
            let urgent = matches!(self.ownership(), Ownership::Armed | Ownership::Leaving);
            Hint {
                urgent,
                forced: urgent || self.is_forced(),
                at_rest: hint.at_rest && !urgent,
                ..hint
            }
        };
        let hint = session.report(report, wait, told)?;
        Ok(Answer::Hint(Hint {
            latency: self.latency(),
            ..hint
        }))
    }

    fn is_forced(&self) -> bool {
        let until = *lock(&self.forced_until);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// The mean time of the guest's requests since this was last asked.
    fn latency(&self) -> Option<Duration> {
        let now = self.serving.as_ref()?.stats.timed();
        let mut last = lock(&self.last_timed);
        let (count, time) = std::mem::replace(&mut *last, now);
        let requests = u32::try_from(now.0.checked_sub(count)?).ok()?;
        now.1.checked_sub(time)?.checked_div(requests)
    }
}

/// Nothing in them is half done.
fn lock<T>(figures: &Mutex<T>) -> MutexGuard<'_, T> {
    figures.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_served() -> Answer {
    Answer::Refused {
        why: "this process heals the image and does not serve it".to_owned(),
    }
}

fn repair(
    session: &SessionHandle,
    job: &Job,
    child: usize,
    ranges: &[(u64, u64)],
) -> Result<(), LinkError> {
    let unknown = || LinkError::Failed(format!("brick {child} is not a peer"));
    let peer = job.peers.iter().position(|&peer| peer == child);
    let peer = peer.and_then(crate::image::dirty_map::Peer::new);
    let ranges = ranges.iter().map(|&(start, end)| start..end);
    session.repair(peer.ok_or_else(unknown)?, ranges.collect())
}

fn queues(stats: &Stats) -> Vec<QueueStatus> {
    let queues = stats.snapshot().queues.into_iter().enumerate();
    let status = |(index, queue): (usize, QueueSnapshot)| QueueStatus {
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
        held: queue.held,
        dead: stats.dead(index),
    };
    queues.map(status).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_whose_guest_would_lose_something_is_not_given_away() {
        let quiet = QueueSnapshot {
            starts: 2,
            // Put back into the ring when it stops: the other host takes it.
            parked: 1,
            in_flight: 3,
            ..QueueSnapshot::default()
        };
        assert_eq!(must_stay(quiet, true), None);
        let why = |queues, writeback| must_stay(queues, writeback).unwrap_or_default();
        let repeating = QueueSnapshot {
            unrepeated: 7,
            ..quiet
        };
        assert!(why(repeating, true).starts_with("7 requests"));
        assert!(why(quiet, false).contains("write-through"));
        let waiting = QueueSnapshot { held: 3, ..quiet };
        assert!(why(waiting, true).contains("3 writes of the guest wait for room"));
        let unseen = QueueSnapshot { starts: 0, ..quiet };
        assert!(why(unseen, true).contains("no guest has used"));
    }
}
