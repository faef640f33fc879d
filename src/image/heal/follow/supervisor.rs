//! The thread that speaks with the session: reports, takes its hints, asks to
//! remove marks, and sets how fast to copy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::image::dirty_map::{DirtyMap, Peer};
use crate::image::heal::backoff::{Backoff, Interval};
use crate::image::heal::link::{
    HealReport, Hint, LinkError, PeerReport, SessionLink, Unmarked, Wait,
};
use crate::image::heal::progress::{Figures, Progress};
use crate::image::heal::throttle::Throttle;
use crate::image::scheduler::Started;
use crate::image::scheduler::clock::Clock;

use super::board::{Board, PeerHealing};
use super::meter::Meter;
use super::retry::{LONGEST, Retry};
use super::{FollowEnd, FollowError, FollowSnapshot};

/// How often the session hears of the healing.
const REPORT_PERIOD: Duration = Duration::from_millis(500);
/// How long the session may keep its answer back while there is nothing to do.
const REST_PERIOD: Duration = Duration::from_secs(30);
/// The same while a guest stands still until the session is over.
const URGENT_PERIOD: Duration = Duration::from_millis(25);
/// How often it is asked whether marks can go, while some copies are equal.
const UNMARK_PERIOD: Duration = Duration::from_millis(250);
/// The time over which a peer's rate is told.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// The time over which the rate is taken that the guest suffers from.
const BACKOFF_WINDOW: Duration = Duration::from_secs(1);

/// Follows one session.
pub struct Supervisor {
    board: Arc<Board>,
    link: Arc<dyn SessionLink>,
    clock: Arc<dyn Clock>,
    map: Arc<DirtyMap>,
    /// The operator's limit in bytes per second.
    bandwidth: Arc<AtomicU64>,
    throttle: Arc<Throttle>,
    backoff: Backoff,
    /// The guest's, since the backoff was last told.
    latency: Option<Duration>,
    /// When that was.
    observed: Duration,
    all: Meter,
    /// In the map's order.
    peers: Vec<Watched>,
    /// After an answer that nothing was unmarked.
    retry: Retry,
    not_before: Duration,
    snapshot: Arc<Mutex<FollowSnapshot>>,
}

/// What the supervisor keeps of a peer.
struct Watched {
    id: Peer,
    progress: Arc<Progress>,
    meter: Meter,
}

/// What the supervisor shares with others.
pub struct Shared {
    pub board: Arc<Board>,
    pub link: Arc<dyn SessionLink>,
    pub clock: Arc<dyn Clock>,
    pub map: Arc<DirtyMap>,
    pub bandwidth: Arc<AtomicU64>,
    pub throttle: Arc<Throttle>,
    pub snapshot: Arc<Mutex<FollowSnapshot>>,
}

impl Supervisor {
    /// Of these peers, each with the counters of its engines.
    pub fn new(shared: Shared, peers: impl Iterator<Item = (Peer, Arc<Progress>)>) -> Self {
        let watched = |(id, progress)| Watched {
            id,
            progress,
            meter: Meter::new(RATE_WINDOW),
        };
        Self {
            board: shared.board,
            link: shared.link,
            clock: shared.clock,
            map: shared.map,
            bandwidth: shared.bandwidth,
            throttle: shared.throttle,
            backoff: Backoff::default(),
            latency: None,
            observed: Duration::ZERO,
            all: Meter::new(BACKOFF_WINDOW),
            peers: peers.map(watched).collect(),
            retry: Retry::default(),
            not_before: Duration::ZERO,
            snapshot: shared.snapshot,
        }
    }

    /// Until the session ends, a healer dies, or the board says stop.
    ///
    /// # Errors
    /// [`FollowError::Died`].
    pub fn run(mut self, healers: &[Started<()>]) -> Result<FollowEnd, FollowError> {
        let mut next_report = self.clock.now();
        let mut news = 0;
        while !self.board.is_stopped() {
            if healers.iter().any(Started::is_over) {
                return Err(FollowError::Died);
            }
            let spoken = match self.clock.now() >= next_report {
                true => {
                    let (begin, wait) = (self.clock.now(), self.rest());
                    let spoken = self.report(wait.as_ref());
                    let since = wait.map_or_else(|| self.clock.now(), |_| begin);
                    next_report = since + self.report_period();
                    spoken
                }
                false => self.unmark_if_due(),
            };
            if let Err(why) = spoken {
                return Ok(FollowEnd::SessionEnded(why));
            }
            let due = self.unmark_due().unwrap_or(next_report);
            let (seen, urgent) = self.board.wait_for_news(news, due.min(next_report));
            news = seen;
            if urgent {
                next_report = self.clock.now();
            }
        }
        Ok(FollowEnd::Stopped)
    }

    fn report_period(&self) -> Duration {
        let snapshot = self.snapshot.lock();
        match snapshot.unwrap_or_else(PoisonError::into_inner).hint.urgent {
            true => URGENT_PERIOD,
            false => REPORT_PERIOD,
        }
    }

