//! The session's side of a brick: [`BrickPort`] over the simulated network. Others
//! act while a request is on its way, and while its answer is.

use std::time::Duration;

use bypass_blk::image::replica::brick_port::{
    BrickPort, Conflict, CopyState, Counter, Fence, Lock, PortError, Publication,
};
use bypass_blk::image::replica::copy_lock;
use bypass_blk::image::replica::holder::Holder;
use uuid::Uuid;

use super::brick::{Domain, Held, Owner, SIZE};
use super::sched::Process;
use super::sim::Sim;
use super::world::{GFID, World};

pub struct SimPort {
    pub sim: Sim,
    pub process: Process,
    pub host: usize,
    pub brick: usize,
    pub me: Holder,
    pub conn: Option<Owner>,
    /// AFR's data lock is held through this connection.
    pub data_locked: bool,
    /// Locks that were taken through it.
    pub taken: Vec<Lock>,
}

fn away() -> PortError {
    PortError::Away("no connection".to_owned())
}

impl SimPort {
    fn call<T>(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut World, Owner) -> T,
    ) -> Result<T, PortError> {
        let conn = self.conn.ok_or_else(away)?;
        self.sim.sched.step();
        let mut world = self.sim.world();
        if !world.gets_through(conn) {
            return Err(away());
        }
        let done = work(&mut world, conn);
        world.tell(|| format!("host {} at brick {}: {what}", self.host, self.brick));
        drop(world);
        self.sim.sched.step();
        // An answer that is lost leaves what was done.
        let known = self.sim.world().gets_through(conn);
        if known { Ok(done) } else { Err(away()) }
    }

    fn lock_of(owner: Owner, lock: Lock) -> Held {
        let domain = match lock {
            Lock::Session { .. } => Domain::Session,
            Lock::Heal => Domain::Heal,
            Lock::Rebalance => Domain::Rebalance,
            Lock::Data => Domain::Data,
            Lock::Copy => Domain::Copy,
        };
        Held {
            shared: lock == Lock::Session { shared: true },
            ..Held::whole(owner, domain)
        }
    }
}

/// An accusation of a promoted copy by one that was given up is taken off, as
/// `session_port.rs` does it.
fn overrule(world: &mut World, host: usize, brick: usize) {
    let accusation = world.bricks[brick].row.pending[host];
    let promotion = world.hosts[host].promotion.as_ref();
    if promotion.is_some_and(|promotion| promotion.overrules(brick, accusation)) {
        world.tell(|| format!("brick {brick} no longer accuses the promoted copy"));
        world.bricks[brick].change_row(|row| row.pending[host] = 0);
        world.bricks[brick].fsync();
    }
}

fn copy_state(world: &World, brick: usize) -> CopyState {
    let row = world.bricks[brick].row;
    let size = match world.bricks[brick].has_data {
        true => SIZE,
        false => 0,
    };
    CopyState {
        gfid: GFID,
        size,
        pending: row.pending[..world.bricks.len()].to_vec(),
        dirty: row.dirty,
        fenced: false,
    }
}

impl BrickPort for SimPort {
    fn connect(&mut self, lost: Box<dyn FnOnce(String) + Send>) -> Result<(), PortError> {
        self.disconnect();
        self.sim.sched.step();
        let mut world = self.sim.world();
        let conn = world.connect(self.process, self.host, self.brick);
        let conn = conn.ok_or_else(away)?;
        if let Some(conn) = world.conns.get_mut(&conn) {
            conn.lost = Some(lost);
        }
        self.conn = Some(conn);
        self.data_locked = false;
        self.taken.clear();
        Ok(())
    }

    fn try_lock(&mut self, lock: Lock) -> Result<bool, PortError> {
        let brick = self.brick;
        let taken = self.call(&format!("lock {lock}"), |world, conn| {
            world.bricks[brick].try_lock(Self::lock_of(conn, lock))
        })?;
        self.data_locked |= taken && lock == Lock::Data;
        self.taken.extend(taken.then_some(lock));
        Ok(taken)
    }

