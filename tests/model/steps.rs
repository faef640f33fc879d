//! What can happen next.

use bypass_blk::image::replica::brick_set::BrickSet;
use bypass_blk::image::session::state_machine::{GateState, Phase};
use stateright::{Model, Property};

use super::daemon::{Conn, Daemon, Report, Session};
use super::healing::healer_steps;
use super::promoting::promotion_steps;
use super::properties;
use super::round::may_unmark;
use super::setting::{Protection, Setting};
use super::stock::{Direction, directions};
use super::world::{BRICKS, Brick, Link, StockHealer, World};

/// Something that happens. Sessions are named by slot, bricks by child index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A daemon starts, reaches these bricks and takes the locks there.
    Open(usize, BrickSet),
    /// It reads, decides and publishes.
    FinishOpen(usize),
    /// A daemon is killed, in the middle of anything. Its write in flight lands or not.
    Kill { slot: usize, landed: bool },
    /// A daemon closes its session properly.
    Close(usize),
    /// The guest wants to write and the gate is held.
    WantWrite(usize),
    /// The guest's write is admitted.
    BeginWrite(usize),
    /// The guest's write is on the local copy, and acknowledged.
    LandWrite(usize),
    /// The session's healer misses a mark, or a look at the bricks does.
    WantMarks(usize),
    /// The session's healer asks for the removal of marks.
    WantUnmark(usize),
    /// A round reads the bricks' marks.
    Probe(usize),
    /// A round's XATTROP on a brick.
    Store(usize, usize),
    /// A round's FSYNC on a brick.
    Sync(usize, usize),
    /// A round gives the data locks back and is over.
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
    /// A brick notices that a session's connection is gone.
    GhostGone(usize),
    /// Fault: a brick's process is killed.
    KillBrick(usize),
    /// Fault: a host crashes. What was not fsynced is lost, or not.
    CrashHost {
        host: usize,
        marks_kept: bool,
        data_kept: bool,
    },
    /// A brick's process starts again.
    Return(usize),
    /// A healer takes the copy lock, checks the record, and asks its session.
    Attach { slot: usize, peer: usize },
    /// It gives the copy lock back.
    Detach(usize),
    /// It takes the data lock, reads an extent and sends it.
    SendCopy {
        slot: usize,
        peer: usize,
        extent: u8,
    },
    /// The WRITE of a healer is carried out.
    LandCopy(usize),
    /// A healer's FSYNC is answered and the extent cleared, if no write came in.
    EndCopy(usize),
    /// Fault: a healer is killed, or loses its connection.
    KillHealer(usize),
    /// A brick notices that a healer's connection is gone; its WRITE never lands.
    CopierGone(usize),
    /// A stock client writes through AFR, reaching these bricks, while no session is.
    ClientWrite(BrickSet),
    /// An operator promotes a stale copy, reaching these bricks.
    Promote(usize, BrickSet),
    /// The promotion changes a brick.
    PromoteOn(usize, usize),
    /// The stock healer locks everything, reads the marks, copies and fsyncs.
    Heal(Direction),
    /// It takes the marks off the next brick, or ends.
    Undo,
    /// Fault: the stock healer is killed.
    KillStock,
}

