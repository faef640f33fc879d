//! What can happen next, and what becomes of the world then.

use bypass_blk::image::bricks::BrickSet;
use bypass_blk::image::machine::{Event, GateState, Phase};
use stateright::{Model, Property};

use super::heal::{Direction, directions};
use super::properties;
use super::rim::Rim;
use super::setting::{Clearing, Protection, Setting};
use super::world::{BRICKS, Breach, Conn, Daemon, Healer, Link, Report, Session, World};

/// Something that happens. Sessions are named by slot, bricks by child index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A daemon starts, reaches these bricks and takes the locks there.
    Open(usize, BrickSet),
    /// It reads, decides and publishes.
    FinishOpen(usize),
    /// A daemon ends: closed or killed, in the middle of anything.
    End(usize),
    /// The guest wants to write and the gate is held.
    WantWrite(usize),
    /// The guest's write is on the local copy, and acknowledged.
    Write(usize),
    /// The marking round reads the bricks' marks.
    ProbeForRound(usize),
    /// The marking round's XATTROP on a brick.
    StoreMark(usize, usize),
    /// The marking round's FSYNC on a brick.
    SyncMark(usize, usize),
    /// The marking round gives the data locks back and is over.
    EndRound(usize),
    /// The session's thread takes a report.
    Hear(usize),
    /// Writes waited for too long.
    QuorumTimeout(usize),
    /// A worker notices that its connection is gone.
    Notice(usize, usize),
    /// A worker joins its brick again.
    Rejoin(usize, usize),
    /// A worker finds another session established on its brick.
    FindOther(usize, usize),
    /// Fault: a connection breaks, and the brick notices first.
    BrickDrops(usize, usize),
    /// Fault: a connection breaks, and the session notices first.
    SessionDrops(usize, usize),
    /// A brick notices that a connection is gone.
    GhostGone(usize),
    /// Fault: a brick's process is killed.
    KillBrick(usize),
    /// Fault: a host crashes. Marks not fsynced are lost, or not.
    CrashHost { host: usize, marks_kept: bool },
    /// A brick's process starts again.
    Return(usize),
    /// The stock healer locks everything, reads the marks, copies and fsyncs.
    Heal(Direction),
    /// It takes the marks off the next brick, or ends.
    Undo,
    /// Fault: the stock healer is killed.
    KillHealer,
}

