//! The session thread's part in healing: marks for what peers turn out to miss, and
//! their removal once they miss nothing.
//!
//! Copying is the healer's ([`crate::image::heal`]).

use std::ops::Range;
use std::time::Duration;

use crate::image::dirty_map::{MapError, Peer, Peers};
use crate::image::error_chain::chain;
use crate::image::heal::Unmarked;
use crate::image::local::{CopyWatch, Durability};
use crate::image::replica::brick_port::{CopyState, accused};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::missed_writes::MissedWrites;
use crate::image::replica::unmarking::Absent;
use crate::image::replica::{data_lock, unmarking};
use crate::image::session::state_machine::{Event, Phase};

use super::{Runner, syncing};

/// How long the guest's writes may take to land when every brick is lost.
const LANDING_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked whether they did.
const LANDING_PAUSE: Duration = Duration::from_millis(5);

impl Runner {
    /// What reachable peers miss must have this session's marks before it is healed.
    /// Of those that are away the marks that stand are enough; there are none where only
    /// what was in flight in a killed daemon may have landed.
    pub(super) fn mark_debt(&mut self) {
        let Some(debt) = &self.debt else { return };
        let held = self.machine.held();
        let stamp = debt.current_stamp();
        let stand = {
            let snapshot = self.snapshot.lock().unwrap_or_else(|e| e.into_inner());
            let mark = |brick: usize, peer: usize| -> Option<i32> {
                let marks = snapshot.copies.get(brick)?.pending.as_deref()?;
                marks.get(peer).copied()
            };
            let stamped = |peer| stamp != 0 && held.iter().all(|b| mark(b, peer) == Some(stamp));
            let marked = |peer| {
                held.iter()
                    .any(|b| mark(b, peer).is_some_and(|count| count != 0))
            };
            let stands = |&peer: &usize| match held.contains(peer) {
                true => stamped(peer),
                false => marked(peer),
            };
            self.shape
                .peers()
                .iter()
                .filter(stands)
                .collect::<BrickSet>()
        };
        let unmarked = |peer| !stand.contains(peer);
        if debt.behind().iter().any(unmarked) && self.machine.phase() == &Phase::Unmarked {
            self.take(Event::WriteWanted);
        }
    }

    /// A stock heal that got most bricks while they were lost to us waits for those that
    /// we hold, and we for those that it has. It begins anew later, and finds all locked.
    pub(super) fn turn_heals_away(&mut self) {
        let held = self.machine.held();
        let ask = |brick: usize| {
            let worker = self.workers.get(brick)?;
            Some((brick, worker.ask(|port| port.turn_heals_away())))
        };
        let asked: Vec<_> = held.iter().filter_map(ask).collect();
        for (brick, answer) in asked {
            match data_lock::wait(answer) {
                Ok(false) => {}
                Ok(true) => log::info!(
                    "a heal of Gluster's own that waited for {} is turned away",
                    self.names.one(brick)
                ),
                Err(error) => log::warn!("brick {}: {error}", self.names.one(brick)),
            }
        }
    }

    /// A peer whose file has another size came back as another one than it went, as
    /// after a replaced disk.
    pub(super) fn check_size(&mut self, brick: usize, copy: &CopyState) {
        let Some(debt) = &mut self.debt else { return };
        let size = debt.map().geometry().size();
        let peer = self.shape.peers().iter().position(|peer| peer == brick);
        let Some(peer) = peer.and_then(Peer::new).filter(|_| copy.size != size) else {
            return;
        };
        // Away when the image grew: all that it lacks is noted.
        let lacks = size.saturating_sub(copy.size);
        if copy.size < size && debt.map().is_all_dirty(peer, copy.size, lacks) {
            return;
        }
        log::warn!(
            "the copy on {} has {} bytes instead of {size}: all of it is compared",
            self.names.one(brick),
            copy.size
        );
        if let Err(error) = debt.distrust(peer.into()) {
            log::error!("{}", chain(&error));
        }
    }

    /// Nothing is equal to a copy of another size, whatever the map says.
    fn check_sizes(&mut self, round: &data_lock::Round) -> Result<(), String> {
        let debt = self.debt.as_ref().ok_or("the session is read-only")?;
        let size = debt.map().geometry().size();
        let odd = |(brick, copy): &&(usize, CopyState)| {
            self.shape.peers().contains(*brick) && copy.size != size
        };
        match round.copies.iter().find(odd) {
            None => Ok(()),
            Some((brick, copy)) => {
                self.check_size(*brick, copy);
                Err(format!(
                    "the copy on {} has {} bytes instead of {size}",
                    self.names.one(*brick),
                    copy.size
                ))
            }
        }
    }