    /// How long the next answer may take: there is nothing to do, and the session has heard
    /// so.
    fn rest(&self) -> Option<Wait> {
        let snapshot = self.snapshot.lock();
        let snapshot = snapshot.unwrap_or_else(PoisonError::into_inner);
        let nothing_moves = snapshot.report.peers.iter().all(|peer| peer.rate == 0);
        (nothing_moves && self.board.is_at_rest()).then(|| Wait {
            time: REST_PERIOD,
            unlike: snapshot.hint.clone(),
        })
    }

    /// An error says why the session ended.
    fn report(&mut self, wait: Option<&Wait>) -> Result<(), String> {
        let report = self.make_report(self.clock.now());
        match self.link.report(&report, wait) {
            Ok(hint) => {
                self.set_limit(self.clock.now(), &hint);
                self.board.take_hint(hint.clone());
                self.publish(|snapshot| snapshot.hint = hint);
            }
            Err(LinkError::Ended(why)) => return Err(why),
            // What it said before still holds, as far as anybody knows; the copy
            // lock is what others rely on.
            Err(error @ LinkError::Failed(_)) => log::warn!("{error}"),
        }
        self.publish(|snapshot| snapshot.report = report);
        Ok(())
    }

    fn make_report(&mut self, now: Duration) -> HealReport {
        let healing = self.board.healing();
        let peers = self.peers.iter_mut().zip(healing);
        let peers = peers.map(|(peer, healing)| PeerReport {
            rate: peer.meter.read(now, moved(&peer.progress.figures())),
            sent_before: sent_before(&self.map, peer.id, &healing, now),
            failing_for: (healing.failing_since).map(|since| now.saturating_sub(since)),
            figures: peer.progress.figures(),
            state: healing.state,
        });
        HealReport {
            pid: std::process::id(),
            peers: peers.collect(),
            bandwidth: self.bandwidth.load(Ordering::Relaxed),
            trouble: None,
        }
    }

    fn set_limit(&mut self, now: Duration, hint: &Hint) {
        self.latency = hint.latency.or(self.latency);
        let time = now.saturating_sub(self.observed);
        // After a report out of turn, the time is too short to judge by.
        if time >= REPORT_PERIOD / 2 {
            self.observed = now;
            self.observe(now, time);
        }
        let limit = self.bandwidth.load(Ordering::Relaxed);
        let rate = match hint.forced {
            true => limit,
            false => self.backoff.rate(limit),
        };
        self.throttle.set_rate(rate);
        self.publish(|snapshot| snapshot.limit = rate);
    }

    fn observe(&mut self, now: Duration, time: Duration) {
        let figures = self.peers.iter().map(|peer| peer.progress.figures());
        let rate = self.all.read(now, figures.map(|f| moved(&f)).sum());
        let interval = Interval {
            latency: self.latency.take(),
            copied: self.board.take_copied(),
            rate,
        };
        // A rest is so many intervals in which nothing was copied.
        let intervals = time.min(REST_PERIOD).as_millis() / REPORT_PERIOD.as_millis();
        (0..intervals.max(1)).for_each(|_| self.backoff.observe(&interval));
    }

    fn unmark_due(&self) -> Option<Duration> {
        let due = self.board.unmark_from();
        due.map(|due| due.max(self.not_before))
    }

    /// An error says why the session ended.
    fn unmark_if_due(&mut self) -> Result<(), String> {
        if self.unmark_due().is_none_or(|due| self.clock.now() < due) {
            return Ok(());
        }
        // The session knows whose marks stand; what it said last may be old.
        self.report(None)?;
        if !self.board.is_removable() {
            self.not_before = self.clock.now() + UNMARK_PERIOD;
            return Ok(());
        }
        // Whoever sees that the image is clean sees what was done for it.
        self.report(None)?;
        let answer = match self.link.unmark() {
            Ok(answer) => answer,
            Err(LinkError::Ended(why)) => return Err(why),
            Err(LinkError::Failed(why)) => Unmarked::NotYet { why },
        };
        let news = match &answer {
            Unmarked::All => self.board.take_unmarked(None),
            Unmarked::Some { peers } => self.board.take_unmarked(Some(peers)),
            Unmarked::NotYet { .. } => false,
        };
        match news {
            true => self.retry.reset(),
            false => self.not_before = self.clock.now() + self.retry.pause(LONGEST),
        }
        self.publish(|snapshot| snapshot.unmarked = Some(answer));
        Ok(())
    }

    fn publish(&self, change: impl FnOnce(&mut FollowSnapshot)) {
        let snapshot = self.snapshot.lock();
        change(&mut snapshot.unwrap_or_else(PoisonError::into_inner));
    }
}

fn moved(figures: &Figures) -> u64 {
    figures.bytes_sent + figures.bytes_zeroed + figures.bytes_compared
}

/// The age of the oldest write that may not have been sent.
fn sent_before(
    map: &DirtyMap,
    peer: Peer,
    healing: &PeerHealing,
    now: Duration,
) -> Option<Duration> {
    // A look of our own, for what was written since its healer looked.
    if healing.clean_since.is_some() && map.next_dirty(peer, 0).is_none() {
        return Some(Duration::ZERO);
    }
    healing.covered.map(|at| now.saturating_sub(at))
}
