//! What can happen next, and what becomes of it.

use bypass_blk::image::replica::brick_set::BrickSet;
use bypass_blk::image::session::state_machine::{Event, GateState, Phase};
use stateright::{Model, Property};

use super::properties;
use super::rim::Rim;
use super::rounds::may_unmark;
use super::world::*;
use crate::protocol::stock::{Direction, ways};

/// The bounds, and the protections that are switched off.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub writes: u8,
    /// So many of the writes may be a stock client's.
    pub clients: u8,
    pub faults: u8,
    pub opens: u8,
    pub without: &'static [Protection],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// A file's marks are on that file, not on the base.
    MarksOfEach,
    /// The heal lock is taken on each file that is marked.
    GuardOfEach,
    /// And when a brick is back.
    GuardWhenBack,
    /// And stays until the file has no mark.
    GuardUntilUnmarked,
    /// An opening reads the marks of each file.
    DecisionOfEach,
    /// An older map is believed of each file by that file's marks.
    JudgementOfEach,
    /// Somebody else's marks on any file make that one dirty.
    ForeignMarksOfEach,
    /// Marks go from a file of which the peer misses nothing.
    DirtOfEach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Open(usize, BrickSet),
    Close(usize),
    Kill(usize),
    /// The guest wants to write to a file.
    Want(usize, usize),
    /// The daemon is killed when a round has marked the peer and not the local brick.
    KillMarking(usize, usize),
    Write(usize, usize),
    /// The healer copies what a peer misses of a file.
    Copy(usize, usize),
    Unmark(usize, usize),
    /// The daemon is killed when the marks are gone from the local brick alone.
    KillUnmarking(usize, usize),
    Hear(usize),
    Notice(usize, usize),
    Rejoin(usize, usize),
    /// A worker finds another session established on its brick.
    FindOther(usize, usize),
    /// Fault: the brick notices first.
    BrickDrops(usize, usize),
    /// Fault: the session notices first.
    SessionDrops(usize, usize),
    /// A brick notices that a connection is gone.
    GhostGone(usize),
    /// Fault: a brick's process is killed.
    KillBrick(usize),
    /// Fault: a host crashes, with its map.
    Crash(usize),
    Return(usize),
    /// A stock client writes to a file, reaching these bricks, while no session is.
    Client(usize, BrickSet),
    /// Stock Gluster heals one file.
    Heal(usize, Direction),
    /// And takes its marks off.
    Undo(usize),
}