    /// Removes the marks against every peer that misses nothing, if none that is held
    /// misses anything but those in `despite`.
    pub(super) fn unmark(&mut self, despite: BrickSet) -> Unmarked {
        match self.try_unmark(despite) {
            Ok(unmarked) => unmarked,
            Err(why) => Unmarked::NotYet { why },
        }
    }

    fn try_unmark(&mut self, despite: BrickSet) -> Result<Unmarked, String> {
        self.machine.may_unmark().map_err(|why| why.to_string())?;
        self.vouch()?;
        self.equal_peers(despite)?;
        if self.machine.phase() == &Phase::Unmarked {
            // Marks that an earlier removal left behind: they go from all bricks in the
            // right order, so they must stand on all of them first.
            self.take(Event::WriteWanted);
            self.machine.may_unmark().map_err(|why| why.to_string())?;
        }
        // Most of the flushing while the guest still writes.
        self.sync_local().map_err(|error| chain(&error))?;
        let mut round = unmarking::begin(&self.workers, self.machine.held());
        let foreign = self.note_marks(&round);
        let equal = match foreign {
            Ok(false) => self
                .check_sizes(&round)
                .and_then(|()| self.decide_unmark(&round, despite)),
            Ok(true) => Err("somebody else has marked a peer: all of it is compared".to_owned()),
            Err(ref why) => Err(why.clone()),
        };
        if let Ok(equal) = equal {
            self.set_times(&mut round);
            unmarking::remove(&self.shape, &self.workers, equal, &mut round);
        }
        round.end(&self.workers);
        let failed = !round.failed.is_empty();
        for (brick, error) in &round.failed {
            self.give_up(*brick, "removing marks", error);
        }
        self.note_copies(round.copies, round.unsure);
        let changed = equal.is_ok();
        self.take(Event::UnmarkOver { changed });
        if foreign == Ok(true) {
            self.take(Event::MarkAgain);
        }
        let equal = equal?;
        self.rebase(equal)?;
        if failed {
            return Err("a brick failed while marks were removed".to_owned());
        }
        Ok(self.unmarked(equal))
    }

    /// The children that a brick which is held accuses, or may accuse.
    pub(super) fn marked(&self) -> BrickSet {
        let unknown = |rows: &Vec<Option<BrickSet>>| rows.iter().any(Option::is_none);
        let rows = self.rows_held();
        if self.machine.phase() != &Phase::Unmarked || unknown(&rows) {
            return self.shape.all();
        }
        rows.into_iter()
            .flatten()
            .flat_map(|row| row.iter().collect::<Vec<_>>())
            .collect()
    }

    /// Whom each brick that is held accuses, as far as known.
    fn rows_held(&self) -> Vec<Option<BrickSet>> {
        let snapshot = self.snapshot.lock().unwrap_or_else(|e| e.into_inner());
        let row = |brick| snapshot.copies.get::<usize>(brick)?.pending.as_deref();
        let held = self.machine.held();
        held.iter().map(|brick| row(brick).map(accused)).collect()
    }

    /// Takes in what the bricks say. Has somebody else marked a peer?
    pub(super) fn note_marks(&mut self, round: &data_lock::Round) -> Result<bool, String> {
        let asked = round.busy.iter().chain(&round.failed);
        if let Some((brick, error)) = asked.into_iter().next() {
            return Err(format!("brick {}: {error}", self.names.one(*brick)));
        }
        let local = self.shape.local;
        let accuses = |(_, copy): &&(usize, CopyState)| copy.accuses().contains(local);
        if let Some(&(by, _)) = round.copies.iter().find(accuses) {
            self.take(Event::LocalAccused { by });
            return Err("a brick says that the local copy misses data".to_owned());
        }
        let debt = self.debt.as_mut().ok_or("the session is read-only")?;
        let unknown = debt.note(&round.copies).map_err(|error| chain(&error))?;
        Ok(!unknown.is_empty())
    }

    /// Closes the gate and names the children that miss nothing. The gate stays as
    /// it is when marks cannot be removed for another reason.
    fn decide_unmark(
        &mut self,
        round: &data_lock::Round,
        despite: BrickSet,
    ) -> Result<BrickSet, String> {
        self.take(Event::UnmarkBegun);
        let equal = self.equal_peers(despite)?;
        self.sync_local().map_err(|error| chain(&error))?;
        self.guest_syncs_over()?;
        let absent = self.absent_rows();
        let removable = unmarking::removable(&self.shape, equal, &round.copies, &absent);
        if removable.is_empty() {
            return Err(
                "a brick that is away may still accuse the peers that miss nothing, or theirs \
                 do not accuse the others"
                    .to_owned(),
            );
        }
        Ok(removable)
    }