    fn unlock(&mut self, lock: Lock) -> Result<(), PortError> {
        let brick = self.brick;
        self.data_locked &= lock != Lock::Data;
        self.taken.retain(|taken| *taken != lock);
        let was_there = self.call(&format!("unlock {lock}"), |world, conn| {
            world.bricks[brick].unlock(&Self::lock_of(conn, lock))
        })?;
        let refused = || PortError::Refused("it was not locked".to_owned());
        was_there.then_some(()).ok_or_else(refused)
    }

    /// Stock heals of the simulator take all their locks or none, and wait for none.
    fn turn_heals_away(&mut self) -> Result<bool, PortError> {
        Ok(false)
    }

    fn holder(&mut self) -> Result<Option<Holder>, PortError> {
        let brick = self.brick;
        self.call("holder", |world, conn| {
            let record = world.bricks[brick].record.as_ref();
            let other = record.filter(|(owner, _)| *owner != conn);
            other.map(|(_, holder)| holder.clone())
        })
    }

    fn publish(&mut self, _fence: Fence, _read_only: bool) -> Result<Publication, PortError> {
        let (brick, me) = (self.brick, self.me.clone());
        self.call("publish", |world, conn| {
            let record = &mut world.bricks[brick].record;
            match record {
                Some((owner, holder)) if *owner != conn => Publication::InUse(Conflict {
                    holder: Some(holder.clone()),
                    pid: 0,
                }),
                _ => {
                    *record = Some((conn, me));
                    Publication::Done
                }
            }
        })
    }

    fn lift_fence(&mut self) -> Result<(), PortError> {
        self.call("lift fence", |_, _| ())
    }

    fn look(&mut self) -> Result<CopyState, PortError> {
        let brick = self.brick;
        self.call("look", |world, _| copy_state(world, brick))
    }

    fn probe(&mut self) -> Result<CopyState, PortError> {
        let (host, brick) = (self.host, self.brick);
        let taken = self.taken.clone();
        self.call("probe", |world, conn| {
            // As a brick tells it: somebody has a lock there.
            let stands = |lock: &&Lock| {
                let domain = Self::lock_of(conn, **lock).domain;
                let mut locks = world.bricks[brick].locks.iter();
                locks.any(|held| held.domain == domain)
            };
            if let Some(gone) = taken.iter().find(|lock| !stands(lock)) {
                return Err(PortError::LockGone(gone.to_string()));
            }
            overrule(world, host, brick);
            Ok(copy_state(world, brick))
        })?
    }

    fn is_copied_to_for_others(&mut self, ours: Uuid) -> Result<bool, PortError> {
        let brick = self.brick;
        self.call("copied to?", |world, conn| {
            copy_lock::others(ours).into_iter().any(|range| {
                let lock = Held {
                    first: range.start,
                    last: match range.len {
                        0 => u64::MAX,
                        len => range.start + len - 1,
                    },
                    ..Held::whole(conn, Domain::Copy)
                };
                let free = world.bricks[brick].try_lock(lock.clone());
                if free {
                    world.bricks[brick].unlock(&lock);
                }
                !free
            })
        })
    }

    fn add_to_counters(&mut self, changes: &[(Counter, i32)]) -> Result<(), PortError> {
        if !self.data_locked {
            return Err(away());
        }
        let brick = self.brick;
        self.call(&format!("add {changes:?}"), |world, _| {
            world.bricks[brick].change_row(|row| {
                for (counter, change) in changes {
                    let counter = match counter {
                        Counter::Pending(child) => &mut row.pending[*child],
                        Counter::Dirty => &mut row.dirty,
                    };
                    *counter = counter.wrapping_add(*change);
                }
            });
        })
    }

    /// As every change of the file's times it is seen by whoever watches the file.
    fn set_times(&mut self, time: Duration) -> Result<(), PortError> {
        if !self.data_locked {
            return Err(away());
        }
        let brick = self.brick;
        self.call("times", |world, _| {
            world.bricks[brick].changes += 1;
            world.bricks[brick].times = time;
        })
    }

    fn truncate(&mut self, _size: u64) -> Result<(), PortError> {
        Err(PortError::Refused(
            "simulated images keep their size".to_owned(),
        ))
    }

    fn fsync(&mut self) -> Result<(), PortError> {
        let brick = self.brick;
        self.call("fsync", |world, _| world.bricks[brick].fsync())
    }

    fn disconnect(&mut self) {
        if let Some(conn) = self.conn.take() {
            self.sim.world().hang_up(conn);
        }
    }
}
