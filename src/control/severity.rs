//! How bad the state of an image is: what puts the worst one first on the screen.
//!
//! A pure function over the status document. A new kind of trouble that the document can
//! tell is a new rule in [`judge`].

use super::copy_status::CopyStatus;
use super::heal::{PeerHeal, PeerState, WaitsFor};
use super::serving_status::OwnershipStatus;
use super::status::{Fate, State, Status};

/// How bad, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A guest has no disk, gets errors, or waits.
    GuestSuffers,
    /// Nobody knows what state it is in.
    Unknown,
    /// Its newest data is on one copy only, and nobody changes that.
    Unhealed,
    /// Its other copies are behind and follow.
    Following,
    /// One copy less protects it than could, or somebody should look at it.
    Weaker,
    /// Nothing is to be done.
    Well,
}

/// How bad, and why in a few words; none where there is nothing to say.
pub fn judge(status: &Status) -> (Severity, String) {
    let detail = || status.detail.clone().unwrap_or_default();
    match (&status.unserved, status.state) {
        (_, State::Stalled | State::Failed | State::Stopped | State::SplitBrain) => {
            return (Severity::GuestSuffers, detail());
        }
        (Some(unserved), _) => return (of_fate(unserved.daemon), detail()),
        (None, State::Unknown) if is_vacant(status) => {
            let why = "waits for its guest to come: no copy is held here";
            return (Severity::Well, why.to_owned());
        }
        (None, State::Unknown) => return (Severity::Unknown, detail()),
        (None, State::Clean | State::Dirty | State::Marking) => {}
    }
    let rules = [waiting, warned, unhealed, following, weaker, idle];
    let found = rules.iter().find_map(|rule| rule(status));
    found.unwrap_or((Severity::Well, String::new()))
}

fn of_fate(fate: Fate) -> Severity {
    match fate {
        Fate::Killed => Severity::GuestSuffers,
        Fate::Silent => Severity::Unknown,
        Fate::Ended => Severity::Unhealed,
    }
}

/// Served, and waiting for a guest that is at another host or not started yet.
fn is_vacant(status: &Status) -> bool {
    let ownership = status.serving.as_ref().map(|serving| serving.ownership);
    matches!(
        ownership,
        Some(OwnershipStatus::Vacant | OwnershipStatus::Opening)
    )
}

fn waiting(status: &Status) -> Option<(Severity, String)> {
    let serving = status.serving.as_ref()?;
    let trouble = serving.troubles().next();
    let waits = (serving.write_waiting).then(|| "a write of the guest waits for the marks".into());
    Some((Severity::GuestSuffers, trouble.or(waits)?))
}

/// What others did around it, which may cost it all when the daemon ends.
fn warned(status: &Status) -> Option<(Severity, String)> {
    let warning = status.warnings.first()?;
    Some((Severity::Unhealed, warning.clone()))
}

/// A copy that misses data, and nobody can do anything about it now.
fn unhealed(status: &Status) -> Option<(Severity, String)> {
    let Some(heal) = &status.heal else {
        let stale = status.copies.iter().find(|copy| copy.stale)?;
        return Some((Severity::Unhealed, format!("{} is behind", stale.brick)));
    };
    let waits = |peer: &&PeerHeal| peer.state == PeerState::Waiting;
    let peer = heal.peers.iter().find(waits)?;
    let why = match (peer.waits_for, &peer.why) {
        (Some(WaitsFor::Healer), _) => "NO healer: run bypass-blk heald".to_owned(),
        (Some(WaitsFor::Peer), Some(why)) => format!("{} is AWAY: {why}", peer.brick),
        (Some(WaitsFor::Peer), None) => format!("{} is AWAY", peer.brick),
        (_, Some(why)) => format!("{} waits: {why}", peer.brick),
        (_, None) => format!("{} waits", peer.brick),
    };
    Some((Severity::Unhealed, why))
}

