//! A session's rounds: marking and unmarking of a file, each with the file's heal lock.

use bypass_blk::image::replica::brick_set::BrickSet;
use bypass_blk::image::replica::unmarking::{Absent, removable};
use bypass_blk::image::session::state_machine::{Event, Phase};

use super::rim::{Rim, copy_state};
use super::steps::{Protection, Setting};
use super::world::*;

impl Rim<'_> {
    /// A round of marking; or the peer's part of it alone, after which the daemon is killed.
    pub fn mark(&mut self, file: usize, bricks: BrickSet, cut_short: bool) {
        let (slot, peer) = (self.slot, self.peer());
        let answered = self.joined(bricks);
        self.guard(file, answered);
        let rows = self.world.rows(file);
        let data = self.world.bricks[slot].files[file].data;
        let Some(state) = self.file(file) else { return };
        let over = state.machine.overruled();
        let known = shape(slot).is_quorum(answered.without(over));
        let accuses = |&brick: &usize| rows[brick][slot] != 0 && !(known && over.contains(brick));
        let accuser = answered.iter().find(accuses);
        let changed = state.machine.compares_local(answered) && state.view != data;
        let mut marked = state.machine.marked_bricks();
        let mut stored = BrickSet::EMPTY;
        if accuser.is_none() && changed {
            return self.take(file, Event::LocalChanged);
        }
        if accuser.is_none() {
            let stamp = self.note_and_stamp(file, answered);
            let to = if self.lacks(Protection::MarksOfEach) {
                0
            } else {
                file
            };
            for brick in [peer, slot].into_iter().filter(|&b| answered.contains(b)) {
                marked.insert(slot);
                let of_use = brick == peer || shape(slot).is_quorum(marked) && !cut_short;
                if of_use {
                    let row = &mut self.world.bricks[brick].files[to].row;
                    (row[peer], row[slot]) = (stamp, 0);
                    stored.insert(brick);
                    marked.insert(brick);
                }
            }
        }
        if cut_short {
            return self.world.daemon_gone(slot);
        }
        for brick in bricks.without(answered).iter() {
            self.give_up(brick);
        }
        if let Some(by) = accuser {
            return self.take(file, Event::LocalAccused { by });
        }
        if let Some(state) = self.file(file) {
            stored.iter().for_each(|brick| state.machine.marked(brick));
        }
        self.mark_local_file(file);
        self.take(file, Event::MarkRoundOver);
    }

    /// `MissedWrites::note` and `MissedWrites::stamp`.
    fn note_and_stamp(&mut self, file: usize, answered: BrickSet) -> i16 {
        let fresh = self.world.fresh_stamp();
        self.note(file, answered);
        match &mut self.world.maps[self.slot] {
            Some(map) if map.stamp == 0 => {
                map.stamp = fresh;
                fresh
            }
            map => map.map_or(0, |map| map.stamp),
        }
    }

    /// Has somebody else marked the peer? Then all of the file is dirty.
    fn note(&mut self, file: usize, answered: BrickSet) -> bool {
        let (peer, rows) = (self.peer(), self.world.rows(file));
        let blind = self.lacks(Protection::ForeignMarksOfEach) && file != 0;
        let Some(map) = &mut self.world.maps[self.slot] else {
            return false;
        };
        let foreign = |brick: usize| rows[brick][peer] != 0 && !map.explains(rows[brick][peer]);
        let foreign = !blind && answered.iter().any(foreign);
        map.dirty[file] |= foreign;
        foreign
    }

    /// The local brick's process is away, and the others are a quorum.
    fn mark_local_file(&mut self, file: usize) {
        let (slot, peer) = (self.slot, self.peer());
        let away = !self.held().contains(slot);
        let stamp = self.world.maps[slot].map_or(0, |map| map.stamp);
        let Some(state) = self.world.sessions[slot].as_mut() else {
            return;
        };
        let machine = &mut state.files[file].machine;
        if !away || !shape(slot).is_quorum(machine.marked_bricks()) {
            return;
        }
        let row = &mut self.world.bricks[slot].files[file].row;
        if row[slot] != 0 {
            return self.take(file, Event::LocalAccused { by: slot });
        }
        if row[peer] == 0 {
            row[peer] = stamp;
        }
        machine.local_marked();
    }

    /// `Runner::guard`, where no heal is under way.
    fn guard(&mut self, file: usize, bricks: BrickSet) {
        let unlocked = self.lacks(Protection::GuardOfEach) && file != 0;
        let Some(state) = self.file(file) else { return };
        state.wants_guard = true;
        bricks.iter().for_each(|brick| state.guarded.insert(brick));
        self.lock_heals(file, bricks, !unlocked);
    }

    fn lock_heals(&mut self, file: usize, bricks: BrickSet, locked: bool) {
        for brick in bricks.iter() {
            if let Some(lease) = &mut self.world.bricks[brick].lease {
                lease.guards[file] = locked;
            }
        }
    }

    pub fn unguard(&mut self, file: usize) {
        if file == 0 {
            return;
        }
        let Some(state) = self.file(file) else { return };
        state.wants_guard = false;
        let guarded = std::mem::take(&mut state.guarded);
        let joined = self.joined(guarded);
        self.lock_heals(file, joined, false);
    }

    /// Removes the marks of a file; or those on the local brick alone, after which the daemon is
    /// killed.
    pub fn unmark(&mut self, file: usize, cut_short: bool) {
        let (slot, peer) = (self.slot, self.peer());
        let held = self.held();
        let answered = self.joined(held);
        let rows = self.world.rows(file);
        if answered != held {
            return held.without(answered).iter().for_each(|b| self.give_up(b));
        }
        if let Some(by) = answered.iter().find(|&brick| rows[brick][slot] != 0) {
            return self.take(file, Event::LocalAccused { by });
        }
        if self.note(file, answered) {
            return self.take(file, Event::MarkAgain);
        }
        let copies: Vec<_> = answered
            .iter()
            .map(|brick| (brick, copy_state(&rows[brick])))
            .collect();
        let absent = shape(slot).all().without(answered);
        let absent: Vec<_> = absent
            .iter()
            .map(|brick| (brick, Absent::Unknown))
            .collect();
        let equal = removable(&shape(slot), BrickSet::only(peer), &copies, &absent);
        let changed = !equal.is_empty();
        self.take(file, Event::UnmarkBegun);
        let last = if cut_short { 1 } else { 2 };
        for brick in [slot, peer].into_iter().take(last).filter(|_| changed) {
            self.world.bricks[brick].files[file].row[peer] = 0;
        }
        if cut_short {
            return self.world.daemon_gone(slot);
        }
        let data = self.world.bricks[slot].files[file].data;
        if let Some(state) = self.file(file).filter(|_| changed) {
            state.view = data;
        }
        self.take(file, Event::UnmarkOver { changed });
        if changed {
            self.unguard(file);
        }
    }

    /// `Session::close`: what can go does, file by file.
    pub fn close(&mut self) {
        for file in 0..FILES {
            if may_unmark(self.setting, self.world, self.slot, file) {
                self.unmark(file, false);
            }
        }
        if let Some(map) = &mut self.world.maps[self.slot] {
            map.clean_close = true;
        }
        self.world.daemon_gone(self.slot);
    }
}

/// May marks of a file be removed? Its peer misses nothing of it; of others it may.
pub fn may_unmark(setting: &Setting, world: &World, slot: usize, file: usize) -> bool {
    let (Some(session), Some(map)) = (&world.sessions[slot], &world.maps[slot]) else {
        return false;
    };
    let asked = match setting.lacks(Protection::DirtOfEach) {
        true => 0,
        false => file,
    };
    let machine = &session.files[file].machine;
    let all = machine.held() == BrickSet::first(BRICKS);
    let dirty = map.dirty[asked];
    machine.phase() == &Phase::Dirty && machine.may_unmark().is_ok() && all && !dirty
}