impl Model for Setting {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.breach.is_some() {
            return;
        }
        for slot in 0..world.daemons.len() {
            match &world.daemons[slot] {
                Daemon::Closed => self.openings(world, slot, steps),
                Daemon::Opening(conns) => {
                    steps.extend([Step::FinishOpen(slot), Step::End(slot)]);
                    self.breaks(world, slot, conns, steps);
                }
                Daemon::Open(session) => {
                    steps.push(Step::End(slot));
                    self.session_steps(world, slot, session, steps);
                    self.breaks(world, slot, &session.conns, steps);
                }
            }
        }
        for brick in 0..self.bricks {
            self.brick_steps(world, brick, steps);
        }
        self.healer_steps(world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        self.apply(&mut next, step);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl Setting {
    fn rim<'a>(&'a self, world: &'a mut World, slot: usize) -> Rim<'a> {
        Rim {
            setting: self,
            world,
            slot,
        }
    }

    /// A daemon may reach any bricks that are up: the others are beyond a
    /// partition. Attempts that would be refused at once change nothing.
    fn openings(&self, world: &World, slot: usize, steps: &mut Vec<Step>) {
        if world.opens_left == 0 {
            return;
        }
        let shape = self.shape(slot);
        let free = |&brick: &usize| {
            let locked = !self.lacks(Protection::LocksOnPeers) || brick == shape.local;
            world.bricks[brick].is_free() || (!locked && world.bricks[brick].up)
        };
        for chosen in 0..1u32 << self.bricks {
            let reached: BrickSet = (0..self.bricks).filter(|i| chosen & 1 << i != 0).collect();
            let enough = shape.is_quorum(reached) || self.lacks(Protection::OpenQuorum);
            if enough && reached.contains(shape.local) && reached.iter().all(|i| free(&i)) {
                steps.push(Step::Open(slot, reached));
            }
        }
    }

    fn session_steps(&self, world: &World, slot: usize, s: &Session, steps: &mut Vec<Step>) {
        let at_work = s.round.is_some();
        if let Some(round) = &s.round {
            if !round.probed {
                steps.push(Step::ProbeForRound(slot));
            } else if round.to_store.is_empty() && round.to_sync.is_empty() {
                steps.push(Step::EndRound(slot));
            }
            steps.extend(round.to_store.iter().map(|b| Step::StoreMark(slot, b)));
            steps.extend(round.to_sync.iter().map(|b| Step::SyncMark(slot, b)));
        }
        if !at_work && !s.inbox.is_empty() {
            steps.push(Step::Hear(slot));
        }
        if !at_work && s.gate == GateState::Hold && s.machine.phase() == &Phase::Unmarked {
            steps.push(Step::WantWrite(slot));
        }
        if !at_work && s.machine.phase() == &Phase::Stalled {
            steps.push(Step::QuorumTimeout(slot));
        }
        if s.gate == GateState::Open && world.writes_left > 0 {
            steps.push(Step::Write(slot));
        }
        if !matches!(s.machine.phase(), Phase::Stopped(_)) {
            for brick in 0..self.bricks {
                self.worker_steps(world, slot, s, brick, steps);
            }
        }
    }

    fn worker_steps(
        &self,
        w: &World,
        slot: usize,
        s: &Session,
        brick: usize,
        steps: &mut Vec<Step>,
    ) {
        // The worker's thread is busy with XATTROP and FSYNC, which are one job.
        if s.round.is_some_and(|round| round.to_sync.contains(brick)) {
            return;
        }
        let reports = || s.inbox.iter().filter(|report| report.brick() == brick);
        let at = &w.bricks[brick];
        match s.conns[brick] {
            Conn::Broken => {
                if reports().count() < 2 {
                    steps.push(Step::Notice(slot, brick));
                }
            }
            Conn::Away => {
                let unnoted = reports().any(|report| matches!(report, Report::Lost(_)));
                let unlocked = self.lacks(Protection::LocksOnPeers) && brick != self.locals[slot];
                let wait = self.with.loss_noted_first && unnoted;
                if (at.is_free() || (unlocked && at.up)) && reports().count() < 2 && !wait {
                    steps.push(Step::Rejoin(slot, brick));
                }
                let other = |lease: super::world::Lease| {
                    lease.published && (lease.slot != slot || lease.link == Link::Dead)
                };
                if at.lease.is_some_and(other) && s.round.is_none() {
                    steps.push(Step::FindOther(slot, brick));
                }
            }
            Conn::Joined => {}
        }
    }

    fn breaks(&self, w: &World, slot: usize, conns: &[Conn; BRICKS], steps: &mut Vec<Step>) {
        if w.faults_left == 0 {
            return;
        }
        for brick in (0..self.bricks).filter(|&i| conns[i] == Conn::Joined) {
            steps.push(Step::BrickDrops(slot, brick));
            if w.session(slot).is_some() {
                steps.push(Step::SessionDrops(slot, brick));
            }
        }
    }

    fn brick_steps(&self, world: &World, brick: usize, steps: &mut Vec<Step>) {
        let at = &world.bricks[brick];
        if !at.up {
            steps.push(Step::Return(brick));
        } else if world.faults_left > 0 {
            steps.push(Step::KillBrick(brick));
            for marks_kept in [true, false] {
                if marks_kept || at.stored != at.durable {
                    let host = brick;
                    steps.push(Step::CrashHost { host, marks_kept });
                }
            }
        }
        if at.lease.is_some_and(|lease| lease.link != Link::Live) {
            steps.push(Step::GhostGone(brick));
        }
    }

    fn healer_steps(&self, world: &World, steps: &mut Vec<Step>) {
        match world.healer {
            Healer::Idle => {
                let free = world.bricks[..self.bricks]
                    .iter()
                    .all(|brick| brick.may_be_healed());
                let unaware = (0..world.daemons.len())
                    .any(|slot| world.session(slot).is_some_and(Session::is_unguarded));
                if free && (self.late_notice || !unaware) {
                    steps.extend(directions(self, &world.rows()).into_iter().map(Step::Heal));
                }
            }
            Healer::Undoing { .. } => {
                steps.push(Step::Undo);
                if world.faults_left > 0 {
                    steps.push(Step::KillHealer);
                }
            }
        }
    }

    fn apply(&self, world: &mut World, step: Step) {
        match step {
            Step::Open(slot, reached) => {
                world.opens_left -= 1;
                self.rim(world, slot).take_locks(reached);
            }
            Step::FinishOpen(slot) => {
                if let Daemon::Opening(conns) = world.daemons[slot] {
                    self.rim(world, slot).finish_open(conns);
                }
            }
            Step::End(slot) => world.daemon_gone(slot),
            Step::WantWrite(slot) => self.rim(world, slot).take(Event::WriteWanted),
            Step::Write(slot) => self.write(world, slot),
            Step::ProbeForRound(slot) => self.rim(world, slot).probe_for_round(),
            Step::StoreMark(slot, brick) => self.rim(world, slot).store_mark(brick),
            Step::SyncMark(slot, brick) => self.rim(world, slot).sync_mark(brick),
            Step::EndRound(slot) => self.rim(world, slot).end_round(),
            Step::Hear(slot) => self.rim(world, slot).hear(),
            Step::QuorumTimeout(slot) => self.rim(world, slot).take(Event::QuorumTimeout),
            Step::Notice(slot, brick) => self.rim(world, slot).lose(brick),
            Step::Rejoin(slot, brick) => self.rim(world, slot).rejoin(brick),
            Step::FindOther(slot, brick) => self.rim(world, slot).take(Event::TakenByOther(brick)),
            Step::BrickDrops(slot, brick) => {
                world.faults_left -= 1;
                self.brick_drops(world, slot, brick);
            }
            Step::SessionDrops(slot, brick) => {
                world.faults_left -= 1;
                self.rim(world, slot).lose(brick);
            }
            Step::GhostGone(brick) => world.bricks[brick].lease = None,
            Step::KillBrick(brick) => {
                world.faults_left -= 1;
                world.brick_down(brick);
            }
            Step::CrashHost { host, marks_kept } => {
                world.faults_left -= 1;
                self.crash(world, host, marks_kept);
            }
            Step::Return(brick) => world.bricks[brick].up = true,
            Step::Heal(direction) => self.heal(world, direction),
            Step::Undo => self.undo(world),
            Step::KillHealer => {
                world.faults_left -= 1;
                world.heal_aborted();
            }
        }
    }

    fn write(&self, world: &mut World, slot: usize) {
        let shape = self.shape(slot);
        let bricks = 0..self.bricks;
        let accusing = |i: &usize| world.bricks[*i].durable.covers(shape.peers());
        let marked = shape.is_quorum(bricks.filter(accusing).collect());
        let data = world.bricks[shape.local].data;
        let viewed = world.session(slot).map(|session| session.view);
        if !marked {
            world.breach = Some(Breach::UnmarkedWrite);
        } else if world.acked & !data != 0 {
            world.breach = Some(Breach::StaleWrite);
        } else if viewed != Some(data) {
            world.breach = Some(Breach::ChangedUnderneath);
        }
        world.writes_left -= 1;
        let write = 1 << (self.writes - 1 - world.writes_left);
        world.bricks[shape.local].data |= write;
        world.acked |= write;
        if slot == 1 {
            world.by_second |= write;
        }
        if let Daemon::Open(session) = &mut world.daemons[slot] {
            session.view |= write;
        }
    }

    fn brick_drops(&self, world: &mut World, slot: usize, brick: usize) {
        if world.bricks[brick]
            .lease
            .is_some_and(|lease| lease.slot == slot)
        {
            world.bricks[brick].lease = None;
        }
        world.connection_broken(slot, brick);
    }

    fn crash(&self, world: &mut World, host: usize, marks_kept: bool) {
        for slot in 0..world.daemons.len() {
            if self.locals[slot] == host {
                world.daemon_gone(slot);
            }
        }
        let brick = &mut world.bricks[host];
        match marks_kept {
            true => brick.durable = brick.stored,
            false => brick.stored = brick.durable,
        }
        world.brick_down(host);
    }

    fn heal(&self, world: &mut World, direction: Direction) {
        world.healer = Healer::Undoing {
            rows: world.rows(),
            next: 0,
        };
        let fresh = world.bricks[direction.source].data;
        for brick in 0..self.bricks {
            world.bricks[brick].healed = true;
            if direction.sinks.contains(brick) && self.has_data(brick) {
                world.bricks[brick].data = fresh;
                world.bricks[brick].durable = world.bricks[brick].stored;
            }
        }
    }

    fn undo(&self, world: &mut World) {
        let Healer::Undoing { rows, next } = world.healer else {
            return;
        };
        let last = match self.clearing {
            Clearing::BrickByBrick => next,
            Clearing::Whole | Clearing::Volatile => self.bricks - 1,
        };
        for brick in next..=last {
            let at = &mut world.bricks[brick];
            at.stored = at.stored.without(rows[brick]);
            if self.clearing != Clearing::Volatile {
                at.durable = at.stored;
            }
        }
        world.healer = Healer::Undoing {
            rows,
            next: last + 1,
        };
        if last + 1 == self.bricks {
            world.heal_aborted();
        }
    }
}
