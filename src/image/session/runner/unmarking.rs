//! The session thread's part in removing marks: which file's, of which peers, and that all of
//! what the guest was told is safe is so before.

use crate::image::dirty_map::MapError;
use crate::image::error_chain::chain;
use crate::image::heal::Unmarked;
use crate::image::layout::FileIndex;
use crate::image::replica::brick_port::{BrickPort, CopyState, accused};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::unmarking::Absent;
use crate::image::replica::{data_lock, unmarking};
use crate::image::session::state_machine::{Event, Phase};

use super::Runner;

impl Runner {
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

    /// Pieces are sparse at their end: of one that was written with zeros, or not to its end,
    /// the peers' files may be shorter or longer, with zeros behind. Stock Gluster takes
    /// another size for data that is missed, so the peers' get that of the local one.
    fn level_sizes(
        &self,
        file: FileIndex,
        equal: BrickSet,
        round: &mut data_lock::Round,
    ) -> Result<(), String> {
        let size_of = |brick: usize, round: &data_lock::Round| {
            let mut copies = round.copies.iter();
            let found = copies.find(|(copy, _)| *copy == brick);
            found.map(|(_, copy)| copy.size)
        };
        let local = size_of(self.shape.local, round).ok_or("the local brick did not answer")?;
        let team = self.team(file);
        for peer in equal.iter() {
            if size_of(peer, round).is_none_or(|size| size == local) {
                continue;
            }
            let Some(worker) = team.get(peer) else {
                continue;
            };
            let level = move |port: &mut dyn BrickPort| {
                port.truncate(local)?;
                port.fsync()
            };
            if let Err(error) = data_lock::wait(worker.ask(level)) {
                let why = error.to_string();
                round.fail_change(peer, error);
                return Err(why);
            }
        }
        Ok(())
    }

    /// Removes the marks against every peer that misses nothing, if none that is held
    /// misses anything but those in `despite`.
    pub(super) fn unmark(&mut self, despite: BrickSet) -> Unmarked {
        if self.layout.is_whole() {
            return self.unmark_file(FileIndex::BASE, despite);
        }
        self.renew_times();
        let mut all = Unmarked::All;
        for file in self.layout.files() {
            if !self.file(file).is_hot() && !self.file(file).has_marks() {
                continue;
            }
            all = match (all, self.unmark_file(file, despite)) {
                (Unmarked::NotYet { why }, _) => Unmarked::NotYet { why },
                (_, Unmarked::NotYet { why }) => Unmarked::NotYet {
                    why: format!("{}: {why}", self.names_file(file)),
                },
                (all, Unmarked::All) => all,
                (Unmarked::All, some) => some,
                (Unmarked::Some { peers: all }, Unmarked::Some { peers }) => Unmarked::Some {
                    peers: all.iter().zip(peers).map(|(a, b)| *a && b).collect(),
                },
            };
        }
        all
    }

    /// The same for one file.
    pub(super) fn unmark_file(&mut self, file: FileIndex, despite: BrickSet) -> Unmarked {
        let unmarked = match self.try_unmark(file, despite) {
            Ok(unmarked) => unmarked,
            Err(why) => Unmarked::NotYet { why },
        };
        let replica = self.file(file);
        if replica.machine.phase() == &Phase::Unmarked && !replica.has_marks() {
            self.unguard(file);
        }
        unmarked
    }

