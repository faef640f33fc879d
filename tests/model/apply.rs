//! What becomes of the world.

use bypass_blk::image::replica::brick_set::BrickSet;
use bypass_blk::image::session::state_machine::Event;

use super::daemon::Daemon;
use super::debt;
use super::healing;
use super::promoting;
use super::rim::Rim;
use super::setting::{Protection, Setting};
use super::steps::Step;
use super::stock::Direction;
use super::world::{Breach, StockHealer, World};

impl Setting {
    /// Takes the step.
    pub fn apply(&self, world: &mut World, step: Step) {
        if is_fault(step) {
            world.faults_left -= 1;
        }
        match step {
            Step::Open(slot, reached) => {
                world.opens_left -= 1;
                let conns = self.rim(world, slot).take_locks(reached);
                world.daemons[slot] = Daemon::Opening(conns);
            }
            Step::FinishOpen(slot) => {
                if let Daemon::Opening(conns) = world.daemons[slot] {
                    self.rim(world, slot).finish_open(conns);
                }
            }
            Step::Kill { slot, landed } => self.kill(world, slot, landed),
            Step::Close(slot) => self.close(world, slot),
            Step::WantWrite(slot) => self.rim(world, slot).take(Event::WriteWanted),
            Step::BeginWrite(slot) => self.begin_write(world, slot),
            Step::LandWrite(slot) => self.land_write(world, slot),
            Step::WantMarks(slot) => {
                world.remarks_left -= 1;
                self.rim(world, slot).take(Event::MarkAgain);
            }
            Step::WantUnmark(slot) => self.rim(world, slot).want_unmark(),
            Step::Probe(slot) => self.rim(world, slot).probe_for_round(),
            Step::Store(slot, brick) => self.rim(world, slot).store(brick),
            Step::Sync(slot, brick) => self.rim(world, slot).sync(brick),
            Step::EndRound(slot) => self.rim(world, slot).end_round(),
            Step::Hear(slot) => self.rim(world, slot).hear(),
            Step::QuorumTimeout(slot) => self.rim(world, slot).take(Event::QuorumTimeout),
            Step::Notice(slot, brick) | Step::SessionDrops(slot, brick) => {
                self.rim(world, slot).lose(brick);
            }
            Step::Rejoin(slot, brick) => self.rim(world, slot).rejoin(brick),
            Step::FindOther(slot, brick) => {
                let accused = world.bricks[brick].stored[self.locals[slot]] != 0;
                self.rim(world, slot)
                    .take(Event::TakenByOther { brick, accused });
            }
            Step::BrickDrops(slot, brick) => brick_drops(world, slot, brick),
            Step::GhostGone(brick) => world.bricks[brick].lease = None,
            Step::KillBrick(brick) => world.brick_down(brick),
            Step::CrashHost {
                host,
                marks_kept,
                data_kept,
            } => self.crash(world, host, marks_kept, data_kept),
            Step::Return(brick) => world.bricks[brick].up = true,
            Step::Attach { slot, peer } => healing::attach(world, slot, peer),
            Step::Detach(brick) => world.bricks[brick].copier = None,
            Step::SendCopy { slot, peer, extent } => {
                healing::send_copy(self, world, slot, peer, extent);
            }
            Step::LandCopy(brick) => healing::land_copy(self, world, brick),
            Step::EndCopy(slot) => healing::end_copy(self, world, slot),
            Step::KillHealer(slot) => world.healer_gone(slot),
            Step::CopierGone(brick) => world.bricks[brick].copier = None,
            Step::ClientWrite(reached) => self.client_write(world, reached),
            Step::Promote(slot, reached) => promoting::begin(self, world, slot, reached),
            Step::PromoteOn(slot, brick) => promoting::change(self, world, slot, brick),
            Step::Heal(direction) => self.heal(world, direction),
            Step::Undo => self.undo(world),
            Step::KillStock => world.stock_heal_over(),
        }
    }

    /// The session in `slot`, to be worked on.
    pub fn rim<'a>(&'a self, world: &'a mut World, slot: usize) -> Rim<'a> {
        Rim {
            setting: self,
            world,
            slot,
        }
    }

    fn begin_write(&self, world: &mut World, slot: usize) {
        let write = world.begin_write(self);
        if slot == 1 {
            world.by_second |= 1 << write;
        }
        if !self.lacks(Protection::MapBeforeWrite) {
            debt::begin_write(self, world, slot, self.extent_of(write));
        }
        if let Daemon::Open(session) = &mut world.daemons[slot] {
            session.in_flight = Some(write);
        }
        if !self.healing {
            self.land_write(world, slot);
        }
    }

