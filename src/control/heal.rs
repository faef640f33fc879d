//! The part of the status document that tells what the peers miss, since when, and
//! how the healing goes. Derived from what the session knows and its healer told;
//! `docs/status.md` describes every field.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::image::heal::{Figures, HealReport, HealState, PeerReport};
use crate::image::session::snapshot::{Behind, Healing};

use super::copy_status::CopyStatus;

/// The healing of one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealStatus {
    /// The healer at work, if there is one.
    pub healer: Option<HealerStatus>,
    /// Why a healer that would be at work is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healer_trouble: Option<String>,
    /// How finely it is noted what a copy misses, in bytes.
    pub extent_size: u64,
    /// The greatest of [`PeerHeal::oldest_unsent_seconds`]: how much of the newest
    /// data some copy may lack.
    pub oldest_unsent_seconds: f64,
    /// As [`PeerHeal::oldest_unsent_at_least`], of any peer.
    pub oldest_unsent_at_least: bool,
    /// Bytes per second sent, zeroed and compared for all peers; absent without a
    /// healer.
    pub rate: Option<u64>,
    /// Until all peers miss nothing; absent when not known.
    pub eta_seconds: Option<u64>,
    /// One per peer.
    pub peers: Vec<PeerHeal>,
}

/// A healer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealerStatus {
    /// Its process id.
    pub pid: u32,
    /// Its limit in bytes per second, for all peers together; absent: none.
    pub bandwidth: Option<u64>,
}

/// The healing of one peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerHeal {
    /// Its place in the document's copies.
    pub copy: usize,
    /// `host:/path` of its brick.
    pub brick: String,
    /// What is done for it.
    pub state: PeerState,
    /// What holds it up, if anything does.
    pub waits_for: Option<WaitsFor>,
    /// The same in words, where there is more to say.
    pub why: Option<String>,
    /// Bytes per second; absent without a healer.
    pub rate: Option<u64>,
    /// Until it misses nothing; absent when not known.
    pub eta_seconds: Option<u64>,
    /// No acknowledged write that it misses is older than this; 0: it misses none.
    pub oldest_unsent_seconds: f64,
    /// It missed data before the session began and nobody knows since when, so the
    /// age is that of the session, and the true one is greater.
    pub oldest_unsent_at_least: bool,
    /// The most bytes that it was seen to miss since it missed none: where a progress
    /// bar begins.
    pub most_behind_bytes: u64,
    /// What the healer did for it; absent without a healer.
    pub figures: Option<Figures>,
}

/// What is done for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// Nothing: it misses nothing, or not for longer than a moment.
    Idle,
    /// Its copy is brought up to date.
    Copying,
    /// It misses data, and nobody can do anything about it now.
    Waiting,
}

/// What holds up the healing of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitsFor {
    /// Its brick is away.
    Peer,
    /// No healer is at work for the image on this host.
    Healer,
    /// Something that the healer names, such as another client's lock.
    Obstacle,
    /// The healer goes as fast as its limit.
    Bandwidth,
    /// The guest writes no more slowly than the healer copies.
    Guest,
}

impl HealStatus {
    /// From what a session knows; `copies` in child order.
    pub fn of(healing: &Healing, copies: &[CopyStatus]) -> Self {
        let told = healing.healer.as_ref();
        let trouble = told.and_then(|report| report.trouble.clone());
        let healer = told.filter(|report| report.trouble.is_none());
        let mut peers: Vec<_> = healing
            .behind
            .iter()
            .enumerate()
            .filter_map(|(index, behind)| {
                Some(peer_heal(copies.get(behind.child)?, behind, healer, index))
            })
            .collect();
        let waits = |peer: &&mut PeerHeal| peer.waits_for == Some(WaitsFor::Healer);
        let waiting = peers.iter_mut().filter(waits);
        waiting.for_each(|peer| peer.why.clone_from(&trouble));
        let mut etas = peers.iter().map(|peer| peer.eta_seconds);
        let ages = peers.iter().map(|peer| peer.oldest_unsent_seconds);
        Self {
            healer: healer.map(|report| HealerStatus {
                pid: report.pid,
                bandwidth: (report.bandwidth != 0).then_some(report.bandwidth),
            }),
            healer_trouble: trouble,
            extent_size: healing.extent_size,
            oldest_unsent_seconds: ages.fold(0.0, f64::max),
            oldest_unsent_at_least: peers.iter().any(|peer| peer.oldest_unsent_at_least),
            rate: healer.map(all_rates),
            eta_seconds: etas.try_fold(0, |all: u64, one| Some(all.max(one?))),
            peers,
        }
    }
}