    /// Whom the bricks that are away accuse.
    fn absent_rows(&self) -> Vec<(usize, Absent)> {
        let snapshot = self.snapshot.lock().unwrap_or_else(|e| e.into_inner());
        let absent = self.shape.all().without(self.machine.held());
        let debt = self.debt.as_ref();
        let not_reached = debt.map_or(Absent::Unknown, MissedWrites::not_reached);
        let marks = |brick: usize| snapshot.copies.get(brick)?.pending.as_deref();
        let row = |brick| match marks(brick) {
            Some(marks) => Absent::Read(accused(marks)),
            // A change of its marks was not answered.
            None if self.reached.contains(brick) => Absent::Unknown,
            None => not_reached,
        };
        absent.iter().map(|brick| (brick, row(brick))).collect()
    }

    /// The peers that miss nothing, if there are any and the healer has nothing to do
    /// for the others: they are away, or in `despite`. (It is not safer to wait for them.
    /// But a guest that writes on would have the marks back at once.)
    fn equal_peers(&self, despite: BrickSet) -> Result<BrickSet, String> {
        let debt = self.debt.as_ref().ok_or("the session is read-only")?;
        let held = self.machine.held();
        let behind = debt.behind();
        let waited_for = |&peer: &usize| held.contains(peer) && !despite.contains(peer);
        if let Some(peer) = behind.iter().find(waited_for) {
            return Err(format!("{} is being healed", self.names.one(peer)));
        }
        let equal = self.shape.peers().without(behind);
        if equal.is_empty() {
            return Err("every peer misses something".to_owned());
        }
        Ok(equal)
    }

    /// What was admitted before the gate was closed has to land first.
    pub(super) fn watch_local(&mut self) {
        self.note_unguarded(true);
        let end = self.threads.now() + LANDING_LIMIT;
        let in_flight = |debt: &MissedWrites| debt.map().extents_in_flight() > 0;
        while self.debt.as_ref().is_some_and(in_flight) && self.threads.now() < end {
            self.threads.sleep(LANDING_PAUSE);
        }
        if let Err(error) = self.local.rebase() {
            log::error!("{}", chain(&error));
        }
    }

    /// What is kept for the next session, should this one not come to mark again.
    pub(super) fn note_unguarded(&mut self, unguarded: bool) {
        let kept = self.debt.as_mut().map(|debt| debt.set_unguarded(unguarded));
        if let Some(Err(error)) = kept {
            log::error!("{}", chain(&error));
        }
    }

    /// A new beginning: what happens from now on is compared with now.
    fn rebase(&mut self, equal: BrickSet) -> Result<(), String> {
        if let Some(debt) = &mut self.debt {
            debt.settled(equal)
                .map_err(|error: MapError| chain(&error))?;
        }
        self.local.rebase().map_err(|error| chain(&error))
    }

    fn unmarked(&self, equal: BrickSet) -> Unmarked {
        let peers = self.shape.peers();
        if equal == peers {
            log::info!("all copies are equal: the marks are removed");
            return Unmarked::All;
        }
        log::info!("the marks against {} are removed", self.names.list(equal));
        Unmarked::Some {
            peers: peers.iter().map(|peer| equal.contains(peer)).collect(),
        }
    }

    /// Somebody compared the copies, and a peer's differs: it is marked, and then
    /// dirty.
    pub(super) fn repair(&mut self, peer: Peer, ranges: &[Range<u64>]) -> Result<(), String> {
        if self.machine.phase() == &Phase::Unmarked {
            self.take(Event::WriteWanted);
        }
        if self.machine.phase() != &Phase::Dirty {
            return Err("the marks cannot be stored now".to_owned());
        }
        let debt = self.debt.as_ref().ok_or("the session is read-only")?;
        for range in ranges {
            let length = range.end.saturating_sub(range.start);
            debt.map()
                .mark_dirty(Peers::from(peer), range.start, length);
        }
        Ok(())
    }
}

/// The stamp to mark with, after what the bricks say was taken in. What was read of the
/// local copy must also be what a power cut leaves of it: others are marked because of it.
pub(super) fn stamp_for(
    debt: &mut MissedWrites,
    local: &dyn CopyWatch,
    durability: &Durability,
    copies: &[(usize, CopyState)],
) -> Option<i32> {
    if let Err(error) = syncing::sync(durability, local) {
        log::error!("no marks are stored: {}", chain(&error));
        return None;
    }
    let stamp = debt.note(copies).and_then(|_| debt.stamp());
    stamp
        .inspect_err(|error| log::error!("{}", chain(error)))
        .ok()
}
