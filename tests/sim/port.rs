//! The session's side of a brick: [`BrickPort`] over the simulated network. Others
//! act while a request is on its way, and while its answer is.

use std::time::Duration;

use bypass_blk::image::layout::FileIndex;
use bypass_blk::image::replica::brick_port::{
    BrickPort, Conflict, CopyState, Counter, Fence, Lock, PortError, Publication,
};
use bypass_blk::image::replica::copy_lock;
use bypass_blk::image::replica::holder::Holder;
use uuid::Uuid;

use super::brick::{Domain, Held, Owner};
use super::piece::Piece;
use super::sched::Process;
use super::sim::Sim;
use super::world::World;

pub struct SimPort {
    pub sim: Sim,
    pub process: Process,
    pub host: usize,
    pub brick: usize,
    pub me: Holder,
    pub conn: Option<Owner>,
    /// What is asked is about this one.
    pub file: usize,
    /// Locks that were taken through this connection, and on which file.
    pub taken: Vec<(usize, Lock)>,
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
        world.tell(|| {
            let (host, brick, file) = (self.host, self.brick, self.file);
            format!("host {host} at brick {brick}, file {file}: {what}")
        });
        drop(world);
        self.sim.sched.step();
        // An answer that is lost leaves what was done.
        let known = self.sim.world().gets_through(conn);
        if known { Ok(done) } else { Err(away()) }
    }

    /// AFR's data lock is held, so that counters and times may be changed.
    fn change(&mut self, what: &str, work: impl FnOnce(&mut Piece)) -> Result<(), PortError> {
        if !self.taken.contains(&(self.file, Lock::Data)) {
            return Err(away());
        }
        let (brick, file) = (self.brick, self.file);
        self.call(what, |world, _| work(&mut world.bricks[brick].files[file]))
    }

    fn lock_of(&self, owner: Owner, lock: Lock) -> Held {
        let domain = match lock {
            Lock::Session { .. } => Domain::Session,
            Lock::Heal => Domain::Heal,
            Lock::Rebalance => Domain::Rebalance,
            Lock::Data => Domain::Data,
            Lock::Copy => Domain::Copy,
        };
        Held {
            shared: lock == Lock::Session { shared: true },
            ..Held::whole(owner, domain, self.file)
        }
    }
}

/// An accusation of a promoted copy by one that was given up is taken off, as
/// `session_port.rs` does it.
fn overrule(world: &mut World, host: usize, brick: usize) {
    // Images in shards are not promoted.
    let accusation = world.bricks[brick].files[0].row.pending[host];
    let promotion = world.hosts[host].promotion.as_ref();
    if promotion.is_some_and(|promotion| promotion.overrules(brick, accusation)) {
        world.tell(|| format!("brick {brick} no longer accuses the promoted copy"));
        world.bricks[brick].files[0].change_row(|row| row.pending[host] = 0);
        world.bricks[brick].fsync(0);
    }
}

fn copy_state(world: &World, brick: usize, file: usize) -> CopyState {
    let of_it = &world.bricks[brick].files[file];
    let row = of_it.row;
    CopyState {
        gfid: world.files.gfids()[file],
        size: match world.bricks[brick].has_data {
            true => of_it.size,
            false => 0,
        },
        pending: row.pending[..world.bricks.len()].to_vec(),
        dirty: row.dirty,
        fenced: false,
    }
}

impl BrickPort for SimPort {
    fn select(&mut self, file: FileIndex) {
        self.file = file.at();
    }

    /// In one answer.
    fn look_at_all(&mut self, count: u32) -> Result<Vec<CopyState>, PortError> {
        let (brick, files) = (self.brick, 0..count as usize);
        self.call("look at all", |world, _| {
            files.map(|file| copy_state(world, brick, file)).collect()
        })
    }

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
        self.file = 0;
        self.taken.clear();
        Ok(())
    }

    fn try_lock(&mut self, lock: Lock) -> Result<bool, PortError> {
        let brick = self.brick;
        let held = self.lock_of(self.conn.ok_or_else(away)?, lock);
        let taken = self.call(&format!("lock {lock}"), |world, _| {
            world.bricks[brick].try_lock(held)
        })?;
        self.taken.extend(taken.then_some((self.file, lock)));
        Ok(taken)
    }

    fn unlock(&mut self, lock: Lock) -> Result<(), PortError> {
        let brick = self.brick;
        let file = self.file;
        self.taken.retain(|taken| *taken != (file, lock));
        let held = self.lock_of(self.conn.ok_or_else(away)?, lock);
        let was_there = self.call(&format!("unlock {lock}"), |world, conn| {
            world
                .stolen
                .retain(|stolen| lock != Lock::Heal || *stolen != (conn, file));
            world.bricks[brick].unlock(&held)
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
        let (brick, file) = (self.brick, self.file);
        self.call("look", |world, _| copy_state(world, brick, file))
    }

    fn probe(&mut self) -> Result<CopyState, PortError> {
        let (host, brick, file) = (self.host, self.brick, self.file);
        let conn = self.conn.ok_or_else(away)?;
        let taken = self.taken.iter().filter(|(of, _)| *of == file);
        let taken: Vec<_> = taken
            .map(|(_, lock)| (*lock, self.lock_of(conn, *lock)))
            .collect();
        self.call("probe", |world, _| {
            // As a brick tells it: somebody has a lock there.
            let stands = |lock: &Held| {
                let mut locks = world.bricks[brick].locks.iter();
                locks.any(|held| (held.domain, held.file) == (lock.domain, lock.file))
            };
            if let Some((gone, _)) = taken.iter().find(|(_, lock)| !stands(lock)) {
                return Err(PortError::LockGone(gone.to_string()));
            }
            overrule(world, host, brick);
            Ok(copy_state(world, brick, file))
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
                    ..Held::whole(conn, Domain::Copy, 0)
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
        self.change(&format!("add {changes:?}"), |file| {
            file.change_row(|row| {
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
        self.change("times", |file| {
            file.changes += 1;
            file.times = time;
        })
    }

    fn truncate(&mut self, size: u64) -> Result<(), PortError> {
        self.change(&format!("truncate to {size}"), |file| file.set_size(size))
    }

    fn fsync(&mut self) -> Result<(), PortError> {
        let (brick, file) = (self.brick, self.file);
        self.call("fsync", |world, _| world.bricks[brick].fsync(file))
    }

    fn fsync_all(&mut self, count: u32) -> Result<(), PortError> {
        let (brick, files) = (self.brick, 0..count as usize);
        self.call("fsync all", |world, _| {
            files.for_each(|file| world.bricks[brick].fsync(file));
        })
    }

    fn disconnect(&mut self) {
        if let Some(conn) = self.conn.take() {
            self.sim.world().hang_up(conn);
        }
    }
}
