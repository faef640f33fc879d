//! A session around the real machines of its files.

use bypass_blk::image::dirty_map::{Peer, Peers, Record};
use bypass_blk::image::replica::brick_port::CopyState;
use bypass_blk::image::replica::brick_set::BrickSet;
use bypass_blk::image::replica::freshness::{Seen, decide};
use bypass_blk::image::replica::map_trust::{self, MapTrust};
use bypass_blk::image::session::state_machine::{Action, Event, GateState, Machine, Phase};
use uuid::Uuid;

use super::steps::{Protection, Setting};
use super::world::*;

pub struct Rim<'a> {
    pub setting: &'a Setting,
    pub world: &'a mut World,
    pub slot: usize,
}

pub fn copy_state(row: &Row) -> CopyState {
    CopyState {
        gfid: Uuid::from_u128(1),
        size: 512,
        pending: row.iter().map(|&counter| counter.into()).collect(),
        dirty: 0,
        fenced: false,
    }
}

impl Map {
    fn record(&self) -> Record {
        Record {
            stamp: self.stamp.into(),
            previous: self.previous.into(),
            suspect: Peers::NONE,
            unguarded: false,
            unsynced: false,
        }
    }

    pub fn explains(&self, counter: i16) -> bool {
        self.record().explains(counter.into())
    }

    fn stands_on(&self, peer: usize, row: &Row) -> bool {
        self.stamp != 0 && row[peer] == self.stamp
    }
}

