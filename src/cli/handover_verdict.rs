//! Can an image be given away within the downtime that the operator allows? What
//! `handover` decides, one status after the other.

use std::time::Duration;

use crate::control::heal::PeerHeal;
use crate::control::status::Status;

/// What giving an image away takes besides the last extents: a flush, the removal of
/// the marks on every brick, the locks of the target, its first marks.
pub const FIXED: Duration = Duration::from_millis(250);
/// Without getting better for so long, an estimate stays as it is.
const STEADY: Duration = Duration::from_secs(10);
/// By less than this part of it, it gets no better: rates are never quite the same twice.
const BETTER: u32 = 20;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoverVerdict {
    /// Look again soon.
    GoOn,
    /// It would take about so long.
    Ready(Duration),
    /// It would take so long at best.
    TooLong(Duration),
    /// Some copy cannot be healed, for this reason.
    Hopeless(String),
}

/// Watches one image.
pub struct HandoverProgress {
    allowed: Duration,
    /// The child that must be there.
    to: Option<usize>,
    /// The best estimate, and when it was found.
    best: Option<(Duration, Duration)>,
}

impl HandoverProgress {
    /// With this downtime allowed, and the copy of child `to` needed.
    pub fn new(allowed: Duration, to: Option<usize>) -> Self {
        Self {
            allowed,
            to,
            best: None,
        }
    }

    /// Takes the status in, `now` being the time since the beginning.
    pub fn look(&mut self, status: &Status, now: Duration) -> HandoverVerdict {
        let away = self.away(status);
        let Some(estimate) = estimate(status).filter(|_| away.is_none()) else {
            let begin = self.best.get_or_insert((Duration::MAX, now)).1;
            return match now.saturating_sub(begin) > STEADY {
                true => HandoverVerdict::Hopeless(away.unwrap_or_else(|| why_not(status))),
                false => HandoverVerdict::GoOn,
            };
        };
        if estimate <= self.allowed {
            return HandoverVerdict::Ready(estimate);
        }
        match self.best {
            Some((best, at)) if estimate >= best - best / BETTER => {
                match now.saturating_sub(at) > STEADY {
                    true => HandoverVerdict::TooLong(best),
                    false => HandoverVerdict::GoOn,
                }
            }
            _ => {
                self.best = Some((estimate, now));
                HandoverVerdict::GoOn
            }
        }
    }

    /// What is said if the copy that is needed is away.
    fn away(&self, status: &Status) -> Option<String> {
        let copy = status.copies.get(self.to?)?;
        (!copy.reachable).then(|| format!("{}, where it is to go, is away", copy.brick))
    }
}

/// How long the guest would stand still, if the image were given away now. What is
/// away is not waited for. `None`: not known yet.
pub fn estimate(status: &Status) -> Option<Duration> {
    let heal = status.heal.as_ref()?;
    let mut longest = Duration::ZERO;
    for peer in reachable(status, &heal.peers) {
        let behind = behind(status, peer);
        let takes = match (behind, peer.rate) {
            (0, _) => Duration::ZERO,
            (bytes, Some(rate @ 1..)) => Duration::from_secs_f64(bytes as f64 / rate as f64),
            _ => return None,
        };
        longest = longest.max(takes);
    }
    Some(FIXED + longest)
}

fn reachable<'a>(status: &'a Status, peers: &'a [PeerHeal]) -> impl Iterator<Item = &'a PeerHeal> {
    let held = |peer: &&PeerHeal| status.copies.get(peer.copy).is_some_and(|c| c.reachable);
    peers.iter().filter(held)
}

fn behind(status: &Status, peer: &PeerHeal) -> u64 {
    let copy = status.copies.get(peer.copy);
    copy.and_then(|copy| copy.behind).map_or(0, |b| b.bytes)
}

