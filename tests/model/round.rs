//! A session's rounds under AFR's data lock: marking (`marking.rs`, `Runner::conclude`)
//! and the removal of marks (`unmarking.rs`, `runner/healing.rs`).

use bypass_blk::image::bricks::{BrickSet, Shape};
use bypass_blk::image::machine::{Event, GateState, Machine, Phase};

use super::debt;
use super::rim::{Rim, unruled};
use super::setting::{Protection, Setting};
use super::world::{BRICKS, Conn, Round, Row};

impl Rim<'_> {
    /// A healer asks for the removal of marks: `Runner::try_unmark`, up to its data
    /// lock. Only if [`Rim::may_unmark`].
    pub fn want_unmark(&mut self) {
        let local = self.local();
        if let Some((session, at)) = self.with(local) {
            at.data_durable = at.data;
            session.round = Some(Round {
                asked: session.machine.held(),
                removed: Some(BrickSet::EMPTY),
                ..Round::default()
            });
        }
    }

    /// The round's first half: the bricks are asked for their counters, and what is
    /// to be done is decided.
    pub fn probe_for_round(&mut self) {
        let local = self.local();
        let rows: [Row; BRICKS] =
            std::array::from_fn(|brick| unruled(self.world, self.slot, brick, &local));
        let stored = self.world.rows();
        let blind = self.setting.lacks(Protection::MarksReadAgain);
        let Some(session) = self.session() else {
            return;
        };
        let Some(round) = &mut session.round else {
            return;
        };
        round.probed = true;
        let joined = |&brick: &usize| session.conns[brick] == Conn::Joined;
        let answered: BrickSet = round.asked.iter().filter(joined).collect();
        round.failed = round.asked.without(answered);
        for brick in answered.iter() {
            round.read[brick] = stored[brick];
        }
        let (failed, removal) = (round.failed, round.removed.is_some());
        let accuser = answered.iter().find(|&i| rows[i][local] != 0);
        if removal && !failed.is_empty() {
            return self.conclude_removal();
        }
        if let Some(by) = accuser.filter(|_| !blind) {
            return self.conclude(Some(by));
        }
        let rows: Vec<_> = answered.iter().map(|i| rows[i]).collect();
        let foreign = debt::note(self.setting, self.world, self.slot, &rows);
        match removal {
            true if foreign => self.conclude_removal(),
            true => self.begin_removal(answered),
            false => self.begin_marking(answered),
        }
    }

    fn begin_marking(&mut self, answered: BrickSet) {
        let shape = self.setting.shape(self.slot);
        let data = self.world.bricks[shape.local].data;
        let only_local = self.setting.lacks(Protection::MarksOnPeers);
        let compared = !self.setting.lacks(Protection::FileCompared);
        debt::stamp(self.world, self.slot);
        if !self.setting.lacks(Protection::ReadIsDurable) {
            self.world.bricks[shape.local].fsync();
        }
        let local_last = !self.setting.lacks(Protection::LocalMarkedLast);
        let Some(session) = self.session() else {
            return;
        };
        if compared && session.machine.phase() == &Phase::Marking && session.view != data {
            // The machine has no event for it yet; this one stops it, too.
            return self.conclude(Some(shape.local));
        }
        let Some(round) = &mut session.round else {
            return;
        };
        for brick in answered.iter() {
            if only_local && brick != shape.local {
                round.marked.insert(brick);
            } else {
                let last = local_last && brick == shape.local;
                round.stages[usize::from(last)].insert(brick);
            }
        }
        self.next_turn();
    }

    /// The gate is closed, and the peers that miss nothing are named. A write in flight is
    /// in the map, so there are none then.
    fn begin_removal(&mut self, answered: BrickSet) {
        let shape = self.setting.shape(self.slot);
        let setting = *self.setting;
        let equal = self.removable(answered);
        let Some((session, at)) = self.with(shape.local) else {
            return;
        };
        session.machine.step(Event::UnmarkBegun);
        if !setting.lacks(Protection::GateHeld) {
            session.gate = GateState::Hold;
        }
        at.data_durable = at.data;
        if let Some(round) = &mut session.round {
            round.removed = Some(equal);
            if !equal.is_empty() {
                round.stages = removal_stages(&setting, answered, &round.read);
                return self.next_turn();
            }
        }
        self.conclude_removal();
    }

    /// The peers against which marks may be removed.
    fn removable(&self, answered: BrickSet) -> BrickSet {
        let shape = self.setting.shape(self.slot);
        let rows = self.world.rows();
        let Some(map) = self.world.maps[self.slot] else {
            return BrickSet::EMPTY;
        };
        let believed = |&brick: &usize| rows[brick][brick] == 0;
        let mut absent = shape.all().without(answered).iter();
        if absent.any(|i| believed(&i)) && !self.setting.lacks(Protection::AbsentDisbelieved) {
            return BrickSet::EMPTY;
        }
        let clean: BrickSet = shape.peers().iter().filter(|&i| map.is_clean(i)).collect();
        let behind = shape.peers().without(clean);
        let accused =
            |peer: usize| answered.iter().any(|by| believed(&by) && rows[by][peer] != 0);
        let marked = |peer: usize| {
            let itself = answered.contains(peer) && rows[peer][peer] != 0;
            itself && behind.iter().all(|other| rows[peer][other] != 0)
        };
        let anyway = self.setting.lacks(Protection::RemovedWhereMarked);
        let removable = |&peer: &usize| anyway || marked(peer) || !accused(peer);
        clean.iter().filter(removable).collect()
    }

    /// XATTROP on one brick.
    pub fn store(&mut self, brick: usize) {
        let unsynced = self.setting.lacks(Protection::MarksDurable);
        let volatile = self.setting.lacks(Protection::RemovalDurable);
        let shape = self.setting.shape(self.slot);
        let stamp = self.world.maps[self.slot].map_or(0, |map| map.stamp);
        let overruled = self.world.overruled[self.slot];
        let Some((session, at)) = self.with(brick) else {
            return;
        };
        let joined = session.conns[brick] == Conn::Joined;
        if let Some(round) = &mut session.round {
            round.to_store.remove(brick);
            let read = round.read[brick];
            if !joined {
                round.failed.insert(brick);
                return self.next_turn();
            }
            for peer in shape.peers().iter() {
                at.stored[peer] += match round.removed {
                    None => stamp - read[peer],
                    Some(equal) if equal.contains(peer) => -read[peer],
                    Some(_) => 0,
                };
            }
            if overruled == Some((brick, read[shape.local])) {
                at.stored[shape.local] -= read[shape.local];
            }
            if round.removed == Some(shape.peers()) && brick == shape.local {
                at.witness = false;
            }
            let skipped = if round.removed.is_some() { volatile } else { unsynced };
            match skipped {
                true => round.marked.insert(brick),
                false => round.to_sync.insert(brick),
            }
        }
        self.next_turn();
    }

    /// FSYNC on one brick.
    pub fn sync(&mut self, brick: usize) {
        let Some((session, at)) = self.with(brick) else {
            return;
        };
        let joined = session.conns[brick] == Conn::Joined;
        if let Some(round) = &mut session.round {
            round.to_sync.remove(brick);
            match joined {
                true => {
                    at.fsync();
                    round.marked.insert(brick);
                }
                false => round.failed.insert(brick),
            }
        }
        self.next_turn();
    }

    /// The bricks of the next stage have their turn when those before are done with. A
    /// removal ends when one of them failed. Marking for a held gate goes on to the local
    /// brick only if that completes a quorum.
    fn next_turn(&mut self) {
        let shape = self.setting.shape(self.slot);
        let Some(session) = self.session() else {
            return;
        };
        let late = session.machine.phase() == &Phase::Dirty;
        let Some(round) = &mut session.round else {
            return;
        };
        while round.to_store.is_empty() && round.to_sync.is_empty() {
            let [next, last] = round.stages;
            let first = round.marked.is_empty() && round.failed.is_empty();
            let goes_on = match round.removed {
                Some(_) => round.failed.is_empty() && round.unlocked.is_empty(),
                None => late || first || completes(&shape, round.marked.without(round.unlocked)),
            };
            if round.stages == [BrickSet::EMPTY; 2] {
                return;
            }
            round.stages = [last, BrickSet::EMPTY];
            if goes_on {
                round.to_store = next;
            }
        }
    }

    /// The data locks are given back, which fails where one was lost.
    pub fn end_round(&mut self) {
        let Some(round) = self.session().and_then(|session| session.round.as_mut()) else {
            return;
        };
        round.failed = round.failed.iter().chain(round.unlocked.iter()).collect();
        match round.removed {
            Some(_) => self.conclude_removal(),
            None => self.conclude(None),
        }
    }

    /// `Runner::conclude`.
    fn conclude(&mut self, accused_by: Option<usize>) {
        let Some(round) = self.session().and_then(|session| session.round.take()) else {
            return;
        };
        for brick in round.failed.iter() {
            if let Some(session) = self.session() {
                session.machine.step(Event::Lost(brick));
            }
            self.lose(brick);
        }
        if let Some(by) = accused_by {
            return self.take(Event::LocalAccused { by });
        }
        if let Some(session) = self.session() {
            for brick in round.marked.iter() {
                session.machine.marked(brick);
            }
        }
        self.mark_local_file(round.marked.without(round.failed));
        self.take(Event::MarkRoundOver);
    }

    /// `Runner::mark_local_file`: past the brick's process, which is taken to be away.
    fn mark_local_file(&mut self, marked: BrickSet) {
        let shape = self.setting.shape(self.slot);
        let checked = !self.setting.lacks(Protection::LocalFileGuarded);
        let read = !self.setting.lacks(Protection::LocalFileRead);
        let Some((session, at)) = self.with(shape.local) else {
            return;
        };
        let late = session.machine.phase() == &Phase::Dirty;
        let useless = checked && !late && !shape.is_quorum(marked);
        if session.machine.held().contains(shape.local) || useless {
            return;
        }
        if read && at.stored[shape.local] != 0 {
            let by = shape.local;
            return self.take(Event::LocalAccused { by });
        }
        for peer in shape.peers().iter().filter(|&peer| at.stored[peer] == 0).collect::<BrickSet>().iter() {
            at.stored[peer] = 1;
        }
        at.fsync();
        session.machine.local_marked();
    }

    /// The second half of `Runner::try_unmark`.
    fn conclude_removal(&mut self) {
        let local = self.local();
        let data = self.world.bricks[local].data;
        let Some(round) = self.session().and_then(|session| session.round.take()) else {
            return;
        };
        for brick in round.failed.iter() {
            self.take(Event::Lost(brick));
            self.lose(brick);
        }
        let changed = round.removed.is_some_and(|equal| !equal.is_empty());
        if changed && let Some(session) = self.session() {
            session.view = data;
        }
        self.take(Event::UnmarkOver { changed });
    }
}

/// In which order marks are removed: what AFR believes goes before what it does not, so
/// that no old accusation that it believes outlives the accused one's own.
fn removal_stages(
    setting: &Setting,
    answered: BrickSet,
    rows: &[Row; BRICKS],
) -> [BrickSet; 2] {
    let stage = |brick: usize| match brick {
        _ if setting.lacks(Protection::BelievedUnmarkedFirst) => 0,
        _ if rows[brick][brick] == 0 => 0,
        _ => 1,
    };
    std::array::from_fn(|number| answered.iter().filter(|&i| stage(i) == number).collect())
}

/// Would the local brick make a quorum of these?
fn completes(shape: &Shape, marked: BrickSet) -> bool {
    shape.is_quorum(marked.iter().chain([shape.local]).collect())
}

/// May the removal of marks be asked for, and is there anything to remove?
pub fn may_unmark(machine: &Machine, shape: &Shape, clean: BrickSet, rows: &[Row]) -> bool {
    let standing = |peer: usize| machine.held().iter().any(|brick| rows[brick][peer] != 0);
    let removable = shape.peers().iter().any(|peer| clean.contains(peer) && standing(peer));
    machine.may_unmark().is_ok() && removable
}
