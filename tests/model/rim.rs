//! A session's rim, as `open.rs`, `session.rs`, `marking.rs` and `worker.rs` have
//! it, around the real machine and the real decision.
//!
//! What is one step here is either one step there, or several between which
//! nothing that happens elsewhere matters: locks are taken together, since those
//! taken early only keep others away; a round's probes are one, since under our
//! locks nobody changes marks, and where a lock is lost its brick's part fails.

use bypass_blk::image::bricks::BrickSet;
use bypass_blk::image::decide::{Opening, Refusal, Seen, decide};
use bypass_blk::image::machine::{Action, Event, GateState, Machine, Phase};
use uuid::Uuid;

use super::setting::{Protection, Setting};
use super::world::{
    BRICKS, Breach, Brick, Conn, Daemon, Lease, Link, Report, Round, Session, World,
};

/// The world, with a session in `slot` at work.
pub struct Rim<'a> {
    pub setting: &'a Setting,
    pub world: &'a mut World,
    pub slot: usize,
}

/// What the bricks in `reached` tell the session in `slot`, and the decision.
pub fn decision(
    setting: &Setting,
    world: &World,
    slot: usize,
    reached: BrickSet,
) -> Result<Opening, Refusal> {
    let fools_ignored = setting.lacks(Protection::SelfAccusersBelieved);
    let seen = |brick: usize| {
        if !reached.contains(brick) {
            return match setting.lacks(Protection::OpenQuorum) {
                true => said(setting, brick, BrickSet::EMPTY),
                false => Seen::Away,
            };
        }
        let row = world.bricks[brick].stored;
        let ignored = fools_ignored && row.contains(brick);
        said(setting, brick, if ignored { BrickSet::EMPTY } else { row })
    };
    let seen: Vec<_> = (0..setting.bricks).map(seen).collect();
    decide(&setting.shape(slot), &seen)
}

fn said(setting: &Setting, brick: usize, accuses: BrickSet) -> Seen {
    Seen::Copy {
        gfid: Uuid::from_u128(1),
        size: if setting.has_data(brick) { 512 } else { 0 },
        accuses,
    }
}

