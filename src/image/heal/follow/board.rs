//! What the threads of a follower tell each other.
//!
//! The supervisor writes what the session said, the healers of the peers what they
//! did; each waits here for the other, or for a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::image::dirty_map::Peer;
use crate::image::heal::link::{HealState, Hint};
use crate::image::scheduler::Scheduler;

use super::idle::IdleTime;

/// Shared by the threads of one follower.
pub struct Board {
    state: Mutex<BoardState>,
    changed: Condvar,
    threads: Scheduler,
    /// Per peer.
    switches: Vec<Switches>,
}

/// What an engine looks at while it works.
#[derive(Clone, Default)]
pub struct Switches {
    /// Ends its pass.
    pub halt: Arc<AtomicBool>,
    /// Compare checksums first.
    pub compare_first: Arc<AtomicBool>,
}

#[derive(Default)]
struct BoardState {
    stop: bool,
    hint: Hint,
    idle: IdleTime,
    /// A report is due: something is dirty that the session is not known to have
    /// marked.
    urgent: bool,
    peers: Vec<PeerHealing>,
    /// Counts what the peers' healers are to know.
    orders: u64,
    /// Counts what the supervisor is to know.
    news: u64,
}

impl BoardState {
    /// Do marks against this peer stand, as the session last said?
    fn is_marked(&self, peer: Peer) -> bool {
        self.hint.marked || self.hint.stands.get(peer.index()) == Some(&true)
    }
}

/// What is known of one peer.
#[derive(Clone, Debug, Default)]
pub struct PeerHealing {
    /// What its healer does.
    pub state: HealState,
    /// Since when nothing has been dirty, each time that its healer looked.
    pub clean_since: Option<Duration>,
    /// Every write that was over by then has been sent.
    pub covered: Option<Duration>,
    /// Since when every attempt to copy to it has failed.
    pub failing_since: Option<Duration>,
    /// Bytes were on their way since this was last asked.
    copied: bool,
    /// Its marks were removed, and nothing has been dirty since.
    settled: bool,
    /// How often the session came back to it.
    returns: u64,
}

/// What the healer of one peer is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orders {
    /// End.
    pub stop: bool,
    /// The session has marks against it standing.
    pub marked: bool,
    /// The session holds the peer.
    pub held: bool,
    /// How often it came back to it.
    pub returns: u64,
    /// The session says when there is something to do again.
    pub at_rest: bool,
    number: u64,
}

impl Board {
    /// For this many peers; nothing is known of the session yet, so nothing is held.
    pub fn new(peers: usize, threads: Scheduler) -> Self {
        let state = BoardState {
            peers: vec![PeerHealing::default(); peers],
            ..BoardState::default()
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            threads,
            switches: (0..peers).map(|_| Switches::default()).collect(),
        }
    }

    /// The switches of a peer's engine.
    pub fn switches(&self, peer: Peer) -> Switches {
        self.switches.get(peer.index()).cloned().unwrap_or_default()
    }

    // The supervisor's side.

    /// Ends everything.
    pub fn stop(&self) {
        let mut state = self.state();
        state.stop = true;
        for switches in &self.switches {
            switches.halt.store(true, Ordering::Relaxed);
        }
        self.changed.notify_all();
    }

    /// Is everything to end?
    pub fn is_stopped(&self) -> bool {
        self.state().stop
    }

    /// What the session said.
    pub fn take_hint(&self, hint: Hint) {
        let mut state = self.state();
        let state = &mut *state;
        let now = self.threads.now();
        let waits = |peer: &PeerHealing| peer.clean_since.is_some() && !peer.settled;
        let overlooked = hint.removable && !state.peers.iter().any(waits);
        let mut marked_again = false;
        let of = |list: &[bool], peer: usize| list.get(peer).copied().unwrap_or(false);
        let peers = state.peers.iter_mut().zip(&self.switches).enumerate();
        for (index, (peer, switches)) in peers {
            let held = of(&hint.held, index);
            // All that is clean was unmarked, and yet a mark could go: it is back.
            if overlooked && peer.settled {
                (peer.settled, peer.clean_since) = (false, Some(now));
                marked_again = true;
            }
            peer.returns += u64::from(held && !of(&state.hint.held, index));
            switches.halt.store(!held || state.stop, Ordering::Relaxed);
            let suspect = of(&hint.suspect, index);
            switches.compare_first.store(suspect, Ordering::Relaxed);
        }
        if marked_again {
            state.idle.marked_again(now);
        }
        let told = |hint: &Hint| {
            let per_peer = (hint.stands.clone(), hint.held.clone());
            (hint.marked, hint.at_rest, per_peer)
        };
        if told(&hint) != told(&state.hint) {
            state.orders += 1;
            self.changed.notify_all();
        }
        state.hint = hint;
    }

    /// The peers' state.
    pub fn healing(&self) -> Vec<PeerHealing> {
        self.state().peers.clone()
    }

    /// Was anything on its way to any peer since the last time this was asked?
    pub fn take_copied(&self) -> bool {
        let mut copied = false;
        for peer in &mut self.state().peers {
            copied |= peer.copied;
            peer.copied = peer.state == HealState::Copying;
        }
        copied
    }

