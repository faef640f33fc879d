//! The healer's side of a brick: [`HealPeer`] over the simulated network. Writes are
//! carried out late, in any order.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bypass_blk::gluster::StrongChecksum;
use bypass_blk::image::heal::{Answer, HealPeer, PeerError};
use bypass_blk::image::layout::FileIndex;
use bypass_blk::image::replica::holder::Holder;
use sha2::{Digest, Sha256};

use super::brick::{Domain, EXTENT, Held, Owner, SECTOR, SIZE, bytes_of, version_of};
use super::net::Late;
use super::piece;
use super::sched::Process;
use super::sim::Sim;
use super::world::World;

/// Long enough for a session to end, for another to begin and for its guest to write.
const STUCK: Duration = Duration::from_secs(32);
/// Not much happens meanwhile.
const SHORT: Duration = Duration::from_secs(8);
/// How rarely a call gets stuck.
pub const RARELY: usize = 200;
/// The call before which a healer holds nothing but its copy lock.
const LOCK: &str = "lock data";
/// So much is written elsewhere before a healer that got stuck goes on.
const WRITES: u64 = 8;

/// The end of a connection to one brick; goes with it.
pub struct SimPeer(Wire);

#[derive(Clone)]
struct Wire {
    sim: Sim,
    host: usize,
    brick: usize,
    conn: Owner,
}

/// As long as a call is stuck.
struct Stuck<'a>(&'a Wire);

impl Drop for Stuck<'_> {
    fn drop(&mut self) {
        self.0.sim.world().hosts[self.0.host].stuck -= 1;
    }
}

fn away() -> PeerError {
    PeerError::Away {
        peer: "peer".into(),
        source: "gone".into(),
    }
}

fn full() -> PeerError {
    PeerError::Refused {
        peer: "peer".into(),
        source: "no space left".into(),
    }
}

fn sectors(range: &Range<u64>) -> Range<usize> {
    (range.start / SECTOR) as usize..(range.end / SECTOR) as usize
}

impl SimPeer {
    pub fn connect(
        sim: &Sim,
        process: Process,
        host: usize,
        brick: usize,
    ) -> Result<Self, PeerError> {
        let mut world = sim.world();
        let conn = world.connect(process, host, brick).ok_or_else(away)?;
        if let Some(conn) = world.conns.get_mut(&conn) {
            conn.heals = true;
        }
        let sim = sim.clone();
        Ok(Self(Wire {
            sim,
            host,
            brick,
            conn,
        }))
    }

    /// As whom it takes locks.
    pub fn owner(&self) -> Owner {
        self.0.conn
    }

    /// Takes any lock, of the copy domain say.
    pub fn take(&self, lock: Held) -> Result<bool, PeerError> {
        let brick = self.0.brick;
        self.0
            .call("lock copy", |world| world.bricks[brick].try_lock(lock))
    }

    /// Whose record is there.
    pub fn holder(&self) -> Result<Option<Holder>, PeerError> {
        let brick = self.0.brick;
        self.0.call("holder", |world| {
            let record = world.bricks[brick].record.as_ref();
            record.map(|(_, holder)| holder.clone())
        })
    }
}

impl Drop for SimPeer {
    fn drop(&mut self) {
        self.close();
    }
}