fn why_not(status: &Status) -> String {
    let peers = status.heal.iter().flat_map(|heal| &heal.peers);
    let whys = peers.filter_map(|peer| Some(format!("{}: {}", peer.brick, peer.why.as_ref()?)));
    let whys: Vec<_> = whys.collect();
    match whys.is_empty() {
        true => "nothing is copied".to_owned(),
        false => whys.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::samples;

    const SECOND: Duration = Duration::from_secs(1);

    /// The first peer misses so many bytes, which are copied at this rate.
    fn status(bytes: u64, rate: Option<u64>) -> Status {
        let mut status = samples::report(&samples::dirty(bytes, 0));
        let heal = status.heal.as_mut().unwrap();
        heal.peers.truncate(1);
        heal.peers[0].rate = rate;
        let copy = heal.peers[0].copy;
        status.copies[copy].reachable = true;
        status.copies[copy].behind.as_mut().unwrap().bytes = bytes;
        status
    }

    #[test]
    fn the_estimate_is_what_the_slowest_peer_that_is_there_takes() {
        assert_eq!(estimate(&status(0, None)), Some(FIXED));
        assert_eq!(estimate(&status(200, Some(100))), Some(FIXED + 2 * SECOND));
        assert_eq!(estimate(&status(200, Some(0))), None);
        let mut away = status(200, None);
        let copy = away.heal.as_ref().unwrap().peers[0].copy;
        away.copies[copy].reachable = false;
        assert_eq!(estimate(&away), Some(FIXED));
    }

    #[test]
    fn it_is_ready_when_the_rest_fits_and_given_up_when_it_gets_no_better() {
        let mut watch = HandoverProgress::new(SECOND, None);
        let mut look =
            |bytes, seconds| watch.look(&status(bytes, Some(100)), Duration::from_secs(seconds));
        assert_eq!(look(900, 0), HandoverVerdict::GoOn);
        assert_eq!(
            look(500, 15),
            HandoverVerdict::GoOn,
            "it gets better, if slowly"
        );
        assert_eq!(look(510, 24), HandoverVerdict::GoOn);
        assert_eq!(look(510, 26), HandoverVerdict::TooLong(FIXED + 5 * SECOND));
        assert_eq!(look(50, 27), HandoverVerdict::Ready(FIXED + SECOND / 2));
    }

    #[test]
    fn a_copy_that_is_needed_is_waited_for_and_named_when_it_stays_away() {
        let mut away = status(0, None);
        let copy = away.heal.as_ref().unwrap().peers[0].copy;
        away.copies[copy].reachable = false;
        let mut indifferent = HandoverProgress::new(SECOND, None);
        assert_eq!(
            indifferent.look(&away, SECOND),
            HandoverVerdict::Ready(FIXED)
        );
        let mut watch = HandoverProgress::new(SECOND, Some(copy));
        assert_eq!(watch.look(&away, SECOND), HandoverVerdict::GoOn);
        assert_eq!(
            watch.look(&status(0, None), 2 * SECOND),
            HandoverVerdict::Ready(FIXED)
        );
        let late = watch.look(&away, 13 * SECOND);
        assert!(matches!(late, HandoverVerdict::Hopeless(why) if why.contains("is away")));
    }

    #[test]
    fn an_estimate_that_only_wavers_gets_no_better() {
        let mut watch = HandoverProgress::new(SECOND, None);
        let mut look =
            |bytes, seconds| watch.look(&status(bytes, Some(100)), Duration::from_secs(seconds));
        assert_eq!(look(1000, 0), HandoverVerdict::GoOn);
        assert_eq!(look(999, 5), HandoverVerdict::GoOn);
        let late = look(998, 11);
        assert!(matches!(late, HandoverVerdict::TooLong(_)), "{late:?}");
    }

    #[test]
    fn a_peer_that_gets_nothing_is_told_after_a_while() {
        let mut watch = HandoverProgress::new(SECOND, None);
        let stuck = status(900, None);
        assert_eq!(watch.look(&stuck, SECOND), HandoverVerdict::GoOn);
        let late = watch.look(&stuck, 12 * SECOND);
        assert!(matches!(late, HandoverVerdict::Hopeless(_)), "{late:?}");
    }
}