fn following(status: &Status) -> Option<(Severity, String)> {
    let copying = |heal: &super::heal::HealStatus| {
        let mut peers = heal.peers.iter();
        peers.any(|peer| peer.state == PeerState::Copying)
    };
    match status.heal.as_ref().is_some_and(copying) {
        true => Some((Severity::Following, "its other copies follow".to_owned())),
        false if status.state != State::Clean => Some((Severity::Following, String::new())),
        false => None,
    }
}

fn weaker(status: &Status) -> Option<(Severity, String)> {
    let away: Vec<_> = away(&status.copies).collect();
    if let [first, rest @ ..] = away.as_slice() {
        let more = match rest.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        return Some((Severity::Weaker, format!("AWAY: {}{more}", first.brick)));
    }
    let verified = status.last_verified.as_ref();
    if verified.is_some_and(|found| found.differing_bytes > 0 && !found.repaired) {
        return Some((Severity::Weaker, "copies DIFFERED when verified".to_owned()));
    }
    let is_left = status.holder.is_none() && status.copies.iter().any(|copy| copy.fenced);
    is_left.then(|| {
        let why = "a fence is LEFT by a killed daemon: bypass-blk release";
        (Severity::Weaker, why.to_owned())
    })
}

fn idle(status: &Status) -> Option<(Severity, String)> {
    match &status.serving {
        Some(serving) if !serving.front_end => {
            Some((Severity::Well, "no front-end is connected".to_owned()))
        }
        _ => None,
    }
}

/// The copies whose bricks were not reached.
pub fn away(copies: &[CopyStatus]) -> impl Iterator<Item = &CopyStatus> {
    copies.iter().filter(|copy| !copy.reachable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::samples::{self, MIB, copying, healer, healing};
    use crate::control::status::Unserved;
    use crate::image::session::snapshot::Snapshot;
    use crate::image::session::state_machine::{Phase, StopReason};

    fn of(snapshot: &Snapshot) -> Severity {
        judge(&samples::report(snapshot)).0
    }

    fn unserved(daemon: Fate) -> Severity {
        let unserved = Unserved {
            daemon,
            pid: None,
            socket: None,
            settled: None,
        };
        let gfid = uuid::Uuid::nil();
        judge(&Status::unserved("v", "/i", gfid, unserved, String::new())).0
    }

    #[test]
    fn the_worse_it_is_for_the_guest_and_its_data_the_earlier_it_comes() {
        let mut stopped = samples::dirty(0, 0);
        stopped.phase = Phase::Stopped(StopReason::CopyAccused { by: 2 });
        let alone = samples::dirty(MIB, 0);
        let mut followed = samples::dirty(MIB, 0);
        healing(&mut followed).healer = Some(healer([copying(MIB), copying(0)]));
        let mut away = samples::clean();
        away.copies[1].locked = false;
        let order = [
            of(&stopped),
            unserved(Fate::Killed),
            unserved(Fate::Silent),
            unserved(Fate::Ended),
            of(&alone),
            of(&followed),
            of(&away),
            of(&samples::clean()),
        ];
        assert!(order.is_sorted(), "{order:?}");
        assert_eq!(order[1], Severity::GuestSuffers);
        assert_eq!(order[4], Severity::Unhealed);
        assert_eq!(order[7], Severity::Well);
    }

    #[test]
    fn a_write_that_waits_comes_before_all_that_nobody_waits_for() {
        let mut snapshot = samples::clean();
        snapshot.write_waiting = true;
        assert_eq!(of(&snapshot), Severity::GuestSuffers);
        let mut dead = samples::report(&samples::clean());
        dead.serving.as_mut().unwrap().queues[1].dead = Some("a bad descriptor".to_owned());
        let (severity, why) = judge(&dead);
        assert_eq!(severity, Severity::GuestSuffers);
        assert!(why.contains("a bad descriptor"), "{why}");
    }
}