    /// Is there nothing to do for any peer, as far as the session and the healers know?
    pub fn is_at_rest(&self) -> bool {
        let state = self.state();
        let held = |index: usize| state.hint.held.get(index) == Some(&true);
        let mut peers = state.peers.iter().enumerate();
        let rests = |(index, peer): (usize, &PeerHealing)| match peer.state {
            HealState::Idle => peer.clean_since.is_some(),
            HealState::Copying => false,
            HealState::Waiting { .. } => !held(index),
        };
        state.hint.at_rest && peers.all(rests)
    }

    /// Can a mark go, as far as the session knows?
    pub fn is_removable(&self) -> bool {
        self.state().hint.removable
    }

    /// From when on it is worth asking to remove marks: a peer has marks, and was
    /// clean for the idle time by then.
    pub fn unmark_from(&self) -> Option<Duration> {
        let mut state = self.state();
        if !state.hint.marked && !state.hint.removable {
            return None;
        }
        let idle = state.idle.at(self.threads.now());
        let marked = state.peers.iter().filter(|peer| !peer.settled);
        let since = marked.filter_map(|peer| peer.clean_since).min();
        since.map(|since| since + idle)
    }

    /// The marks of these peers are gone (`None`: of all). `false`: that is no news.
    pub fn take_unmarked(&self, peers: Option<&[bool]>) -> bool {
        let mut state = self.state();
        let state = &mut *state;
        let (mut news, mut back) = (false, false);
        for (index, peer) in state.peers.iter_mut().enumerate() {
            let unmarked = peers.is_none_or(|peers| peers.get(index) == Some(&true));
            if unmarked && !peer.settled {
                // What is dirty by now has been marked again.
                peer.settled = peer.clean_since.is_some();
                back |= !peer.settled;
                news = true;
            }
        }
        let now = self.threads.now();
        if news {
            state.idle.unmarked(now);
        }
        if back {
            state.idle.marked_again(now);
        }
        news
    }

    /// Waits until `until`, or until a healer has news since `seen`, or for the end.
    /// Returns the number of the news, to be given next time, and whether the
    /// session should be asked at once.
    pub fn wait_for_news(&self, seen: u64, until: Duration) -> (u64, bool) {
        let mut state = self.wait(until, |state| state.news != seen);
        (state.news, std::mem::take(&mut state.urgent))
    }

    // The side of a peer's healer.

    /// What to do.
    pub fn orders(&self, peer: Peer) -> Orders {
        let state = self.state();
        let held = state.hint.held.get(peer.index());
        Orders {
            stop: state.stop,
            marked: state.is_marked(peer),
            held: held.copied().unwrap_or(false),
            returns: state.peers.get(peer.index()).map_or(0, |p| p.returns),
            at_rest: state.hint.at_rest,
            number: state.orders,
        }
    }

    /// Waits until `until`, or for other orders than these.
    pub fn wait_for_orders(&self, orders: &Orders, until: Duration) {
        drop(self.wait(until, |state| state.orders != orders.number));
    }

    /// What the healer does now.
    pub fn tell(&self, peer: Peer, healing: HealState) {
        self.change(peer, |peer| {
            peer.copied |= healing == HealState::Copying;
            peer.state = healing;
        });
    }

    /// Nothing was dirty at `now`.
    pub fn tell_clean(&self, peer: Peer, now: Duration) {
        let mut state = self.state();
        let Some(peer) = state.peers.get_mut(peer.index()) else {
            return;
        };
        peer.state = HealState::Idle;
        peer.failing_since = None;
        peer.covered = Some(now);
        if peer.clean_since.is_none() {
            peer.clean_since = Some(now);
            state.news += 1;
            self.changed.notify_all();
        }
    }

    /// Something was dirty at `now`.
    pub fn tell_dirty(&self, peer: Peer, now: Duration) {
        let mut state = self.state();
        let state = &mut *state;
        let marked = state.is_marked(peer);
        let Some(peer) = state.peers.get_mut(peer.index()) else {
            return;
        };
        peer.clean_since = None;
        if std::mem::take(&mut peer.settled) {
            state.idle.marked_again(now);
        }
        if !marked {
            state.urgent = true;
            state.news += 1;
            self.changed.notify_all();
        }
    }

    /// An attempt to copy began at `begin` and failed, not for the session's reasons; or
    /// one succeeded (`None`).
    pub fn tell_failing(&self, peer: Peer, begin: Option<Duration>) {
        self.change(peer, |peer| {
            peer.failing_since = begin.map(|begin| peer.failing_since.unwrap_or(begin));
        });
    }

    /// Every write that was over at `since` has been sent.
    pub fn tell_covered(&self, peer: Peer, since: Duration) {
        self.change(peer, |peer| peer.covered = Some(since));
    }

    fn change(&self, peer: Peer, change: impl FnOnce(&mut PeerHealing)) {
        if let Some(peer) = self.state().peers.get_mut(peer.index()) {
            change(peer);
        }
    }

    fn wait(
        &self,
        until: Duration,
        over: impl Fn(&BoardState) -> bool,
    ) -> MutexGuard<'_, BoardState> {
        let left = until.saturating_sub(self.threads.now());
        let over = |state: &BoardState| state.stop || over(state);
        self.threads.wait(&self.state, &self.changed, left, over)
    }

    /// Every change is a few assignments: a thread that panicked left none half done.
    fn state(&self) -> MutexGuard<'_, BoardState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "board/tests.rs"]
mod tests;
