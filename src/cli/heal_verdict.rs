//! Is an image healed, can it be, or is there no use in waiting? What `heal` decides, one
//! status after the other.

use std::time::Duration;

use crate::control::copy_status::CopyStatus;
use crate::control::heal::PeerHeal;
use crate::control::status::{State, Status};
use crate::image::heal::Figures;

/// How long something must have been so before it is believed to stay so.
const STEADY: Duration = Duration::from_secs(3);
/// Without any progress for so long, something is in the way.
const STUCK: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealVerdict {
    /// Look again soon.
    GoOn,
    /// All copies are equal, no mark is left.
    Clean,
    /// It will not be clean by waiting, for this reason.
    NotClean(String),
}

/// Watches one heal.
pub struct HealProgress {
    /// Whatever the obstacle, it may go.
    patient: bool,
    /// Why it would end, and since when it would.
    doubt: Option<(Doubt, Duration)>,
    /// How many extents were healed when one was healed last, and when that was. What was
    /// sent is no progress: it may have been refused.
    progress: (u64, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// The copies that are left to heal are away.
    Away,
    /// All that was missing at the beginning was sent, but the guest goes on.
    GuestWrites,
}

impl HealProgress {
    /// One that begins now; a patient one ends only when the image is clean.
    pub fn new(patient: bool) -> Self {
        Self {
            patient,
            doubt: None,
            progress: (0, Duration::ZERO),
        }
    }

    /// Takes the status in, `now` being the time since the beginning.
    pub fn look(&mut self, status: &Status, now: Duration) -> HealVerdict {
        match status.state {
            State::Clean if !status.copies.iter().any(is_behind) => return HealVerdict::Clean,
            State::Stopped | State::SplitBrain | State::Failed => {
                let why = status.detail.clone();
                return HealVerdict::NotClean(
                    why.unwrap_or_else(|| "the session has stopped".into()),
                );
            }
            _ if self.patient => return HealVerdict::GoOn,
            _ => {}
        }
        let doubt = doubt(status, now);
        if self.doubt.map(|(doubt, _)| doubt) != doubt {
            self.doubt = doubt.map(|doubt| (doubt, now));
        }
        if let Some((doubt, since)) = self.doubt
            && now.saturating_sub(since) >= STEADY
        {
            return HealVerdict::NotClean(reason(doubt, status));
        }
        let healed = moved(status).extents_cleared;
        if self.progress.0 != healed {
            self.progress = (healed, now);
        }
        match now.saturating_sub(self.progress.1) >= STUCK {
            true => HealVerdict::NotClean(obstacle(status)),
            false => HealVerdict::GoOn,
        }
    }
}

/// What the healer did for all peers together.
pub fn moved(status: &Status) -> Figures {
    let peers = status.heal.iter().flat_map(|heal| &heal.peers);
    let mut sum = Figures::default();
    peers
        .filter_map(|peer| peer.figures)
        .for_each(|figures| sum += figures);
    sum
}

fn is_behind(copy: &CopyStatus) -> bool {
    bytes(copy).is_some_and(|bytes| bytes > 0)
}

fn bytes(copy: &CopyStatus) -> Option<u64> {
    copy.behind.map(|behind| behind.bytes)
}

fn doubt(status: &Status, now: Duration) -> Option<Doubt> {
    let any = |is: fn(&CopyStatus) -> bool| status.copies.iter().any(is);
    let still_behind = any(|copy| copy.reachable && is_behind(copy));
    // A brick that is away may also be what keeps the marks of the others.
    if !still_behind && any(|copy| !copy.reachable) {
        return Some(Doubt::Away);
    }
    let peers = status.heal.iter().flat_map(|heal| &heal.peers);
    let sent = |peer: &PeerHeal| {
        let away = status
            .copies
            .get(peer.copy)
            .is_some_and(|copy| !copy.reachable);
        let age = Duration::try_from_secs_f64(peer.oldest_unsent_seconds).unwrap_or(Duration::MAX);
        away || (!peer.oldest_unsent_at_least && age < now)
    };
    (still_behind && peers.into_iter().all(sent)).then_some(Doubt::GuestWrites)
}

fn reason(doubt: Doubt, status: &Status) -> String {
    match doubt {
        Doubt::Away => {
            let away = status.copies.iter().filter(|copy| !copy.reachable);
            let names: Vec<_> = away
                .map(|copy| match &copy.reason {
                    Some(why) => format!("{} ({why})", copy.brick),
                    None => copy.brick.clone(),
                })
                .collect();
            format!(
                "these bricks are away: {}. Every other copy is up to date; --wait waits for them",
                names.join(", ")
            )
        }
        Doubt::GuestWrites => {
            "all that was missing at the beginning was sent, but the guest goes on \
             writing; --wait waits until it pauses"
                .to_owned()
        }
    }
}

fn obstacle(status: &Status) -> String {
    let peers = status.heal.iter().flat_map(|heal| &heal.peers);
    let told: Vec<_> = peers
        .filter_map(|peer| Some(format!("{}: {}", peer.brick, peer.why.as_ref()?)))
        .collect();
    match told.is_empty() {
        true => "nothing was healed for 30 s; the healer's log says why".to_owned(),
        false => format!("nothing was healed for 30 s. {}", told.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::samples::{MIB, copying, dirty, healer, healing, report, waiting};

    /// The first peer is equal; the second misses 64 MiB and this was done for it.
    fn status(sent: u64, cleared: u64) -> Status {
        let mut snapshot = dirty(0, 64 * MIB);
        let mut refused = waiting("host refused: no space left on device");
        refused.figures.bytes_sent = sent;
        refused.figures.bytes_read = sent;
        refused.figures.extents_cleared = cleared;
        let healing = healing(&mut snapshot);
        healing.behind[1].lag.inherited = true;
        healing.healer = Some(healer([copying(0), refused]));
        report(&snapshot)
    }

    #[test]
    fn what_is_sent_again_and_again_and_refused_is_no_progress() {
        let mut watch = HealProgress::new(false);
        let second = |n| Duration::from_secs(n);
        for now in 0..STUCK.as_secs() {
            assert_eq!(
                watch.look(&status(now * MIB, 7), second(now)),
                HealVerdict::GoOn
            );
        }
        let end = watch.look(&status(99 * MIB, 7), STUCK + second(1));
        let HealVerdict::NotClean(why) = end else {
            panic!("{end:?}");
        };
        assert!(why.contains("no space left"), "{why}");
        // One more extent that the peer has is.
        let mut watch = HealProgress::new(false);
        for (now, cleared) in [(0, 7), (29, 7), (30, 8), (59, 8)] {
            let verdict = watch.look(&status(now * MIB, cleared), second(now));
            assert_eq!(verdict, HealVerdict::GoOn);
        }
    }

    #[test]
    fn who_waits_goes_on_whatever_the_obstacle() {
        let mut watch = HealProgress::new(true);
        for now in [0, 1000] {
            let verdict = watch.look(&status(0, 0), Duration::from_secs(now));
            assert_eq!(verdict, HealVerdict::GoOn);
        }
    }
}
