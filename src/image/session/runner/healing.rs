//! The session thread's part in healing: marks for what peers turn out to miss, and
//! their removal once they miss nothing.
//!
//! Copying is the healer's ([`crate::image::heal`]).

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use crate::image::dirty_map::{Peer, Peers};
use crate::image::error_chain::chain;
use crate::image::layout::FileIndex;
use crate::image::local::{CopyWatch, Durability};
use crate::image::replica::brick_port::{BrickPort, CopyState, accused};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::data_lock;
use crate::image::replica::missed_writes::MissedWrites;
use crate::image::session::state_machine::{Event, Phase};

use super::{Runner, syncing};

/// How long the guest's writes may take to land when every brick is lost.
const LANDING_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked whether they did.
const LANDING_PAUSE: Duration = Duration::from_millis(5);

/// The most files that are marked in a row, of those that nobody waits for: about a quarter of
/// a second.
const MARKED_AT_ONCE: usize = 32;

impl Runner {
    /// What reachable peers miss must have this session's marks before it is healed.
    /// Of those that are away the marks that stand are enough; there are none where only
    /// what was in flight in a killed daemon may have landed.
    pub(super) fn mark_debt(&mut self) {
        self.mark_debt_of_files(MARKED_AT_ONCE);
    }

    /// The same of `most` files at most; the next look goes on with the others. The guest's
    /// writes to files that are not marked yet wait meanwhile.
    pub(super) fn mark_debt_of_files(&mut self, most: usize) {
        let Some(debt) = &self.debt else { return };
        if !self.layout.is_whole() && debt.behind().is_empty() {
            return;
        }
        let unmarked = self
            .layout
            .files()
            .filter(|file| self.has_unmarked_debt(*file));
        let unmarked: Vec<_> = unmarked.take(most).collect();
        for file in unmarked {
            self.take(file, Event::WriteWanted);
        }
    }

    fn has_unmarked_debt(&self, file: FileIndex) -> bool {
        let Some(debt) = &self.debt else { return false };
        let held = self.held();
        let stamp = debt.current_stamp();
        let replica = self.file(file);
        let mark = |brick: usize, peer: usize| -> Option<i32> {
            let marks = replica.known.get(brick)?.as_deref()?;
            marks.get(peer).copied()
        };
        let stamped = |peer| stamp != 0 && held.iter().all(|b| mark(b, peer) == Some(stamp));
        let marked = |peer| {
            held.iter()
                .any(|b| mark(b, peer).is_some_and(|count| count != 0))
        };
        let unmarked = |peer: usize| match held.contains(peer) {
            true => !stamped(peer),
            false => !marked(peer),
        };
        self.phase(file) == &Phase::Unmarked && debt.behind_in(file).iter().any(unmarked)
    }

    /// A stock heal that got most bricks while they were lost to us waits for those that
    /// we hold, and we for those that it has. It begins anew later, and finds all locked.
    pub(super) fn turn_heals_away(&mut self) {
        let held = self.held();
        let is_guarded = |file: &FileIndex| !self.file(*file).guarded.is_empty();
        let guarded: Vec<_> = self.layout.files().filter(is_guarded).collect();
        let ask = |brick: usize| {
            let (worker, files) = (self.workers.get(brick)?, guarded.clone());
            let turn = move |port: &mut dyn BrickPort| {
                let mut any = false;
                for file in files {
                    port.select(file);
                    any |= port.turn_heals_away()?;
                }
                Ok(any)
            };
            Some((brick, worker.ask(turn)))
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
    /// A piece of an image is as long as it was written to: see [`Runner::level_sizes`].
    pub(super) fn check_size(&mut self, brick: usize, copy: &CopyState) {
        if !self.layout.is_whole() {
            return;
        }
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
        if let Err(error) = debt.distrust_all(peer.into()) {
            log::error!("{}", chain(&error));
        }
    }

    /// The children that a brick which is held accuses, or may accuse.
    pub(super) fn marked(&self) -> BrickSet {
        let files = self.layout.files();
        files
            .flat_map(|file| self.marked_in(file).iter().collect::<Vec<_>>())
            .collect()
    }

    pub(super) fn marked_in(&self, file: FileIndex) -> BrickSet {
        let unknown = |rows: &Vec<Option<BrickSet>>| rows.iter().any(Option::is_none);
        let rows = self.rows_held(file);
        if self.phase(file) != &Phase::Unmarked || unknown(&rows) {
            return self.shape.all();
        }
        rows.into_iter()
            .flatten()
            .flat_map(|row| row.iter().collect::<Vec<_>>())
            .collect()
    }

    /// Whom each brick that is held accuses, as far as known.
    fn rows_held(&self, file: FileIndex) -> Vec<Option<BrickSet>> {
        let row = |brick: usize| self.file(file).known.get(brick)?.as_deref();
        let held = self.held();
        held.iter().map(|brick| row(brick).map(accused)).collect()
    }

    /// Takes in what the bricks say. Has somebody else marked a peer?
    pub(super) fn note_marks(
        &mut self,
        file: FileIndex,
        round: &data_lock::Round,
    ) -> Result<bool, String> {
        let asked = round.busy.iter().chain(&round.failed);
        if let Some((brick, error)) = asked.into_iter().next() {
            return Err(format!("brick {}: {error}", self.names.one(*brick)));
        }
        let local = self.shape.local;
        let accuses = |(_, copy): &&(usize, CopyState)| copy.accuses().contains(local);
        if let Some(&(by, _)) = round.copies.iter().find(accuses) {
            self.take(file, Event::LocalAccused { by });
            return Err("a brick says that the local copy misses data".to_owned());
        }
        let debt = self.debt.as_mut().ok_or("the session is read-only")?;
        let unknown = debt
            .note(file, &round.copies)
            .map_err(|error| chain(&error))?;
        Ok(!unknown.is_empty())
    }

    /// What was admitted before the gate was closed has to land first.
    pub(super) fn watch_local(&mut self, file: FileIndex) {
        self.note_unguarded(true);
        let end = self.threads.now() + LANDING_LIMIT;
        let bytes = self.layout.range(file);
        let in_flight = |debt: &MissedWrites| debt.map().in_flight_in(bytes.clone());
        while self.debt.as_ref().is_some_and(in_flight) && self.threads.now() < end {
            self.threads.sleep(LANDING_PAUSE);
        }
        if let Err(error) = self.file_mut(file).local.rebase() {
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

    /// Somebody compared the copies, and a peer's differs: it is marked, and then
    /// dirty.
    pub(super) fn repair(&mut self, peer: Peer, ranges: &[Range<u64>]) -> Result<(), String> {
        let files: BTreeSet<_> = ranges
            .iter()
            .flat_map(|range| self.layout.cut(range.clone()))
            .map(|part| self.layout.place(part.start).0)
            .filter(|file| file.at() < self.layout.len())
            .collect();
        for file in files {
            if self.phase(file) == &Phase::Unmarked {
                self.take(file, Event::WriteWanted);
            }
            if self.phase(file) != &Phase::Dirty {
                return Err("the marks cannot be stored now".to_owned());
            }
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
    file: FileIndex,
    local: &dyn CopyWatch,
    durability: &Durability,
    copies: &[(usize, CopyState)],
) -> Option<i32> {
    if let Err(error) = syncing::sync(durability, local) {
        log::error!("no marks are stored: {}", chain(&error));
        return None;
    }
    let stamp = debt.note(file, copies).and_then(|_| debt.stamp());
    stamp
        .inspect_err(|error| log::error!("{}", chain(error)))
        .ok()
}