impl Rim<'_> {
    fn local(&self) -> usize {
        self.setting.locals[self.slot]
    }

    /// The locks that a session has on one brick.
    fn lease(&self) -> Lease {
        Lease {
            slot: self.slot,
            link: Link::Live,
            published: false,
            heal: !self.setting.lacks(Protection::HealLock),
        }
    }

    /// Takes the locks on `bricks`, which are free.
    pub fn take_locks(&mut self, bricks: BrickSet) {
        let mut conns = [Conn::Away; BRICKS];
        for brick in bricks.iter() {
            conns[brick] = Conn::Joined;
            if self.locks_on(brick) {
                self.world.bricks[brick].lease = Some(self.lease());
            }
        }
        self.world.daemons[self.slot] = Daemon::Opening(conns);
    }

    /// Does the session take locks there at all?
    pub fn locks_on(&self, brick: usize) -> bool {
        brick == self.local() || !self.setting.lacks(Protection::LocksOnPeers)
    }

    /// Reads, decides, publishes; then the session is open, or gone.
    pub fn finish_open(&mut self, mut conns: [Conn; BRICKS]) {
        let held: BrickSet = (0..BRICKS).filter(|&i| conns[i] == Conn::Joined).collect();
        if decision(self.setting, self.world, self.slot, held).is_err() {
            self.world.daemon_gone(self.slot);
            return;
        }
        for conn in &mut conns {
            if *conn == Conn::Broken {
                *conn = Conn::Away;
            }
        }
        for lease in self.world.leases_of(self.slot) {
            lease.published |= lease.link == Link::Live;
        }
        let view = self.world.bricks[self.local()].data;
        if self.world.acked & !view != 0 {
            self.world.breach = Some(Breach::StaleOpen);
        }
        self.world.daemons[self.slot] = Daemon::Open(Session {
            machine: Machine::new(self.setting.shape(self.slot), held),
            gate: GateState::Hold,
            conns,
            inbox: Vec::new(),
            todo: Vec::new(),
            round: None,
            view,
        });
    }

    /// The session and its brick, both to be changed.
    fn with(&mut self, brick: usize) -> Option<(&mut Session, &mut Brick)> {
        match &mut self.world.daemons[self.slot] {
            Daemon::Open(session) => Some((session, &mut self.world.bricks[brick])),
            _ => None,
        }
    }

    fn session(&mut self) -> Option<&mut Session> {
        match &mut self.world.daemons[self.slot] {
            Daemon::Open(session) => Some(session),
            _ => None,
        }
    }

    /// The worker gives its connection up, knowingly: `State::lose`.
    pub fn lose(&mut self, brick: usize) {
        let slot = self.slot;
        let Some((session, at)) = self.with(brick) else {
            return;
        };
        if session.conns[brick] == Conn::Away {
            return;
        }
        session.leave(brick, Conn::Away);
        session.inbox.push(Report::Lost(brick));
        if let Some(lease) = at.lease.as_mut().filter(|lease| lease.slot == slot) {
            lease.link = Link::Ghost;
        }
    }

    /// A worker joins again: locks, then a look at the marks.
    pub fn rejoin(&mut self, brick: usize) {
        let lease = self.locks_on(brick).then(|| self.lease());
        if let Some((session, at)) = self.with(brick) {
            session.conns[brick] = Conn::Joined;
            let accuses = at.stored;
            session.inbox.push(Report::Rejoined { brick, accuses });
            at.lease = lease;
        }
    }

    /// The session's thread takes the next report.
    pub fn hear(&mut self) {
        let Some(report) = self.session().map(|session| session.inbox.remove(0)) else {
            return;
        };
        match report {
            Report::Lost(brick) => {
                self.take(Event::Lost(brick));
                if self.setting.without == Some(Protection::MarksStayOnLoss) {
                    self.take_marks_off(brick);
                }
            }
            Report::Rejoined { brick, accuses } => self.heard_rejoined(brick, accuses),
        }
    }

    fn heard_rejoined(&mut self, brick: usize, accuses: BrickSet) {
        let local = self.local();
        let accuser = match accuses.contains(local) {
            true => Some(brick),
            false => self.accuser_among_held(),
        };
        let now = self.world.bricks[local].data;
        let unwatched = self.setting.lacks(Protection::FileWatched);
        let unread = self.setting.lacks(Protection::MarksReadOnRejoin);
        let peers = self.setting.shape(self.slot).peers();
        let Some(session) = self.session() else {
            return;
        };
        let event = Event::Rejoined {
            brick,
            accuses: if unread { peers } else { accuses },
            local_accused_by: accuser.filter(|_| !unread),
            local_untouched: now == session.view || unwatched,
        };
        self.take(event);
    }

    fn accuser_among_held(&mut self) -> Option<usize> {
        let (local, rows) = (self.local(), self.world.rows());
        let session = self.session()?;
        let held = session.machine.held();
        let mut asked = held.iter().filter(|&i| session.conns[i] == Conn::Joined);
        asked.find(|&i| rows[i].contains(local))
    }

    /// A mutation: whoever is lost is no longer accused.
    fn take_marks_off(&mut self, lost: usize) {
        let held = self.session().map(|session| session.machine.held());
        for brick in held.unwrap_or_default().iter() {
            self.world.bricks[brick].stored.remove(lost);
            self.world.bricks[brick].durable.remove(lost);
        }
    }

    /// `Runner::take`.
    pub fn take(&mut self, event: Event) {
        if let Some(session) = self.session() {
            let actions = session.machine.step(event);
            session.todo.extend(actions);
        }
        self.work();
    }

    fn work(&mut self) {
        let early = self.setting.lacks(Protection::MarksBeforeGate);
        let unstoppable = self.setting.lacks(Protection::Stopping);
        while let Some(session) = self.session()
            && session.round.is_none()
            && !session.todo.is_empty()
        {
            match session.todo.remove(0) {
                Action::SetGate(GateState::FailAll) if unstoppable => {}
                Action::SetGate(gate) => session.gate = gate,
                Action::Publish(brick) => self.publish(brick),
                Action::Mark(asked) => {
                    if early {
                        session.gate = GateState::Open;
                    }
                    session.round = Some(Round {
                        asked,
                        ..Round::default()
                    });
                }
                Action::Stop(_) if !unstoppable => self.let_go(),
                Action::StartQuorumTimer | Action::StopQuorumTimer | Action::Stop(_) => {}
            }
        }
    }

    /// Every connection is given up for good.
    fn let_go(&mut self) {
        if let Some(session) = self.session() {
            session.conns = [Conn::Away; BRICKS];
            session.inbox.clear();
        }
        for lease in self.world.leases_of(self.slot) {
            lease.link = Link::Dead;
        }
    }

    fn publish(&mut self, brick: usize) {
        let Some((session, at)) = self.with(brick) else {
            return;
        };
        match session.conns[brick] {
            Conn::Joined => {
                if let Some(lease) = &mut at.lease {
                    lease.published = true;
                }
            }
            Conn::Broken | Conn::Away => self.lose(brick),
        }
    }

    /// The marking round's first half: the bricks are asked for their marks.
    pub fn probe_for_round(&mut self) {
        let shape = self.setting.shape(self.slot);
        let rows = self.world.rows();
        let data = self.world.bricks[shape.local].data;
        let compared = self.setting.with.file_compared;
        let blind = self.setting.lacks(Protection::MarksReadOnMarking);
        let local_last = self.setting.with.local_last;
        let only_local = self.setting.lacks(Protection::MarksOnPeers);
        let Some(session) = self.session() else {
            return;
        };
        let Some(round) = &mut session.round else {
            return;
        };
        round.probed = true;
        let mut accuser = None;
        for brick in round.asked.iter() {
            if session.conns[brick] != Conn::Joined {
                round.failed.insert(brick);
            } else if only_local && brick != shape.local {
                round.marked.insert(brick);
            } else {
                round.missing[brick] = shape.peers().without(rows[brick]);
                round.local_due |= local_last && brick == shape.local;
                if !local_last || brick != shape.local {
                    round.to_store.insert(brick);
                }
            }
            if rows[brick].contains(shape.local) && !round.failed.contains(brick) {
                accuser = Some(brick);
            }
        }
        let first = session.machine.phase() == &Phase::Marking;
        if compared && first && session.view != data {
            // The machine has no event for it yet; this one stops it, too.
            accuser = Some(shape.local);
        }
        match accuser.filter(|_| !blind) {
            Some(by) => self.conclude(Some(by)),
            None => self.local_turn(),
        }
    }

    /// XATTROP on one brick.
    pub fn store_mark(&mut self, brick: usize) {
        let unsynced = self.setting.lacks(Protection::MarksDurable);
        let Some((session, at)) = self.with(brick) else {
            return;
        };
        let joined = session.conns[brick] == Conn::Joined;
        if let Some(round) = &mut session.round {
            round.to_store.remove(brick);
            if !joined {
                round.failed.insert(brick);
            } else {
                at.stored = at
                    .stored
                    .iter()
                    .chain(round.missing[brick].iter())
                    .collect();
                let next = if unsynced {
                    &mut round.marked
                } else {
                    &mut round.to_sync
                };
                next.insert(brick);
            }
        }
        self.local_turn();
    }

    /// FSYNC on one brick.
    pub fn sync_mark(&mut self, brick: usize) {
        let Some((session, at)) = self.with(brick) else {
            return;
        };
        let joined = session.conns[brick] == Conn::Joined;
        if let Some(round) = &mut session.round {
            round.to_sync.remove(brick);
            if joined {
                at.durable = at.stored;
                round.marked.insert(brick);
            } else {
                round.failed.insert(brick);
            }
        }
        self.local_turn();
    }

    /// An amendment: the local brick's turn, once the others are done with and
    /// only if it completes a quorum.
    fn local_turn(&mut self) {
        let shape = self.setting.shape(self.slot);
        let Some(session) = self.session() else {
            return;
        };
        let late = session.machine.phase() == &Phase::Dirty;
        let Some(round) = &mut session.round else {
            return;
        };
        if round.local_due && round.to_store.is_empty() && round.to_sync.is_empty() {
            round.local_due = false;
            let with_local = round.marked.iter().chain([shape.local]).collect();
            if late || shape.is_quorum(with_local) {
                round.to_store.insert(shape.local);
            }
        }
    }

    /// The data locks are given back, which fails where one was lost.
    pub fn end_round(&mut self) {
        let unseen = self.setting.lacks(Protection::LocksSeenToTheEnd);
        if let Some(round) = self.session().and_then(|session| session.round.as_mut())
            && !unseen
        {
            round.failed = round.failed.iter().chain(round.unlocked.iter()).collect();
        }
        self.conclude(None);
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

    /// `Runner::mark_local_file`: past the brick's process, which is away.
    fn mark_local_file(&mut self, marked: BrickSet) {
        let shape = self.setting.shape(self.slot);
        let local_last = self.setting.with.local_last;
        let Some((session, at)) = self.with(shape.local) else {
            return;
        };
        let late = session.machine.phase() == &Phase::Dirty;
        let useless = local_last && !late && !shape.is_quorum(marked);
        if session.machine.held().contains(shape.local) || useless {
            return;
        }
        at.stored = at.stored.iter().chain(shape.peers().iter()).collect();
        at.durable = at.stored;
        session.machine.local_marked();
    }
}
