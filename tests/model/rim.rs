//! A session's rim, as `open.rs`, `session.rs`, `runner.rs` and `brick_worker.rs` have it,
//! around the real machine and the real decision. Rounds of marking and unmarking
//! are in `round.rs`.
//!
//! What is one step here is either one step there, or several between which
//! nothing that happens elsewhere matters: locks are taken together, since those
//! taken early only keep others away; a round's probes are one, since under our
//! locks nobody changes marks, and where a lock is lost its brick's part fails.

use bypass_blk::image::replica::brick_set::BrickSet;
use bypass_blk::image::replica::freshness::{Opening, Refusal, Seen, decide};
use bypass_blk::image::replica::unmarking::Absent;
use bypass_blk::image::session::state_machine::{Action, Event, GateState, Machine, Phase};
use uuid::Uuid;

use super::daemon::{Conn, Daemon, Report, Round, Session};
use super::debt;
use super::setting::{Protection, Setting};
use super::world::{BRICKS, Breach, Brick, Lease, Link, Row, World, accused_by};

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
        let row = accused_by(&world.bricks[brick].stored);
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
    /// Child index of the session's own brick.
    pub fn local(&self) -> usize {
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
    pub fn take_locks(&mut self, bricks: BrickSet) -> [Conn; BRICKS] {
        let mut conns = [Conn::Away; BRICKS];
        for brick in bricks.iter() {
            conns[brick] = Conn::Joined;
            if self.locks_on(brick) {
                self.world.bricks[brick].lease = Some(self.lease());
            }
        }
        conns
    }

    /// Does the session take locks there at all?
    fn locks_on(&self, brick: usize) -> bool {
        brick == self.local() || !self.setting.lacks(Protection::LocksOnPeers)
    }

    /// `BrickPort::probe`: an accusation that a promotion of the local copy overruled
    /// is taken off.
    pub fn take_overruled_off(&mut self, brick: usize) {
        let local = self.local();
        let at = &mut self.world.bricks[brick];
        let overruled = self.world.overruled[self.slot];
        if at.stored[local] != 0 && overruled == Some((brick, at.stored[local])) {
            at.stored[local] = 0;
            at.fsync();
        }
    }

    /// Reads, decides, publishes; then the session is open, or gone.
    pub fn finish_open(&mut self, mut conns: [Conn; BRICKS]) {
        let held: BrickSet = (0..BRICKS).filter(|&i| conns[i] == Conn::Joined).collect();
        for brick in held.iter() {
            self.take_overruled_off(brick);
        }
        let promoted = |i: usize| self.world.bricks[i].witness;
        let elsewhere = held.iter().any(promoted) && !promoted(self.local());
        if elsewhere || decision(self.setting, self.world, self.slot, held).is_err() {
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
        let rows = self.world.rows();
        let not_reached = debt::not_reached(self.setting, self.world, held);
        let known = std::array::from_fn(|brick| match held.contains(brick) {
            true => Absent::Read(accused_by(&rows[brick])),
            false => not_reached,
        });
        let view = self.world.bricks[self.local()].data;
        if self.world.acked & !view != 0 {
            self.world.breach = Some(Breach::StaleOpen);
        }
        debt::adopt(self.setting, self.world, self.slot, held);
        self.world.daemons[self.slot] = Daemon::Open(Session {
            machine: Machine::new(self.setting.shape(self.slot), held),
            gate: GateState::Hold,
            conns,
            inbox: Vec::new(),
            todo: Vec::new(),
            round: None,
            view,
            known,
            in_flight: None,
        });
        self.mark_debt();
    }

    /// `Runner::mark_debt`: what reachable peers miss has this session's marks before it is
    /// healed, and what others miss has a mark.
    fn mark_debt(&mut self) {
        let Some(map) = self.world.maps[self.slot] else {
            return;
        };
        let peers = self.setting.shape(self.slot).peers();
        let rows = self.world.rows();
        let Some(session) = self.session() else {
            return;
        };
        let held = session.machine.held();
        let stands = |peer: usize| held.iter().any(|brick| rows[brick][peer] != 0);
        let stamped = |peer: usize| {
            let stamp = |brick: usize| rows[brick][peer] == map.stamp;
            map.stamp != 0 && held.iter().all(stamp)
        };
        let unmarked = |peer: &usize| match held.contains(*peer) {
            true => !stamped(*peer),
            false => !stands(*peer),
        };
        let behind = peers.iter().filter(|&peer| !map.is_clean(peer));
        if behind.into_iter().any(|peer| unmarked(&peer))
            && session.machine.phase() == &Phase::Unmarked
        {
            self.take(Event::WriteWanted);
        }
    }

    /// The session and its brick, both to be changed.
    pub fn with(&mut self, brick: usize) -> Option<(&mut Session, &mut Brick)> {
        match &mut self.world.daemons[self.slot] {
            Daemon::Open(session) => Some((session, &mut self.world.bricks[brick])),
            _ => None,
        }
    }

    /// The session.
    pub fn session(&mut self) -> Option<&mut Session> {
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
        self.take_overruled_off(brick);
        if let Some((session, at)) = self.with(brick) {
            let row = at.stored;
            session.conns[brick] = Conn::Joined;
            session.inbox.push(Report::Rejoined { brick, row });
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
                if self.setting.lacks(Protection::MarksStayOnLoss) {
                    self.take_marks_off(brick);
                }
            }
            Report::Rejoined { brick, row } => self.heard_rejoined(brick, row),
        }
    }

    fn heard_rejoined(&mut self, brick: usize, row: Row) {
        let local = self.local();
        let accused = row[local] != 0;
        let accuser = self.accuser_among_held().or(accused.then_some(brick));
        let now = self.world.bricks[local].data;
        let unread = self.setting.lacks(Protection::MarksReadAgain);
        let unwatched = self.setting.lacks(Protection::FileWatched);
        let shape = self.setting.shape(self.slot);
        let map = self.world.maps[self.slot];
        let stands = map.is_some_and(|map| map.stands_on(&shape, &row));
        let Some(session) = self.session() else {
            return;
        };
        session.known[brick] = Absent::Read(accused_by(&row));
        let event = Event::Rejoined {
            brick,
            marks_stand: stands || unread,
            local_accused_by: accuser.filter(|_| !unread),
            local_untouched: now == session.view || unwatched,
        };
        self.take(event);
        self.mark_debt();
    }

    fn accuser_among_held(&mut self) -> Option<usize> {
        let local = self.local();
        let rows = self.world.rows();
        let session = self.session()?;
        let held = session.machine.held();
        let mut asked = held.iter().filter(|&i| session.conns[i] == Conn::Joined);
        asked.find(|&i| rows[i][local] != 0)
    }

    /// A mutation: whoever is lost is no longer accused.
    fn take_marks_off(&mut self, lost: usize) {
        let held = self.session().map(|session| session.machine.held());
        for brick in held.unwrap_or_default().iter() {
            self.world.bricks[brick].stored[lost] = 0;
            self.world.bricks[brick].durable[lost] = 0;
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
        while let Some(session) = self.session()
            && session.round.is_none()
            && !session.todo.is_empty()
        {
            match session.todo.remove(0) {
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
                Action::Stop(_) => self.let_go(),
                // The view of the local file is always up to date here.
                Action::StartQuorumTimer | Action::StopQuorumTimer | Action::WatchLocal => {}
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
}