impl Model for Setting {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let brick = Brick {
            up: true,
            lease: None,
            files: [Copy::default(); FILES],
        };
        vec![World {
            bricks: [brick; BRICKS],
            sessions: [None, None],
            maps: [None; BRICKS],
            heals: [None; FILES],
            acked: [0; FILES],
            writes_left: self.writes,
            clients_left: self.clients,
            faults_left: self.faults,
            opens_left: self.opens,
            breach: None,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.breach.is_some() {
            return;
        }
        for slot in 0..BRICKS {
            match &world.sessions[slot] {
                None => self.openings(world, slot, steps),
                Some(session) => self.session_steps(world, slot, session, steps),
            }
            self.brick_steps(world, slot, steps);
        }
        for file in 0..FILES {
            self.file_steps(world, file, steps);
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        self.apply(&mut next, step);
        for slot in 0..BRICKS {
            if next.opens_left == 0 && next.sessions[slot].is_none() {
                next.maps[slot] = None;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

fn sets() -> impl Iterator<Item = BrickSet> {
    let set = |chosen: usize| (0..BRICKS).filter(|i| chosen & 1 << i != 0).collect();
    (1..1 << BRICKS).map(set)
}

impl Setting {
    pub fn lacks(&self, protection: Protection) -> bool {
        self.without.contains(&protection)
    }

    fn openings(&self, world: &World, slot: usize, steps: &mut Vec<Step>) {
        let free = |brick: usize| world.bricks[brick].up && world.bricks[brick].lease.is_none();
        let opens = |set: &BrickSet| {
            // A heal is waited for where marks stand.
            let healed = (0..FILES).any(|file| world.heals[file].is_some());
            let quorum = shape(slot).is_quorum(*set) && set.contains(slot);
            !healed && quorum && set.iter().all(free) && Rim::may_open(self, world, slot, *set)
        };
        if world.opens_left > 0 {
            steps.extend(sets().filter(opens).map(|set| Step::Open(slot, set)));
        }
    }

    fn session_steps(&self, w: &World, slot: usize, session: &Session, steps: &mut Vec<Step>) {
        steps.extend([Step::Kill(slot), Step::Close(slot)]);
        if !session.inbox.is_empty() && may_act(w) {
            steps.push(Step::Hear(slot));
        }
        for file in 0..FILES {
            let state = &session.files[file];
            let phase = state.machine.phase();
            let free = w.heals[file].is_none();
            if phase == &Phase::Unmarked && free {
                steps.extend([Step::Want(slot, file), Step::KillMarking(slot, file)]);
            }
            if state.gate == GateState::Open && w.writes_left > 0 {
                steps.push(Step::Write(slot, file));
            }
            if may_copy(w, slot, file) {
                steps.push(Step::Copy(slot, file));
            }
            if free && may_unmark(self, w, slot, file) {
                steps.extend([Step::Unmark(slot, file), Step::KillUnmarking(slot, file)]);
            }
        }
        for brick in 0..BRICKS {
            let at = &w.bricks[brick];
            match session.conns[brick] {
                Conn::Broken => steps.push(Step::Notice(slot, brick)),
                Conn::Joined if w.faults_left > 0 => steps.extend([
                    Step::BrickDrops(slot, brick),
                    Step::SessionDrops(slot, brick),
                ]),
                Conn::Joined => {}
                Conn::Away => {
                    let unheard = session.inbox.contains(&Report::Lost(brick));
                    let stopped = matches!(session.files[0].machine.phase(), Phase::Stopped(_));
                    let free = at.up && at.lease.is_none() && may_act(w);
                    if free && !unheard && !stopped {
                        steps.push(Step::Rejoin(slot, brick));
                    }
                    let other = at.lease.is_some_and(|lease| lease.slot != slot);
                    if other && !stopped {
                        steps.push(Step::FindOther(slot, brick));
                    }
                }
            }
        }
    }

    fn brick_steps(&self, world: &World, brick: usize, steps: &mut Vec<Step>) {
        let at = &world.bricks[brick];
        match at.up {
            false => steps.push(Step::Return(brick)),
            true if world.faults_left > 0 => {
                steps.extend([Step::KillBrick(brick), Step::Crash(brick)]);
            }
            true => {}
        }
        if at.lease.is_some_and(|lease| lease.dead) {
            steps.push(Step::GhostGone(brick));
        }
    }

    fn file_steps(&self, world: &World, file: usize, steps: &mut Vec<Step>) {
        if world.heals[file].is_some() {
            return steps.push(Step::Undo(file));
        }
        let guarded = |brick: &Brick| brick.lease.is_some_and(|lease| lease.guards[file]);
        let free = |brick: &Brick| brick.up && !guarded(brick);
        // A session learns of the loss of a file's last heal lock before a heal begins.
        let unaware = |session: &Session| {
            let state = &session.files[file];
            let mut guarded = state.guarded.iter();
            let guards = guarded.any(|brick| session.conns[brick] == Conn::Joined);
            state.gate == GateState::Open && !guards
        };
        let unaware = world.sessions.iter().flatten().any(unaware);
        if world.bricks.iter().all(free) && !unaware {
            let ways = directions(world, file).into_iter();
            steps.extend(ways.map(|way| Step::Heal(file, way)));
        }
        let nobody = world.sessions.iter().all(Option::is_none);
        if world.clients_left > 0 && world.writes_left > 0 && nobody {
            let fresh = |set: &BrickSet, copy: usize| {
                let mut bricks = set.iter();
                bricks.all(|brick| world.rows(file)[brick][copy] == 0)
            };
            let reached = |set: &BrickSet| {
                let up = set.iter().all(|brick| world.bricks[brick].up);
                up && shape(0).is_quorum(*set) && set.iter().any(|copy| fresh(set, copy))
            };
            steps.extend(sets().filter(reached).map(|set| Step::Client(file, set)));
        }
    }

    fn rim<'a>(&'a self, world: &'a mut World, slot: usize) -> Rim<'a> {
        Rim {
            setting: self,
            world,
            slot,
        }
    }

    fn apply(&self, world: &mut World, step: Step) {
        match step {
            Step::Open(slot, set) => {
                self.rim(world, slot).open(set);
                world.opens_left -= 1;
            }
            Step::Close(slot) => self.rim(world, slot).close(),
            Step::Kill(slot) => world.daemon_gone(slot),
            Step::Want(slot, file) => self.rim(world, slot).take(file, Event::WriteWanted),
            Step::KillMarking(slot, file) => {
                self.rim(world, slot)
                    .mark(file, BrickSet::first(BRICKS), true)
            }
            Step::Write(slot, file) => self.write(world, slot, file),
            Step::Copy(slot, file) => {
                world.bricks[1 - slot].files[file].data = world.bricks[slot].files[file].data;
                if let Some(map) = &mut world.maps[slot] {
                    map.dirty[file] = false;
                }
                if self.lacks(Protection::GuardUntilUnmarked)
                    && file != 0
                    && let Some(lease) = &mut world.bricks[slot].lease
                {
                    lease.guards[file] = false;
                    if let Some(lease) = &mut world.bricks[1 - slot].lease {
                        lease.guards[file] = false;
                    }
                }
            }
            Step::Unmark(slot, file) => self.rim(world, slot).unmark(file, false),
            Step::KillUnmarking(slot, file) => self.rim(world, slot).unmark(file, true),
            Step::Hear(slot) => self.rim(world, slot).hear(),
            Step::Notice(slot, brick) => self.rim(world, slot).lose(brick),
            Step::Rejoin(slot, brick) => self.rim(world, slot).rejoin(brick),
            Step::FindOther(slot, brick) => self.rim(world, slot).find_other(brick),
            Step::BrickDrops(slot, brick) => {
                world.faults_left -= 1;
                world.bricks[brick].lease = None;
                if let Some(session) = &mut world.sessions[slot] {
                    session.conns[brick] = Conn::Broken;
                }
            }
            Step::SessionDrops(slot, brick) => {
                self.rim(world, slot).lose(brick);
                world.faults_left -= 1;
            }
            Step::GhostGone(brick) => world.bricks[brick].lease = None,
            Step::KillBrick(brick) => {
                world.faults_left -= 1;
                world.brick_down(brick);
            }
            Step::Crash(host) => {
                world.faults_left -= 1;
                world.daemon_gone(host);
                world.maps[host] = world.maps[host].filter(|map| map.clean_close);
                world.brick_down(host);
            }
            Step::Return(brick) => world.bricks[brick].up = true,
            Step::Client(file, set) => self.client(world, file, set),
            Step::Heal(file, way) => {
                world.heals[file] = Some(world.rows(file));
                let data = world.bricks[way.source].files[file].data;
                for sink in way.sinks.iter() {
                    world.bricks[sink].files[file].data = data;
                }
            }
            Step::Undo(file) => {
                let read = world.heals[file].take().unwrap_or_default();
                for (brick, read) in world.bricks.iter_mut().zip(read) {
                    let row = brick.files[file].row.iter_mut();
                    row.zip(read).for_each(|(counter, read)| *counter -= read);
                }
            }
        }
    }

    fn next_write(&self, world: &mut World) -> Writes {
        world.writes_left -= 1;
        1 << world.writes_left
    }

    fn write(&self, world: &mut World, slot: usize, file: usize) {
        let write = self.next_write(world);
        let marked = |brick: &usize| world.rows(file)[*brick][1 - slot] != 0;
        let marked = (0..BRICKS).filter(marked).collect();
        let copy = &mut world.bricks[slot].files[file];
        let Some(session) = &mut world.sessions[slot] else {
            return;
        };
        let view = &mut session.files[file].view;
        if !shape(slot).is_quorum(marked) {
            world.breach = Some(Breach::Unmarked);
        } else if world.acked[file] & !copy.data != 0 {
            world.breach = Some(Breach::StaleWrite);
        } else if *view != copy.data {
            world.breach = Some(Breach::Underneath);
        }
        copy.data |= write;
        *view |= write;
        world.acked[file] |= write;
        if let Some(map) = &mut world.maps[slot] {
            map.dirty[file] = true;
        }
    }

    fn client(&self, world: &mut World, file: usize, set: BrickSet) {
        let write = self.next_write(world);
        world.clients_left -= 1;
        let missed = BrickSet::first(BRICKS).without(set);
        for brick in set.iter() {
            let copy = &mut world.bricks[brick].files[file];
            copy.data |= write;
            missed.iter().for_each(|peer| copy.row[peer] += 1);
        }
        world.acked[file] |= write;
    }
}

/// No heal is under way, whose locks would be waited for.
fn may_act(world: &World) -> bool {
    world.heals.iter().all(Option::is_none)
}

/// The record stands at the peer, and, under the data lock, the session's mark.
fn may_copy(world: &World, slot: usize, file: usize) -> bool {
    let (at, peer) = (&world.bricks[1 - slot], 1 - slot);
    let recorded = at
        .lease
        .is_some_and(|lease| lease.slot == slot && !lease.dead);
    let map = world.maps[slot].filter(|map| map.dirty[file]);
    let stamped = map.is_some_and(|map| map.explains(at.files[file].row[peer]));
    at.up && recorded && stamped && world.heals[file].is_none()
}

/// How stock Gluster may heal a file.
pub fn directions(world: &World, file: usize) -> Vec<Direction> {
    let rows = world.rows(file).map(|row| accused_by(&row));
    ways(&rows, |_| false, |_| true)
}
