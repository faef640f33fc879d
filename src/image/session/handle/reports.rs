//! What a healer tells a session, and what it is told. The answer to a healer that has
//! nothing to do may be kept back until it has.

use std::time::{Duration, Instant};

use super::{SessionHandle, locked};
use crate::image::dirty_map::Peer;
use crate::image::heal::{HealReport, HealState, Hint, LinkError, Obstacle, PeerReport, Wait};
use crate::image::replica::brick_set::BrickSet;
use crate::image::session::input::Input;
use crate::image::session::state_machine::Phase;

/// A peer to which every copy has failed for so long is not waited for when the marks
/// against another one could go.
const STUCK: Duration = Duration::from_secs(5);
/// A healer that has not reported for so long, and waits for no answer, is gone.
const HEALER_GONE: Duration = Duration::from_secs(5);
/// No answer is kept back for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The least time between two rounds of marking for a healer that misses a mark.
const REMARK_PAUSE: Duration = Duration::from_secs(2);

/// The last report of a healer.
#[derive(Default)]
pub(super) struct Heard {
    /// How many there were.
    number: u64,
    last: Option<Told>,
}

struct Told {
    report: HealReport,
    at: Instant,
    /// How long the healer counts as alive.
    until: Instant,
}

impl Heard {
    /// The last report, however old.
    pub(super) fn last(&self) -> Option<HealReport> {
        self.last.as_ref().map(|told| told.report.clone())
    }

    /// That of a healer that is alive, its ages as of now.
    pub(super) fn alive(&self) -> Option<HealReport> {
        let now = Instant::now();
        let told = self.last.as_ref().filter(|told| now < told.until)?;
        Some(aged(
            told.report.clone(),
            now.saturating_duration_since(told.at),
        ))
    }

    /// Takes one whose answer may be kept back for `wait`; its number.
    fn take(&mut self, report: &HealReport, wait: Duration) -> u64 {
        let at = Instant::now();
        self.number += 1;
        self.last = Some(Told {
            report: report.clone(),
            at,
            until: at + wait + HEALER_GONE,
        });
        self.number
    }

    /// The answer to this one is given.
    fn answered(&mut self, number: u64) {
        let told = self.last.as_mut().filter(|_| self.number == number);
        if let Some(told) = told {
            told.until = Instant::now() + HEALER_GONE;
        }
    }
}

impl SessionHandle {
    /// Takes a healer's report; the answer is what it should know, which `told` makes
    /// complete with what the caller knows. The guest's latency is the caller's to fill in
    /// at the end.
    ///
    /// With `wait` the answer is kept back, as that says, or until another report comes:
    /// so one thread of the caller's waits here at most.
    ///
    /// # Errors
    /// [`LinkError::Ended`].
    pub fn report(
        &self,
        report: &HealReport,
        wait: Option<&Wait>,
        told: impl Fn(Hint) -> Hint,
    ) -> Result<Hint, LinkError> {
        let time = wait.map_or(Duration::ZERO, |wait| wait.time.min(LONGEST_WAIT));
        let number = locked(&self.healer).take(report, time);
        // Whoever waits for the answer to an earlier one is gone, or should be.
        self.bell.ring();
        let is_last = || locked(&self.healer).number == number;
        let known = |hint: &Hint| wait.is_some_and(|wait| hint.says_what(&wait.unlike));
        let changed = self.bell.wait(time, || match self.hint(report).map(&told) {
            Ok(hint) if known(&hint) && is_last() => None,
            answer => Some(answer),
        });
        locked(&self.healer).answered(number);
        changed.unwrap_or_else(|| self.hint(report).map(told))
    }

    /// The caller of [`SessionHandle::report`] has something new to say.
    pub fn ring(&self) {
        self.bell.ring();
    }

    /// What a healer that reports this should know.
    fn hint(&self, report: &HealReport) -> Result<Hint, LinkError> {
        if self.bell.is_over() {
            return Err(LinkError::Ended("it was closed".to_owned()));
        }
        let Some(map) = self.map() else {
            return Err(LinkError::Ended("it is read-only".to_owned()));
        };
        if self.is_resizing() {
            return Err(LinkError::Ended("the image is being resized".to_owned()));
        }
        let next_look = locked(&self.watch).next_look;
        if Instant::now() >= next_look {
            self.look(&map);
        }
        let snapshot = locked(&self.snapshot).clone();
        if matches!(snapshot.phase, Phase::Stopped(_)) {
            return Err(LinkError::Ended("it has stopped".to_owned()));
        }
        let unmarked = |peer: &PeerReport| {
            let on = Obstacle::Mark;
            matches!(&peer.state, HealState::Waiting { on: it, .. } if *it == on)
        };
        if report.peers.iter().any(unmarked) {
            self.ask_for_marks();
        }
        let all_marked = snapshot.phase == Phase::Dirty;
        let locked = || snapshot.copies.iter().filter(|copy| copy.locked);
        let held = |child: usize| snapshot.copies.get(child).is_some_and(|copy| copy.locked);
        let count = |marks: &Vec<i32>, child: usize| marks.get(child).copied().unwrap_or(0);
        let marked = |child: usize| {
            let mut marks = locked().filter_map(|copy| copy.pending.as_ref());
            all_marked || marks.any(|marks| count(marks, child) != 0)
        };
        let stamp = map.record().stamp;
        let stands = |child: usize| {
            let stamped = |marks: &Vec<i32>| stamp != 0 && count(marks, child) == stamp;
            locked().all(|copy| copy.pending.as_ref().is_some_and(stamped))
        };
        let suspect = map.record().suspect;
        let behind = map.behind();
        let clean = |peer: Peer| !behind.contains(peer);
        let stuck = self.stuck(report);
        let equal = |(peer, child): (Peer, usize)| clean(peer) || !held(child);
        let removable = self
            .peers()
            .all(|(peer, child)| equal((peer, child)) || stuck.contains(child))
            && self
                .peers()
                .any(|(peer, child)| marked(child) && clean(peer));
        Ok(Hint {
            marked: all_marked,
            stands: self.peers().map(|(_, child)| stands(child)).collect(),
            removable,
            suspect: self
                .peers()
                .map(|(peer, _)| suspect.contains(peer))
                .collect(),
            held: self.peers().map(|(_, child)| held(child)).collect(),
            urgent: false,
            forced: false,
            latency: None,
            at_rest: snapshot.phase == Phase::Unmarked && !removable && self.peers().all(equal),
        })
    }

    /// The children to which the healer cannot copy, not for a moment only.
    pub(super) fn stuck(&self, report: &HealReport) -> BrickSet {
        let failing = |peer: &PeerReport| peer.failing_for.is_some_and(|time| time >= STUCK);
        let reports = self.peers().zip(&report.peers);
        let stuck = reports.filter(|(_, report)| failing(report));
        stuck.map(|((_, child), _)| child).collect()
    }

    /// A mark is not what it should be: the session looks at all of them and stores its
    /// own again. Not more often than [`REMARK_PAUSE`], for it takes AFR's data lock.
    fn ask_for_marks(&self) {
        let mut watch = locked(&self.watch);
        let now = self.threads.now();
        if now >= watch.next_remark {
            watch.next_remark = now + REMARK_PAUSE;
            // To a session that is over it makes no difference.
            let _ = self.inbox.send(Input::MarkAgain);
        }
    }
}

/// A report whose ages are as of so long after it was made.
fn aged(mut report: HealReport, later: Duration) -> HealReport {
    for peer in &mut report.peers {
        peer.sent_before = peer.sent_before.map(|age| age.saturating_add(later));
    }
    report
}

#[cfg(test)]
mod tests;