    fn try_unmark(&mut self, file: FileIndex, despite: BrickSet) -> Result<Unmarked, String> {
        self.may_unmark(file)?;
        self.vouch()?;
        self.equal_peers(file, despite)?;
        if self.phase(file) == &Phase::Unmarked {
            // Marks that an earlier removal left behind: they go from all bricks in the
            // right order, so they must stand on all of them first.
            self.take(file, Event::WriteWanted);
            self.may_unmark(file)?;
        }
        // Most of the flushing while the guest still writes.
        self.sync_local(file).map_err(|error| chain(&error))?;
        let mut round = unmarking::begin(self.team(file), self.held());
        let foreign = self.note_marks(file, &round);
        let mut equal = match foreign {
            Ok(false) => self.decide_if_sized(file, &round, despite),
            Ok(true) => Err("somebody else has marked a peer: all of it is compared".to_owned()),
            Err(ref why) => Err(why.clone()),
        };
        if let Ok(peers) = equal {
            equal = self.remove(file, peers, &mut round).map(|()| peers);
        }
        round.end(self.team(file));
        let failed = !round.failed.is_empty();
        for (brick, error) in &round.failed {
            self.give_up(*brick, "removing marks", error);
        }
        self.note_copies(file, round.copies, round.unsure);
        let changed = equal.is_ok();
        self.take(file, Event::UnmarkOver { changed });
        if foreign == Ok(true) {
            self.take(file, Event::MarkAgain);
        }
        let equal = equal?;
        self.rebase(file, equal)?;
        if failed {
            return Err("a brick failed while marks were removed".to_owned());
        }
        Ok(self.unmarked(file, equal))
    }

    fn may_unmark(&self, file: FileIndex) -> Result<(), String> {
        let may = self.file(file).machine.may_unmark();
        may.map_err(|why| why.to_string())
    }

    fn decide_if_sized(
        &mut self,
        file: FileIndex,
        round: &data_lock::Round,
        despite: BrickSet,
    ) -> Result<BrickSet, String> {
        if self.layout.is_whole() {
            self.check_sizes(round)?;
        }
        self.decide_unmark(file, round, despite)
    }

    fn remove(
        &mut self,
        file: FileIndex,
        equal: BrickSet,
        round: &mut data_lock::Round,
    ) -> Result<(), String> {
        match self.layout.is_whole() {
            true => self.set_times(round),
            false => self.level_sizes(file, equal, round)?,
        }
        unmarking::remove(&self.shape, self.team(file), equal, round);
        Ok(())
    }

    /// Closes the gate and names the children that miss nothing. The gate stays as
    /// it is when marks cannot be removed for another reason.
    fn decide_unmark(
        &mut self,
        file: FileIndex,
        round: &data_lock::Round,
        despite: BrickSet,
    ) -> Result<BrickSet, String> {
        self.take(file, Event::UnmarkBegun);
        let equal = self.equal_peers(file, despite)?;
        self.sync_local(file).map_err(|error| chain(&error))?;
        self.guest_syncs_over()?;
        let absent = self.absent_rows(file);
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
    fn absent_rows(&self, file: FileIndex) -> Vec<(usize, Absent)> {
        let absent = self.shape.all().without(self.held());
        let debt = self.debt.as_ref();
        let not_reached = debt.map_or(Absent::Unknown, |debt| debt.not_reached(file));
        let marks = |brick: usize| self.file(file).known.get(brick)?.as_deref();
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
    fn equal_peers(&self, file: FileIndex, despite: BrickSet) -> Result<BrickSet, String> {
        let debt = self.debt.as_ref().ok_or("the session is read-only")?;
        let held = self.held();
        let behind = debt.behind_in(file);
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

    /// A new beginning: what happens from now on is compared with now.
    fn rebase(&mut self, file: FileIndex, equal: BrickSet) -> Result<(), String> {
        if let Some(debt) = &mut self.debt {
            debt.settled(file, equal)
                .map_err(|error: MapError| chain(&error))?;
        }
        let rebased = self.file_mut(file).local.rebase();
        rebased.map_err(|error| chain(&error))
    }

    fn unmarked(&self, file: FileIndex, equal: BrickSet) -> Unmarked {
        let peers = self.shape.peers();
        let level = match self.layout.is_whole() {
            true => log::Level::Info,
            false => log::Level::Debug,
        };
        let name = self.names_file(file);
        if equal == peers {
            log::log!(level, "{name}: all copies are equal: the marks are removed");
            return Unmarked::All;
        }
        let equal_names = self.names.list(equal);
        log::log!(level, "{name}: the marks against {equal_names} are removed");
        Unmarked::Some {
            peers: peers.iter().map(|peer| equal.contains(peer)).collect(),
        }
    }
}