impl Model for Setting {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut world = World::new(self);
        for step in (self.after)() {
            self.apply(&mut world, step);
        }
        vec![world]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.breach.is_some() {
            return;
        }
        for slot in 0..world.daemons.len() {
            match &world.daemons[slot] {
                Daemon::Closed => {
                    self.openings(world, slot, steps);
                    promotion_steps(self, world, slot, steps);
                }
                Daemon::Opening(conns) => {
                    let landed = false;
                    steps.extend([Step::FinishOpen(slot), Step::Kill { slot, landed }]);
                    self.breaks(world, slot, conns, steps);
                }
                Daemon::Open(session) => {
                    self.session_steps(world, slot, session, steps);
                    self.breaks(world, slot, &session.conns, steps);
                }
                Daemon::Promoting(_) => promotion_steps(self, world, slot, steps),
            }
            healer_steps(self, world, slot, steps);
        }
        for brick in 0..self.bricks {
            self.brick_steps(world, brick, steps);
        }
        self.stock_steps(world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        self.apply(&mut next, step);
        self.forget_what_matters_no_more(&mut next);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl Setting {
    /// Makes states equal that differ in what nothing can depend on any more.
    fn forget_what_matters_no_more(&self, world: &mut World) {
        if world.faults_left == 0 {
            for brick in &mut world.bricks {
                brick.data_durable = brick.data;
            }
        }
        for slot in 0..world.daemons.len() {
            let copies = |brick: &Brick| brick.copier.is_some_and(|copier| copier.slot == slot);
            let healer = world.healers[slot].is_some() || world.bricks.iter().any(copies);
            let over = world.daemons[slot] == Daemon::Closed && world.opens_left == 0;
            if over && !healer {
                world.maps[slot] = None;
            }
        }
    }

    /// A daemon may reach any bricks that are up: the others are beyond a
    /// partition. Attempts that would be refused at once change nothing.
    fn openings(&self, world: &World, slot: usize, steps: &mut Vec<Step>) {
        // With three bricks it does not matter which of the hosts is the first one.
        let second_first = slot == 1 && world.opens_left == self.opens && self.bricks == 3;
        if world.opens_left == 0 || second_first {
            return;
        }
        let opens = self.reachable(world, slot, self.lacks(Protection::OpenQuorum));
        steps.extend(opens.into_iter().map(|reached| Step::Open(slot, reached)));
    }

    /// The sets of bricks on which the locks may be had.
    pub fn reachable(&self, world: &World, slot: usize, any_number: bool) -> Vec<BrickSet> {
        let shape = self.shape(slot);
        let free = |&brick: &usize| {
            let at = &world.bricks[brick];
            let locked = !self.lacks(Protection::LocksOnPeers) || brick == shape.local;
            let copies = at.copier.is_some() && !self.lacks(Protection::CopyLock);
            (at.is_free() && !copies) || (!locked && at.up)
        };
        let sets = (0..1u32 << self.bricks)
            .map(|chosen| (0..self.bricks).filter(|i| chosen & 1 << i != 0).collect());
        sets.filter(|reached: &BrickSet| any_number || shape.is_quorum(*reached))
            .filter(|reached| reached.contains(shape.local) && reached.iter().all(|i| free(&i)))
            .collect()
    }

    fn session_steps(&self, world: &World, slot: usize, s: &Session, steps: &mut Vec<Step>) {
        steps.push(Step::Kill {
            slot,
            landed: false,
        });
        if s.in_flight.is_some() {
            steps.extend([Step::Kill { slot, landed: true }, Step::LandWrite(slot)]);
        } else if s.gate == GateState::Open && world.writes_left > 0 {
            steps.push(Step::BeginWrite(slot));
        }
        match &s.round {
            Some(_) => self.round_steps(world, slot, s, steps),
            None => self.thread_steps(world, slot, s, steps),
        }
        if !matches!(s.machine.phase(), Phase::Stopped(_)) {
            for brick in 0..self.bricks {
                self.worker_steps(world, slot, s, brick, steps);
            }
        }
    }

    fn round_steps(&self, world: &World, slot: usize, s: &Session, steps: &mut Vec<Step>) {
        let Some(round) = &s.round else { return };
        if !round.probed {
            // A healer's data lock is waited for.
            if round.asked.iter().all(|i| !world.bricks[i].is_copied_to()) {
                steps.push(Step::Probe(slot));
            }
        } else if round.to_store.is_empty() && round.to_sync.is_empty() {
            steps.push(Step::EndRound(slot));
        }
        steps.extend(round.to_store.iter().map(|b| Step::Store(slot, b)));
        steps.extend(round.to_sync.iter().map(|b| Step::Sync(slot, b)));
    }

    fn thread_steps(&self, world: &World, slot: usize, s: &Session, steps: &mut Vec<Step>) {
        if !s.inbox.is_empty() {
            steps.push(Step::Hear(slot));
        }
        match s.machine.phase() {
            Phase::Unmarked if s.gate == GateState::Hold => steps.push(Step::WantWrite(slot)),
            Phase::Stalled if !self.healing => steps.push(Step::QuorumTimeout(slot)),
            Phase::Dirty if world.remarks_left > 0 => steps.push(Step::WantMarks(slot)),
            _ => {}
        }
        if self.healing
            && let Some(map) = &world.maps[slot]
        {
            let clean = (0..self.bricks).filter(|&i| map.is_clean(i)).collect();
            let rows = world.rows();
            let stuck = world.stuck_left > 0;
            if may_unmark(s, &self.shape(slot), clean, &rows, stuck) {
                steps.push(Step::WantUnmark(slot));
            }
            // What it makes durable matters only if there is a crash to come.
            if s.in_flight.is_none() && world.faults_left > 0 {
                steps.push(Step::Close(slot));
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
                let wait = unnoted && !self.lacks(Protection::RoundKeepsConnection);
                let free_of_others = at.is_free_of_others(slot) || self.lacks(Protection::CopyLock);
                let free = at.is_free() && free_of_others;
                if (free || (unlocked && at.up)) && reports().count() < 2 && !wait {
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
        }
        if world.faults_left > 0 {
            for (marks_kept, data_kept) in
                [(true, true), (true, false), (false, true), (false, false)]
            {
                let marks_differ = marks_kept || at.stored != at.durable;
                let data_differ = data_kept || at.data != at.data_durable;
                if marks_differ && data_differ {
                    steps.push(Step::CrashHost {
                        host: brick,
                        marks_kept,
                        data_kept,
                    });
                }
            }
        }
        if at.lease.is_some_and(|lease| lease.link != Link::Live) {
            steps.push(Step::GhostGone(brick));
        }
    }

    fn stock_steps(&self, world: &World, steps: &mut Vec<Step>) {
        match world.stock {
            StockHealer::Idle => {
                let mut bricks = world.bricks[..self.bricks].iter();
                let free = bricks.all(|brick| brick.may_be_healed());
                let unaware = (0..world.daemons.len())
                    .any(|slot| world.session(slot).is_some_and(Session::is_unguarded));
                if free && !unaware {
                    steps.extend(directions(self, world).into_iter().map(Step::Heal));
                }
            }
            StockHealer::Undoing { .. } => {
                steps.push(Step::Undo);
                if world.faults_left > 0 {
                    steps.push(Step::KillStock);
                }
            }
        }
        let nobody = world.daemons.iter().all(|daemon| daemon == &Daemon::Closed);
        if world.clients_left > 0 && world.writes_left > 0 && nobody {
            self.client_steps(world, steps);
        }
    }

    /// A client while no session is open. It needs a quorum, and a copy
    /// that nobody whom it reaches accuses.
    fn client_steps(&self, world: &World, steps: &mut Vec<Step>) {
        for chosen in 0..1u32 << self.bricks {
            let reached: BrickSet = (0..self.bricks).filter(|i| chosen & 1 << i != 0).collect();
            let free = |i: usize| world.bricks[i].is_free() && !world.bricks[i].is_copied_to();
            let fresh = |copy: usize| reached.iter().all(|i| world.bricks[i].stored[copy] == 0);
            let copies = |i: &usize| self.has_data(*i);
            if self.shape(0).is_quorum(reached)
                && reached.iter().all(free)
                && reached.iter().filter(copies).any(fresh)
            {
                steps.push(Step::ClientWrite(reached));
            }
        }
    }
}
