//! The healer's side of a brick: [`HealPeer`] over the simulated network. Writes are
//! carried out late, in any order.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bypass_blk::gluster::StrongChecksum;
use bypass_blk::image::heal::{Answer, HealPeer, PeerError};
use sha2::{Digest, Sha256};

use super::brick::{Domain, Held, Owner, SECTOR, SIZE, bytes_of, version_of};
use super::net::Late;
use super::sim::Sim;
use super::world::World;

/// Long enough for a session to end and another to begin.
const STUCK: Duration = Duration::from_secs(8);

#[derive(Clone)]
pub struct SimPeer {
    pub sim: Sim,
    pub brick: usize,
    pub conn: Owner,
}

fn away() -> PeerError {
    PeerError::Away {
        peer: "peer".into(),
        source: "gone".into(),
    }
}

fn sectors(range: &Range<u64>) -> Range<usize> {
    (range.start / SECTOR) as usize..(range.end / SECTOR) as usize
}

impl SimPeer {
    fn call<T>(&self, what: &str, work: impl FnOnce(&mut World) -> T) -> Result<T, PeerError> {
        self.dawdle();
        let mut world = self.sim.world();
        if !world.gets_through(self.conn) {
            return Err(away());
        }
        let done = work(&mut world);
        world.tell(|| format!("healer {} at brick {}: {what}", self.conn, self.brick));
        drop(world);
        self.sim.sched.step();
        let known = self.sim.world().gets_through(self.conn);
        if known { Ok(done) } else { Err(away()) }
    }

    /// Now and then a healer gets no further for a while.
    fn dawdle(&self) {
        let stuck = self.sim.world().rng.chance(200);
        let limit = if stuck { STUCK } else { Duration::ZERO };
        self.sim.sched.wait(&mut || false, Some(limit));
    }

    fn lock_of(&self, range: &Range<u64>) -> Held {
        Held {
            first: range.start,
            last: range.end - 1,
            ..Held::whole(self.conn, Domain::Data)
        }
    }

    /// Takes any lock, of the copy domain say.
    pub fn take(&self, lock: Held) -> Result<bool, PeerError> {
        self.call("lock copy", |world| world.bricks[self.brick].try_lock(lock))
    }

    /// The session whose record is there.
    pub fn holder(&self) -> Result<Option<uuid::Uuid>, PeerError> {
        self.call("holder", |world| {
            let record = world.bricks[self.brick].record.as_ref();
            record.map(|(_, holder)| holder.session)
        })
    }

    fn send(&self, offset: u64, versions: Vec<u64>) -> Result<Answer<()>, PeerError> {
        let number = self.call("write", |world| {
            world.next_version += 1;
            let late = Late {
                number: world.next_version,
                sector: (offset / SECTOR) as usize,
                versions,
            };
            let conn = world.conns.get_mut(&self.conn);
            conn.into_iter()
                .for_each(|conn| conn.late.push(late.clone()));
            late.number
        })?;
        let peer = self.clone();
        Ok(Answer::new(move || {
            peer.call("written", |world| {
                let Some(conn) = world.conns.get_mut(&peer.conn) else {
                    return;
                };
                let index = conn.late.iter().position(|late| late.number == number);
                if let Some(late) = index.map(|index| conn.late.swap_remove(index)) {
                    world.carry_out(peer.brick, &late);
                }
            })
        }))
    }
}

impl HealPeer for SimPeer {
    fn name(&self) -> &str {
        "peer"
    }

    fn is_connected(&self) -> bool {
        let world = self.sim.world();
        world.conns.get(&self.conn).is_some_and(|conn| conn.client)
    }

    fn close(&self) {
        self.sim.world().hang_up(self.conn);
    }

    fn size(&self) -> Result<u64, PeerError> {
        self.call("size", |_| SIZE)
    }

    fn own_mark(&self) -> Result<i32, PeerError> {
        let brick = self.brick;
        self.call("own mark", |world| world.bricks[brick].row.pending[brick])
    }

    fn truncate(&self, size: u64) -> Result<(), PeerError> {
        self.call("truncate", |_| assert_eq!(size, SIZE))
    }

    fn start_writes(&self, writes: &[(u64, &[u8])]) -> Result<Answer<()>, PeerError> {
        let mut sent = Vec::new();
        for (offset, data) in writes {
            let versions = data.chunks(SECTOR as usize).map(version_of);
            // An error is a lost connection: nothing of it can be answered.
            sent.push(self.send(*offset, versions.collect())?);
        }
        Ok(Answer::new(|| sent.into_iter().try_for_each(Answer::wait)))
    }

    fn start_zero(&self, range: Range<u64>) -> Result<Answer<()>, PeerError> {
        self.send(range.start, vec![0; sectors(&range).len()])
    }

    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        let sum = self.call("checksum", |world| {
            let versions = &world.bricks[self.brick].cache[sectors(&range)];
            let mut sum = Sha256::new();
            versions.iter().for_each(|v| sum.update(bytes_of(*v)));
            StrongChecksum::Sha256(sum.finalize().into())
        })?;
        Ok(Answer::new(|| Ok(sum)))
    }

    fn fsync(&self) -> Result<(), PeerError> {
        self.call("fsync", |world| world.bricks[self.brick].fsync())
    }

    fn lock(
        &self,
        range: Range<u64>,
        limit: Duration,
        stop: &AtomicBool,
    ) -> Result<bool, PeerError> {
        let lock = self.lock_of(&range);
        let mut granted = false;
        let mut over = || {
            let mut world = self.sim.world();
            let known = world.gets_through(self.conn);
            granted = known && world.bricks[self.brick].try_lock(lock.clone());
            granted || !known || stop.load(Ordering::Relaxed)
        };
        self.sim.sched.wait(&mut over, Some(limit));
        self.call("lock data", |_| granted)
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        let lock = self.lock_of(&range);
        self.call("unlock data", |world| {
            world.bricks[self.brick].unlock(&lock)
        })
    }
}