    fn land_write(&self, world: &mut World, slot: usize) {
        let Some(write) = world.session(slot).and_then(|session| session.in_flight) else {
            return;
        };
        let shape = self.shape(slot);
        let accusing = |i: &usize| {
            let brick = &world.bricks[*i];
            shape.peers().iter().all(|peer| brick.durable[peer] != 0)
        };
        let marked = shape.is_quorum((0..self.bricks).filter(accusing).collect());
        let data = world.bricks[shape.local].data;
        let viewed = world.session(slot).map(|session| session.view);
        if !marked {
            world.breach = Some(Breach::UnmarkedWrite);
        } else if world.acked & !data != 0 {
            world.breach = Some(Breach::StaleWrite);
        } else if viewed != Some(data) {
            world.breach = Some(Breach::ChangedUnderneath);
        }
        if self.lacks(Protection::MapBeforeWrite) {
            debt::begin_write(self, world, slot, self.extent_of(write));
        }
        world.bricks[shape.local].data |= 1 << write;
        world.acked |= 1 << write;
        if let Daemon::Open(session) = &mut world.daemons[slot] {
            session.view |= 1 << write;
            session.in_flight = None;
        }
    }

    fn kill(&self, world: &mut World, slot: usize, landed: bool) {
        let in_flight = world.session(slot).and_then(|session| session.in_flight);
        if let Some(write) = in_flight.filter(|_| landed) {
            world.bricks[self.locals[slot]].data |= 1 << write;
        }
        world.daemon_gone(slot);
    }

    fn close(&self, world: &mut World, slot: usize) {
        let local = &mut world.bricks[self.locals[slot]];
        local.data_durable = local.data;
        if let Some(map) = &mut world.maps[slot] {
            map.clean_close = true;
        }
        world.daemon_gone(slot);
    }

    fn crash(&self, world: &mut World, host: usize, marks_kept: bool, data_kept: bool) {
        for slot in (0..world.daemons.len()).filter(|&slot| self.locals[slot] == host) {
            world.daemon_gone(slot);
            world.healer_gone(slot);
            let believed = world.maps[slot].is_some_and(|map| map.clean_close);
            if self.lacks(Protection::MapDistrusted) {
                if let Some(map) = world.maps[slot].as_mut().filter(|_| !believed) {
                    map.dirty = [0; super::world::BRICKS];
                }
            } else if !believed {
                world.maps[slot] = None;
            }
        }
        let brick = &mut world.bricks[host];
        match marks_kept {
            true => brick.durable = brick.stored,
            false => brick.stored = brick.durable,
        }
        let lost = brick.data & !brick.data_durable;
        match data_kept {
            true => brick.data_durable = brick.data,
            false => brick.data = brick.data_durable,
        }
        if !data_kept {
            // What was written elsewhere must be there still.
            let here = |slot: usize| self.locals[slot] == host;
            let by_second = world.by_second;
            let first = if here(0) { !by_second } else { 0 };
            let second = if here(1) { by_second } else { 0 };
            world.acked &= !(lost & (first | second));
        }
        world.brick_down(host);
    }

    fn client_write(&self, world: &mut World, reached: BrickSet) {
        world.clients_left -= 1;
        let write = world.begin_write(self);
        let missed = self.shape(0).copies().without(reached);
        for i in reached.iter() {
            let brick = &mut world.bricks[i];
            for copy in missed.iter() {
                brick.stored[copy] += 1;
            }
            if self.has_data(i) {
                brick.data |= 1 << write;
            }
            brick.fsync();
        }
        world.acked |= 1 << write;
    }

    /// The copy that is read is taken to be on its disk: known to be missing from
    /// stock Gluster after a `kill -9` of a session.
    fn heal(&self, world: &mut World, direction: Direction) {
        world.stock = StockHealer::Undoing {
            rows: world.rows(),
            next: 0,
        };
        let source = &mut world.bricks[direction.source];
        source.data_durable = source.data;
        let fresh = source.data;
        for brick in 0..self.bricks {
            world.bricks[brick].healed = true;
            if direction.sinks.contains(brick) && self.has_data(brick) {
                world.bricks[brick].data = fresh;
                world.bricks[brick].fsync();
            }
        }
    }

    /// On all bricks at once and durable, as is assumed of it.
    fn undo(&self, world: &mut World) {
        let StockHealer::Undoing { rows, .. } = world.stock else {
            return;
        };
        for (brick, read) in world.bricks.iter_mut().zip(rows) {
            for (counter, read) in brick.stored.iter_mut().zip(read) {
                *counter -= read;
            }
            brick.durable = brick.stored;
            brick.witness = false;
        }
        world.stock_heal_over();
    }
}

fn is_fault(step: Step) -> bool {
    matches!(
        step,
        Step::BrickDrops(..)
            | Step::SessionDrops(..)
            | Step::KillBrick(..)
            | Step::CrashHost { .. }
            | Step::KillHealer(..)
            | Step::KillStock
    )
}

fn brick_drops(world: &mut World, slot: usize, brick: usize) {
    let lease = &mut world.bricks[brick].lease;
    if lease.is_some_and(|lease| lease.slot == slot) {
        *lease = None;
    }
    world.connection_broken(slot, brick);
}