impl Wire {
    fn call<T>(&self, what: &str, work: impl FnOnce(&mut World) -> T) -> Result<T, PeerError> {
        self.dawdle(what);
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
    fn dawdle(&self, what: &str) {
        let mut world = self.sim.world();
        let odds = match what == LOCK {
            true => world.stuck_odds,
            false => RARELY,
        };
        // It has no chance to notice that the lock it holds was cleared.
        if world.robbed || !world.rng.chance(odds) {
            drop(world);
            return self.sim.sched.step();
        }
        world.tell(|| format!("healer {} is stuck at brick {}", self.conn, self.brick));
        world.hosts[self.host].stuck += 1;
        let host = self.host;
        let elsewhere = |world: &World| world.landed.iter().sum::<u64>() - world.landed[host];
        let begin = elsewhere(&world);
        let limit = if what == LOCK { STUCK } else { SHORT };
        drop(world);
        let _stuck = Stuck(self);
        let mut over = || elsewhere(&self.sim.world()) >= begin + WRITES;
        self.sim.sched.wait(&mut over, Some(limit));
    }

    /// The file that these bytes of the disk lie in, and where it begins.
    fn file_of(&self, range: &Range<u64>) -> (usize, u64) {
        let files = self.sim.world().files.clone();
        let (file, at) = files.place(range.start);
        assert!(
            range.end <= files.range(file).end,
            "{range:?} lies in two files"
        );
        (file.at(), range.start - at)
    }

    fn lock_of(&self, range: &Range<u64>) -> Held {
        let (file, begin) = self.file_of(range);
        Held {
            first: range.start - begin,
            last: range.end - begin - 1,
            ..Held::whole(self.conn, Domain::Data, file)
        }
    }

    fn send(&self, offset: u64, versions: Vec<u64>) -> Result<Answer<()>, PeerError> {
        self.file_of(&(offset..offset + versions.len() as u64 * SECTOR));
        let number = self.call("write", |world| {
            if world.bricks[self.brick].full {
                return None;
            }
            world.next_version += 1;
            let late = Late {
                number: world.next_version,
                sector: (offset / SECTOR) as usize,
                versions,
            };
            let conn = world.conns.get_mut(&self.conn);
            conn.into_iter()
                .for_each(|conn| conn.late.push(late.clone()));
            Some(late.number)
        })?;
        let Some(number) = number else {
            return Err(full());
        };
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
        let world = self.0.sim.world();
        world
            .conns
            .get(&self.0.conn)
            .is_some_and(|conn| conn.client)
    }

    fn close(&self) {
        self.0.sim.world().hang_up(self.0.conn);
    }

    fn size(&self) -> Result<u64, PeerError> {
        self.0.call("size", |_| SIZE)
    }

    fn own_mark(&self, at: u64) -> Result<i32, PeerError> {
        let (brick, (file, _)) = (self.0.brick, self.0.file_of(&(at..at + 1)));
        self.0.call("own mark", |world| {
            world.bricks[brick].files[file].row.pending[brick]
        })
    }

    fn truncate(&self, size: u64) -> Result<(), PeerError> {
        self.0.call("truncate", |_| assert_eq!(size, SIZE))
    }

    fn start_writes(&self, writes: &[(u64, &[u8])]) -> Result<Answer<()>, PeerError> {
        let mut sent = Vec::new();
        for (offset, data) in writes {
            let versions = data.chunks(SECTOR as usize).map(version_of);
            match self.0.send(*offset, versions.collect()) {
                Ok(answer) => sent.push(answer),
                // Of a lost connection nothing is answered any more.
                Err(error) => {
                    sent.into_iter().try_for_each(Answer::wait)?;
                    return Err(error);
                }
            }
        }
        Ok(Answer::new(|| sent.into_iter().try_for_each(Answer::wait)))
    }

    fn start_zero(&self, range: Range<u64>) -> Result<Answer<()>, PeerError> {
        self.0.send(range.start, vec![0; sectors(&range).len()])
    }

    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        let first = (offset / SECTOR) as usize;
        self.0.call("seek", |world| {
            let end = piece::sectors_of(&world.files, piece::file_of(&world.files, first)).end;
            let mut sectors = world.bricks[self.0.brick].cache[first..end].iter();
            let data = sectors.position(|version| *version != 0)?;
            let page = (offset + data as u64 * SECTOR) / EXTENT * EXTENT;
            Some(offset.max(page))
        })
    }

    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        self.0.file_of(&range);
        let sum = self.0.call("checksum", |world| {
            let versions = &world.bricks[self.0.brick].cache[sectors(&range)];
            let mut sum = Sha256::new();
            versions.iter().for_each(|v| sum.update(bytes_of(*v)));
            StrongChecksum::Sha256(sum.finalize().into())
        })?;
        Ok(Answer::new(|| Ok(sum)))
    }

    fn fsync(&self, files: &BTreeSet<FileIndex>) -> Result<(), PeerError> {
        files.iter().try_for_each(|file| {
            self.0.call("fsync", |world| {
                world.bricks[self.0.brick].fsync(file.at());
            })
        })
    }

    fn lock(
        &self,
        range: Range<u64>,
        limit: Duration,
        stop: &AtomicBool,
    ) -> Result<bool, PeerError> {
        let lock = self.0.lock_of(&range);
        let mut granted = false;
        let mut over = || {
            let mut world = self.0.sim.world();
            let known = world.gets_through(self.0.conn);
            granted = known && world.bricks[self.0.brick].try_lock(lock.clone());
            granted || !known || stop.load(Ordering::Relaxed)
        };
        self.0.sim.sched.wait(&mut over, Some(limit));
        self.0.call(LOCK, |_| granted)
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        let lock = self.0.lock_of(&range);
        self.0.call("unlock data", |world| {
            world.bricks[self.0.brick].unlock(&lock);
        })
    }
}
