//! A session's rounds under AFR's data lock: marking (`marking.rs`, `Runner::conclude`)
//! and the removal of marks (`unmarking.rs`, `runner/healing.rs`).

use bypass_blk::image::replica::brick_set::{BrickSet, Shape};
use bypass_blk::image::replica::unmarking::{Absent, removable};
use bypass_blk::image::session::state_machine::{Action, Event, Phase};

use super::daemon::{Conn, Round, Session};
use super::debt::{self, copy_state};
use super::rim::Rim;
use super::setting::{Protection, Setting};
use super::world::{BRICKS, Row, accused_by};

impl Rim<'_> {
    /// A healer asks for the removal of marks: `Runner::try_unmark`, up to its data
    /// lock. Only if [`may_unmark`].
    pub fn want_unmark(&mut self) {
        let local = self.local();
        let shape = self.setting.shape(self.slot);
        let map = self.world.maps[self.slot];
        let held = self.session().map(|session| session.machine.held());
        let behind = |&peer: &usize| map.is_some_and(|map| !map.is_clean(peer));
        let despite = held.is_some_and(|held| {
            let held = |&peer: &usize| held.contains(peer);
            shape.peers().iter().filter(held).any(|peer| behind(&peer))
        });
        if despite {
            self.world.stuck_left = self.world.stuck_left.saturating_sub(1);
        }
        if let Some((session, at)) = self.with(local) {
            at.data_durable = at.data;
            session.round = Some(Round {
                asked: session.machine.held(),
                removed: Some(BrickSet::EMPTY),
                despite,
                ..Round::default()
            });
        }
    }

    /// The round's first half: the bricks are asked for their counters, and what is
    /// to be done is decided.
    pub fn probe_for_round(&mut self) {
        let local = self.local();
        let asked = self.session().and_then(|session| session.round);
        for brick in asked.map(|round| round.asked).unwrap_or_default().iter() {
            self.take_overruled_off(brick);
        }
        let rows = self.world.rows();
        let shape = self.setting.shape(self.slot);
        let unasked = self.setting.lacks(Protection::OverruledByAnswer);
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
            round.read[brick] = rows[brick];
            session.known[brick] = Absent::Read(accused_by(&rows[brick]));
        }
        let (failed, removal) = (round.failed, round.removed.is_some());
        let over = session.machine.overruled();
        let known = shape.is_quorum(answered.without(over)) || unasked;
        let accuses = |&i: &usize| rows[i][local] != 0 && (removal || !known || !over.contains(i));
        let accuser = answered.iter().find(accuses);
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
        let blind = self.setting.lacks(Protection::AnswersCounted);
        debt::stamp(self.world, self.slot);
        if !self.setting.lacks(Protection::ReadIsDurable) {
            self.world.bricks[shape.local].fsync();
        }
        let local_last = !self.setting.lacks(Protection::LocalMarkedLast);
        let Some(session) = self.session() else {
            return;
        };
        let doubted = match blind {
            true => session.machine.watches_local(),
            false => session.machine.compares_local(answered),
        };
        if compared && doubted && session.view != data {
            session.round = None;
            return self.take(Event::LocalChanged);
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
        let rows = self.world.rows();
        let Some(map) = self.world.maps[self.slot] else {
            return;
        };
        let clean: BrickSet = shape.peers().iter().filter(|&i| map.is_clean(i)).collect();
        let Some((session, at)) = self.with(shape.local) else {
            return;
        };
        for action in session.machine.step(Event::UnmarkBegun) {
            if let Action::SetGate(gate) = action
                && !setting.lacks(Protection::GateHeld)
            {
                session.gate = gate;
            }
        }
        at.data_durable = at.data;
        let copy = |brick: usize| (brick, copy_state(&setting, &rows[brick]));
        let copies: Vec<_> = answered.iter().map(copy).collect();
        let absent = shape.all().without(answered);
        let absent: Vec<_> = absent.iter().map(|i| (i, session.known[i])).collect();
        let behind = shape.peers().without(clean);
        let waited_for = behind.iter().any(|i| answered.contains(i));
        let despite = session.round.is_some_and(|round| round.despite);
        let equal = match setting.lacks(Protection::RemovableOnly) {
            _ if waited_for && !despite => BrickSet::EMPTY,
            true => clean,
            false => removable(&shape, clean, &copies, &absent),
        };
        if let Some(round) = &mut session.round {
            round.removed = Some(equal);
            if !equal.is_empty() {
                round.stages = removal_stages(&setting, shape.local, answered, &round.read);
                return self.next_turn();
            }
        }
        self.conclude_removal();
    }

    /// XATTROP on one brick.
    pub fn store(&mut self, brick: usize) {
        let unsynced = self.setting.lacks(Protection::MarksDurable);
        let volatile = self.setting.lacks(Protection::RemovalDurable);
        let shape = self.setting.shape(self.slot);
        let stamp = self.world.maps[self.slot].map_or(0, |map| map.stamp);
        let Some((session, at)) = self.with(brick) else {
            return;
        };
        let joined = session.conns[brick] == Conn::Joined;
        if let Some(round) = &mut session.round {
            round.to_store.remove(brick);
            let read = round.read[brick];
            if !joined {
                round.failed.insert(brick);
                session.known[brick] = Absent::Unknown;
                return self.next_turn();
            }
            for peer in shape.peers().iter() {
                at.stored[peer] += match round.removed {
                    None => stamp - read[peer],
                    Some(equal) if equal.contains(peer) => -read[peer],
                    Some(_) => 0,
                };
            }
            if round.removed == Some(shape.peers()) && brick == shape.local {
                at.witness = false;
            }
            if round.removed.is_none() {
                at.stored[shape.local] -= read[shape.local];
            }
            let skipped = if round.removed.is_some() {
                volatile
            } else {
                unsynced
            };
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
                    session.known[brick] = Absent::Read(accused_by(&at.stored));
                }
                false => {
                    round.failed.insert(brick);
                    session.known[brick] = Absent::Unknown;
                }
            }
        }
        self.next_turn();
    }

    /// The bricks of the next stage have their turn when those before are done with. A
    /// removal ends when one of them failed. Marking for a held gate goes on to the local
    /// brick only if that completes a quorum.
    fn next_turn(&mut self) {
        let unordered = self.setting.lacks(Protection::LocalMarkedLast);
        let shape = self.setting.shape(self.slot);
        let Some(session) = self.session() else {
            return;
        };
        let already = session.machine.marked_bricks();
        let Some(round) = &mut session.round else {
            return;
        };
        while round.to_store.is_empty() && round.to_sync.is_empty() {
            let [next, last, after] = round.stages;
            if round.stages == [BrickSet::EMPTY; 3] {
                return;
            }
            round.stages = [last, after, BrickSet::EMPTY];
            let marked = round
                .marked
                .iter()
                .chain(already.iter())
                .chain([shape.local]);
            let goes_on = match round.removed {
                Some(_) => round.failed.is_empty(),
                None => !next.contains(shape.local) || shape.is_quorum(marked.collect()),
            };
            if goes_on || unordered {
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
        let ignored = self.setting.lacks(Protection::LossesCarriedOut);
        for brick in round.failed.iter() {
            match self.session() {
                Some(session) if ignored => drop(session.machine.step(Event::Lost(brick))),
                _ => self.take(Event::Lost(brick)),
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
        if self.mark_local_file() {
            return;
        }
        self.take(Event::MarkRoundOver);
    }

    /// `Runner::mark_local_file`: past the brick's process, which is taken to be away.
    /// Has the session stopped?
    fn mark_local_file(&mut self) -> bool {
        let shape = self.setting.shape(self.slot);
        let anyway = self.setting.lacks(Protection::LocalFileGuarded);
        let unread = self.setting.lacks(Protection::LocalFileRead);
        let stamp = self.world.maps[self.slot].map_or(0, |map| map.stamp);
        let Some((session, at)) = self.with(shape.local) else {
            return true;
        };
        let useful = anyway || shape.is_quorum(session.machine.marked_bricks());
        if session.machine.held().contains(shape.local) || !useful {
            return false;
        }
        if at.stored[shape.local] != 0 && !unread {
            let by = shape.local;
            self.take(Event::LocalAccused { by });
            return true;
        }
        for peer in shape.peers().iter() {
            if at.stored[peer] == 0 {
                at.stored[peer] = stamp;
            }
        }
        at.fsync();
        session.machine.local_marked();
        false
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

/// `unmarking::remove`'s steps.
fn removal_stages(
    setting: &Setting,
    local: usize,
    answered: BrickSet,
    rows: &[Row; BRICKS],
) -> [BrickSet; 3] {
    let step = |brick: usize| match brick == local {
        _ if setting.lacks(Protection::BelievedUnmarkedFirst) => 0,
        true => 0,
        false if rows[brick][brick] == 0 => 1,
        false => 2,
    };
    std::array::from_fn(|number| answered.iter().filter(|&i| step(i) == number).collect())
}

/// May the removal of marks be asked for? As `SessionHandle::report` hints and
/// `Runner::equal_peers` asks; and some mark must be there to remove. Who is held and
/// behind is waited for, unless `stuck`.
pub fn may_unmark(
    session: &Session,
    shape: &Shape,
    clean: BrickSet,
    rows: &[Row],
    stuck: bool,
) -> bool {
    let machine = &session.machine;
    let held = machine.held();
    let standing = |peer: usize| held.iter().any(|brick| rows[brick][peer] != 0);
    let removable = |peer| clean.contains(peer) && standing(peer);
    let behind_is_held = shape
        .peers()
        .without(clean)
        .iter()
        .any(|i| held.contains(i));
    machine.phase() == &Phase::Dirty
        && machine.may_unmark().is_ok()
        && (stuck || !behind_is_held)
        && shape.peers().iter().any(removable)
}