impl Rim<'_> {
    pub fn peer(&self) -> usize {
        1 - self.slot
    }

    pub fn lacks(&self, protection: Protection) -> bool {
        self.setting.lacks(protection)
    }

    pub fn session(&mut self) -> Option<&mut Session> {
        self.world.sessions[self.slot].as_mut()
    }

    pub fn file(&mut self, file: usize) -> Option<&mut FileState> {
        self.session().map(|session| &mut session.files[file])
    }

    pub fn held(&mut self) -> BrickSet {
        let base = self.file(0).map(|base| base.machine.held());
        base.unwrap_or_default()
    }

    pub fn joined(&mut self, bricks: BrickSet) -> BrickSet {
        let conns = self.session().map(|session| session.conns);
        let joined = |&brick: &usize| conns.is_some_and(|conns| conns[brick] == Conn::Joined);
        bricks.iter().filter(joined).collect()
    }

    /// Whether `decide` lets it open over these bricks: of each file.
    pub fn may_open(setting: &Setting, world: &World, slot: usize, reached: BrickSet) -> bool {
        let files = match setting.lacks(Protection::DecisionOfEach) {
            true => 0..1,
            false => 0..FILES,
        };
        let seen = |file: usize, brick: usize| match reached.contains(brick) {
            false => Seen::Away,
            true => Seen::Copy {
                gfid: Uuid::from_u128(1),
                size: 512,
                accuses: accused_by(&world.rows(file)[brick]),
            },
        };
        let all = |file: usize| {
            (0..BRICKS)
                .map(|brick| seen(file, brick))
                .collect::<Vec<_>>()
        };
        files
            .into_iter()
            .all(|file| decide(&shape(slot), &all(file)).is_ok())
    }

    /// Locks, the decision and the map, at once; the decision was made before.
    pub fn open(&mut self, reached: BrickSet) {
        let slot = self.slot;
        let marked = [0, 1].map(|file| {
            let mut bricks = reached.iter();
            bricks.any(|brick| self.world.rows(file)[brick] != [0; BRICKS])
        });
        let guards = [true, marked[1] && !self.lacks(Protection::GuardOfEach)];
        for brick in reached.iter() {
            self.world.bricks[brick].lease = Some(Lease {
                slot,
                dead: false,
                guards,
            });
        }
        for file in 0..FILES {
            if self.world.acked[file] & !self.world.bricks[slot].files[file].data != 0 {
                self.world.breach = Some(Breach::StaleOpen);
            }
        }
        self.adopt(reached);
        let state = |file: usize| {
            let guarded = file == 0 || marked[file];
            FileState {
                machine: Machine::new(shape(slot), reached),
                gate: GateState::Hold,
                view: self.world.bricks[slot].files[file].data,
                guarded: if guarded { reached } else { BrickSet::EMPTY },
                wants_guard: guarded,
            }
        };
        let files = [state(0), state(1)];
        let conn = |brick| match reached.contains(brick) {
            true => Conn::Joined,
            false => Conn::Away,
        };
        self.world.sessions[slot] = Some(Session {
            files,
            conns: [conn(0), conn(1)],
            inbox: Vec::new(),
        });
    }

    /// `MissedWrites::adopt`.
    fn adopt(&mut self, reached: BrickSet) {
        let old = self.world.maps[self.slot];
        let mut map = old.unwrap_or(Map {
            stamp: 0,
            previous: 0,
            dirty: [true; FILES],
            clean_close: false,
        });
        let judged = [0, 1].map(|file| self.judge(file, old, reached));
        let peer: Peers = Peer::new(0).into_iter().collect();
        for (dirty, judged) in map.dirty.iter_mut().zip(judged) {
            if old.is_none_or(|map| map.clean_close) && judged.clean == peer {
                *dirty = false;
            }
            *dirty |= judged.unknown == peer;
        }
        if judged.iter().all(|judged| judged.known.is_empty()) {
            (map.previous, map.stamp) = (map.stamp, 0);
        }
        map.clean_close = false;
        self.world.maps[self.slot] = Some(map);
    }

    fn judge(&self, file: usize, old: Option<Map>, reached: BrickSet) -> MapTrust {
        let asked = match self.lacks(Protection::JudgementOfEach) {
            true => 0,
            false => file,
        };
        let rows = self.world.rows(asked);
        let copy = |brick: usize| reached.contains(brick).then(|| copy_state(&rows[brick]));
        let copies: Vec<_> = (0..BRICKS).map(copy).collect();
        map_trust::judge(&shape(self.slot), old.map(|map| map.record()), &copies)
    }

    /// `Runner::take`.
    pub fn take(&mut self, file: usize, event: Event) {
        let actions = self.file(file).map(|file| file.machine.step(event));
        for action in actions.unwrap_or_default() {
            match action {
                Action::SetGate(gate) => self.file(file).into_iter().for_each(|f| f.gate = gate),
                Action::Mark(bricks) => self.mark(file, bricks, false),
                Action::Stop(reason) => {
                    for other in 0..FILES {
                        self.take(other, Event::StoppedElsewhere(reason));
                    }
                    if let Some(session) = self.session() {
                        session.conns = [Conn::Away; BRICKS];
                        session.inbox.clear();
                    }
                    self.world.let_go(self.slot);
                }
                Action::Publish(_)
                | Action::WatchLocal
                | Action::StartQuorumTimer
                | Action::StopQuorumTimer => {}
            }
        }
    }

    /// The worker gives its connection up, knowingly.
    pub fn lose(&mut self, brick: usize) {
        let slot = self.slot;
        let Some(session) = self.session() else {
            return;
        };
        if session.conns[brick] == Conn::Away {
            return;
        }
        session.conns[brick] = Conn::Away;
        session.inbox.push(Report::Lost(brick));
        let lease = &mut self.world.bricks[brick].lease;
        if let Some(lease) = lease.as_mut().filter(|lease| lease.slot == slot) {
            lease.dead = true;
        }
    }

    /// `Runner::give_up`.
    pub fn give_up(&mut self, brick: usize) {
        self.lost(brick);
        self.lose(brick);
    }

    fn lost(&mut self, brick: usize) {
        for file in 0..FILES {
            if let Some(state) = self.file(file) {
                state.guarded.remove(brick);
            }
        }
        (0..FILES).for_each(|file| self.take(file, Event::Lost(brick)));
    }

    /// The worker takes the locks anew, and looks at every file.
    pub fn rejoin(&mut self, brick: usize) {
        let slot = self.slot;
        let rows = [0, 1].map(|file| self.world.rows(file)[brick]);
        let Some(session) = self.session() else {
            return;
        };
        let guards = [0, 1].map(|file| session.files[file].wants_guard);
        session.conns[brick] = Conn::Joined;
        session.inbox.push(Report::Rejoined {
            brick,
            rows,
            guards,
        });
        let locked = !self.lacks(Protection::GuardWhenBack) && !self.lacks(Protection::GuardOfEach);
        self.world.bricks[brick].lease = Some(Lease {
            slot,
            dead: false,
            guards: [guards[0], guards[1] && locked],
        });
    }

    /// Another session has the brick. Marks of one file keep it from opening the image.
    pub fn find_other(&mut self, brick: usize) {
        let slot = self.slot;
        let accused = (0..FILES).any(|file| self.world.rows(file)[brick][slot] != 0);
        let marked = |file: &FileState| file.machine.phase() == &Phase::Dirty;
        let session = self.session();
        if accused || !session.is_some_and(|session| session.files.iter().any(marked)) {
            for file in 0..FILES {
                self.take(file, Event::TakenByOther { brick, accused });
            }
        }
    }

    /// The session's thread takes the next report.
    pub fn hear(&mut self) {
        match self.session().map(|session| session.inbox.remove(0)) {
            Some(Report::Lost(brick)) => self.lost(brick),
            Some(Report::Rejoined {
                brick,
                rows,
                guards,
            }) => self.heard_rejoined(brick, rows, guards),
            None => {}
        }
    }

    fn heard_rejoined(&mut self, brick: usize, rows: [Row; FILES], guards: [bool; FILES]) {
        for file in (0..FILES).filter(|&file| guards[file]) {
            if let Some(state) = self.file(file) {
                state.guarded.insert(brick);
            }
        }
        for (file, row) in rows.into_iter().enumerate() {
            if file != 0 && !self.held().contains(brick) {
                break;
            }
            self.file_rejoined(file, brick, row);
        }
        for file in (0..FILES).filter(|&file| guards[file]) {
            if self.file(file).is_some_and(|state| !state.wants_guard) {
                self.unguard(file);
            }
        }
    }

    fn file_rejoined(&mut self, file: usize, brick: usize, row: Row) {
        let (slot, peer) = (self.slot, self.peer());
        let accused = row[slot] != 0;
        let map = self.world.maps[slot];
        let marks_stand = map.is_none_or(|map| map.stands_on(peer, &row));
        let data = self.world.bricks[slot].files[file].data;
        let held = self.held();
        let others = self.joined(held);
        let rows = self.world.rows(file);
        let Some(state) = self.file(file) else { return };
        let hot = state.machine.phase() != &Phase::Unmarked || !state.guarded.is_empty();
        let asked = file == 0 || accused || hot;
        let mut accusers = others.iter().filter(|&by| asked && rows[by][slot] != 0);
        let local_accused_by = accusers.next().or(accused.then_some(brick));
        let local_untouched = state.view == data;
        self.take(
            file,
            Event::Rejoined {
                brick,
                marks_stand,
                local_accused_by,
                local_untouched,
            },
        );
    }
}