/// `index` is the peer's in the map, and so in the report.
fn peer_heal(
    copy: &CopyStatus,
    behind: &Behind,
    healer: Option<&HealReport>,
    index: usize,
) -> PeerHeal {
    let report = healer.and_then(|report| report.peers.get(index));
    let (state, waits_for, why) = judge(copy, behind, healer, report);
    let rate = report.map(|report| report.rate);
    let (age, at_least) = age(behind, report);
    PeerHeal {
        copy: behind.child,
        brick: copy.brick.clone(),
        state,
        waits_for,
        why,
        rate,
        eta_seconds: eta(behind, state, rate),
        oldest_unsent_seconds: age,
        oldest_unsent_at_least: at_least,
        most_behind_bytes: behind.lag.most,
        figures: report.map(|report| report.figures),
    }
}

/// What is done, what holds it up, and why.
fn judge(
    copy: &CopyStatus,
    behind: &Behind,
    healer: Option<&HealReport>,
    report: Option<&PeerReport>,
) -> (PeerState, Option<WaitsFor>, Option<String>) {
    let told = report.map(|report| &report.state);
    let waiting = |on, why| (PeerState::Waiting, Some(on), why);
    match told {
        _ if behind.bytes == 0 => (PeerState::Idle, None, None),
        Some(HealState::Copying) => (PeerState::Copying, brake(behind, healer), None),
        Some(HealState::Idle) if copy.reachable => (PeerState::Idle, None, None),
        Some(HealState::Waiting { why, .. }) if copy.reachable => {
            waiting(WaitsFor::Obstacle, Some(why.clone()))
        }
        None if healer.is_some() => (PeerState::Idle, None, None),
        None if copy.reachable => waiting(WaitsFor::Healer, None),
        _ => waiting(WaitsFor::Peer, copy.reason.clone()),
    }
}

/// What keeps a healer that copies from getting to the end.
fn brake(behind: &Behind, healer: Option<&HealReport>) -> Option<WaitsFor> {
    let at_limit = |report: &HealReport| {
        // A limit is kept on average and a rate is measured over a short time.
        let nearly = report.bandwidth / 10 * 9;
        report.bandwidth != 0 && all_rates(report) >= nearly
    };
    match healer {
        Some(report) if at_limit(report) => Some(WaitsFor::Bandwidth),
        _ if behind.lag.growing => Some(WaitsFor::Guest),
        _ => None,
    }
}

fn all_rates(report: &HealReport) -> u64 {
    let rates = report.peers.iter().map(|peer| peer.rate);
    rates.fold(0, u64::saturating_add)
}

fn eta(behind: &Behind, state: PeerState, rate: Option<u64>) -> Option<u64> {
    match (behind.bytes, state, rate) {
        (0, ..) => Some(0),
        (bytes, PeerState::Copying, Some(rate @ 1..)) if !behind.lag.growing => {
            Some(bytes.div_ceil(rate))
        }
        _ => None,
    }
}

/// The age of what is unsent in seconds, and whether the true one is greater.
fn age(behind: &Behind, report: Option<&PeerReport>) -> (f64, bool) {
    let lag = behind.lag;
    let (age, at_least) = match report.and_then(|report| report.sent_before) {
        _ if behind.bytes == 0 => return (0.0, false),
        Some(sent_before) if lag.inherited => (sent_before, false),
        Some(sent_before) => (sent_before.min(lag.since), false),
        None => (lag.since, lag.inherited),
    };
    // Only what misses nothing has the age 0.
    (
        age.max(Duration::from_millis(1)).as_millis() as f64 / 1000.0,
        at_least,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::samples::{MIB, copying, dirty, healer, healing, report, waiting};
    use crate::image::session::snapshot::Snapshot;

    fn heal(snapshot: &Snapshot) -> HealStatus {
        report(snapshot).heal.unwrap()
    }

    /// The first peer misses 64 MiB, and its healer says this.
    fn first_peer(told: PeerReport, change: impl FnOnce(&mut Snapshot)) -> PeerHeal {
        let mut snapshot = dirty(64 * MIB, 0);
        healing(&mut snapshot).healer = Some(healer([told, copying(0)]));
        change(&mut snapshot);
        heal(&snapshot).peers.swap_remove(0)
    }

    fn waits(peer: &PeerHeal) -> (PeerState, Option<WaitsFor>, Option<&str>) {
        (peer.state, peer.waits_for, peer.why.as_deref())
    }

    #[test]
    fn a_debt_without_a_healer_waits_for_one() {
        let peer = &heal(&dirty(64 * MIB, 0)).peers[0];
        let healer = (PeerState::Waiting, Some(WaitsFor::Healer), None);
        assert_eq!(waits(peer), healer);
        assert_eq!((peer.rate, peer.eta_seconds), (None, None));
    }

    #[test]
    fn a_healer_that_cannot_follow_is_none_and_says_why() {
        let mut snapshot = dirty(64 * MIB, 0);
        healing(&mut snapshot).healer = Some(HealReport {
            trouble: Some("no map".to_owned()),
            ..HealReport::default()
        });
        let all = heal(&snapshot);
        assert_eq!((all.healer, all.rate), (None, None));
        assert_eq!(all.healer_trouble.as_deref(), Some("no map"));
        let healer = (PeerState::Waiting, Some(WaitsFor::Healer), Some("no map"));
        assert_eq!(waits(&all.peers[0]), healer);
    }

    #[test]
    fn a_debt_of_a_peer_that_is_away_waits_for_it_with_or_without_a_healer() {
        let away = |snapshot: &mut Snapshot| {
            snapshot.copies[1].locked = false;
            snapshot.copies[1].why_away = Some("gone".to_owned());
        };
        let peer = first_peer(waiting("no answer"), away);
        let brick = (PeerState::Waiting, Some(WaitsFor::Peer), Some("gone"));
        assert_eq!(waits(&peer), brick);
        let mut snapshot = dirty(64 * MIB, 0);
        away(&mut snapshot);
        assert_eq!(waits(&heal(&snapshot).peers[0]), brick);
    }

    #[test]
    fn what_else_a_healer_waits_for_is_told_in_its_words() {
        let peer = first_peer(waiting("a lock of another client"), |_| {});
        let lock = Some("a lock of another client");
        let told = (PeerState::Waiting, Some(WaitsFor::Obstacle), lock);
        assert_eq!(waits(&peer), told);
    }

    #[test]
    fn the_limit_holds_up_all_peers_together() {
        let mut snapshot = dirty(64 * MIB, 64 * MIB);
        let mut limited = healer([copying(MIB), copying(MIB)]);
        limited.bandwidth = 2 * MIB;
        healing(&mut snapshot).healer = Some(limited.clone());
        let at_limit = heal(&snapshot);
        for peer in &at_limit.peers {
            assert_eq!(peer.waits_for, Some(WaitsFor::Bandwidth));
        }
        limited.bandwidth = 4 * MIB;
        healing(&mut snapshot).healer = Some(limited);
        assert_eq!(heal(&snapshot).peers[0].waits_for, None);
    }

    #[test]
    fn a_guest_that_writes_as_fast_as_the_healer_copies_leaves_the_end_open() {
        let peer = first_peer(copying(MIB), |snapshot| {
            healing(snapshot).behind[0].lag.growing = true;
        });
        assert_eq!(peer.state, PeerState::Copying);
        let guest = Some(WaitsFor::Guest);
        assert_eq!((peer.waits_for, peer.eta_seconds), (guest, None));
    }

    #[test]
    fn the_end_is_known_from_the_rate_and_is_that_of_the_slowest_peer() {
        let mut snapshot = dirty(64 * MIB, 90 * MIB + 1);
        healing(&mut snapshot).healer = Some(healer([copying(MIB), copying(MIB)]));
        let all = heal(&snapshot);
        let etas: Vec<_> = all.peers.iter().map(|peer| peer.eta_seconds).collect();
        assert_eq!(etas, [Some(64), Some(91)]);
        assert_eq!((all.eta_seconds, all.rate), (Some(91), Some(2 * MIB)));
        healing(&mut snapshot).healer = Some(healer([copying(MIB), waiting("x")]));
        assert_eq!(heal(&snapshot).eta_seconds, None);
    }

    #[test]
    fn nothing_unsent_has_no_age_and_anything_unsent_has_one() {
        let all = heal(&dirty(0, 0));
        assert_eq!((all.oldest_unsent_seconds, all.eta_seconds), (0.0, Some(0)));
        let told = PeerReport {
            sent_before: Some(Duration::ZERO),
            ..copying(1)
        };
        assert!(first_peer(told, |_| {}).oldest_unsent_seconds > 0.0);
    }

    #[test]
    fn the_age_is_the_least_that_is_known_for_certain() {
        let age = |sent_before: Option<u64>, inherited| {
            let told = PeerReport {
                sent_before: sent_before.map(Duration::from_secs),
                ..copying(1)
            };
            let peer = first_peer(told, |snapshot| {
                healing(snapshot).behind[0].lag.inherited = inherited;
            });
            (peer.oldest_unsent_seconds, peer.oldest_unsent_at_least)
        };
        // It was clean, or the session began, 12 seconds ago.
        assert_eq!(age(None, false), (12.0, false));
        assert_eq!(age(Some(3), false), (3.0, false));
        assert_eq!(age(Some(30), false), (12.0, false));
        assert_eq!(age(None, true), (12.0, true));
        assert_eq!(age(Some(30), true), (30.0, false));
    }

    #[test]
    fn a_healer_that_has_not_told_of_a_peer_yet_is_no_absent_one() {
        let mut snapshot = dirty(64 * MIB, 0);
        let starting = HealReport::default();
        healing(&mut snapshot).healer = Some(starting);
        let all = heal(&snapshot);
        assert!(all.healer.is_some());
        assert_eq!(all.peers[0].state, PeerState::Idle);
    }
}
