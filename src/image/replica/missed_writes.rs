//! What the peers miss, as a session knows it: the dirty map together with what it
//! knows of the marks that stand for it.
//!
//! Owned by the session's thread; the gate writes to the same map and a healer clears
//! it. It judges counters that were read ([`super::map_trust`]) and keeps the map's
//! record of them; it reads and changes no brick.

use std::sync::Arc;

use uuid::Uuid;

use crate::image::chain::chain;
use crate::image::dirty_map::{DirtyMap, MapError, Peer, Peers, Record, Trust};
use crate::image::local::Durability;

use super::brick_port::CopyState;
use super::brick_set::{BrickSet, Shape};
use super::map_trust;
use super::unmarking::{self, Absent};

/// Stamps are below this, so that AFR's adding to them cannot overflow.
const MAX_STAMP: u32 = 1 << 30;

/// See the module.
pub struct MissedWrites {
    shape: Shape,
    map: Arc<DirtyMap>,
    session: Uuid,
    /// AFR's counters of writes cut short, per brick, for which everything was
    /// made dirty already.
    accounted: Vec<i32>,
    /// Of bricks that were not reached at open.
    not_reached: Absent,
    durability: Arc<Durability>,
}

impl MissedWrites {
    /// Takes a map over that `session` just opened, in the light of what the bricks
    /// said.
    ///
    /// # Errors
    /// [`MapError::Io`] and the like when its record cannot be kept.
    pub fn adopt(
        shape: Shape,
        map: Arc<DirtyMap>,
        trust: Trust,
        copies: &[Option<CopyState>],
        session: Uuid,
        durability: Arc<Durability>,
    ) -> Result<Self, MapError> {
        let old = match trust {
            Trust::Kept { .. } | Trust::CleanClose => Some(map.record()),
            Trust::Fresh | Trust::Distrusted(_) => None,
        };
        let mut belief = map_trust::judge(&shape, old, copies);
        // Of a daemon that was killed nobody knows whether it still had its locks at the end.
        // Noted, for this session may end before it marks anything.
        let in_doubt = matches!(trust, Trust::Kept { .. }) && !map.behind().is_empty();
        let unguarded = map.record().unguarded || in_doubt;
        if unguarded && old.is_none() {
            belief.unknown = belief.unknown.or(belief.clean);
        }
        // Nobody accuses them, so somebody healed. But writes that were in flight when their
        // daemon was killed, or when every brick was lost, may have landed after that: what
        // such a map calls dirty stays so, without marks, too.
        if !unguarded {
            map.declare_clean(belief.clean);
        }
        map.mark_all_dirty(belief.unknown);
        let old = old.unwrap_or_default();
        let keep_stamp = !belief.known.is_empty();
        map.set_record(Record {
            stamp: if keep_stamp { old.stamp } else { 0 },
            previous: if keep_stamp { old.previous } else { old.stamp },
            suspect: old.suspect.and(belief.known).or(belief.unknown),
            unguarded,
            unsynced: false,
        })?;
        let cut_short = |copy: &Option<CopyState>| copy.as_ref().map_or(0, |copy| copy.dirty);
        Ok(Self {
            shape,
            map,
            session,
            accounted: copies.iter().map(cut_short).collect(),
            not_reached: unmarking::not_reached(copies),
            durability,
        })
    }

    /// The map.
    pub fn map(&self) -> &Arc<DirtyMap> {
        &self.map
    }

    /// The image has grown: from now on `map`, which knows all that the one before knew.
    pub fn replace_map(&mut self, map: Arc<DirtyMap>) {
        std::mem::replace(&mut self.map, map).release();
    }

    /// The child that is this peer of the map.
    pub fn child(&self, peer: Peer) -> Option<usize> {
        self.shape.peers().iter().nth(peer.index())
    }

    /// The children among the peers that miss something.
    pub fn behind(&self) -> BrickSet {
        let behind = self.map.behind();
        let misses =
            |(index, _): &(usize, usize)| Peer::new(*index).is_some_and(|p| behind.contains(p));
        let peers = self.shape.peers().iter().enumerate();
        peers.filter(misses).map(|(_, child)| child).collect()
    }

    /// Whom a brick accuses that has been away since the session opened.
    pub fn not_reached(&self) -> Absent {
        self.not_reached
    }

    /// Has this brick the session's marks against every peer?
    pub fn stands_on(&self, copy: &CopyState) -> bool {
        let stamp = self.map.record().stamp;
        let stamped = |peer: usize| copy.pending.get(peer) == Some(&stamp);
        stamp != 0 && self.shape.peers().iter().all(stamped)
    }

    /// Counters were read under the data lock: whoever else marked a peer knows
    /// something that the map does not. Those peers become dirty as a whole. Must be
    /// done before a counter is changed, for afterwards it shows no more.
    ///
    /// # Errors
    /// [`MapError::Io`] and the like when its record cannot be kept.
    pub fn note(&mut self, copies: &[(usize, CopyState)]) -> Result<Peers, MapError> {
        let record = self.map.record();
        let mut unknown = Peers::NONE;
        for (brick, copy) in copies {
            for (index, child) in self.shape.peers().iter().enumerate() {
                let counter = copy.pending.get(child).copied().unwrap_or_default();
                if counter != 0 && !record.explains(counter) {
                    unknown = unknown.or(Peer::new(index).into_iter().collect());
                }
            }
            if let Some(accounted) = self.accounted.get_mut(*brick)
                && *accounted != copy.dirty
            {
                *accounted = copy.dirty;
                if copy.dirty != 0 {
                    unknown = self.map.geometry().all_peers();
                }
            }
        }
        // What the last session of a suspect peer did not explain is dirty already.
        self.distrust(unknown)?;
        Ok(unknown)
    }

    /// Makes peers dirty as a whole, to be compared first.
    ///
    /// # Errors
    /// [`MapError::Io`] and the like when its record cannot be kept.
    pub fn distrust(&mut self, peers: Peers) -> Result<(), MapError> {
        self.map.mark_all_dirty(peers);
        let record = self.map.record();
        self.keep(Record {
            suspect: record.suspect.or(peers),
            ..record
        })
    }

    /// Every brick is lost while writes may be under way, or marks stand again.
    ///
    /// # Errors
    /// [`MapError::Io`] and the like when its record cannot be kept.
    pub fn set_unguarded(&mut self, unguarded: bool) -> Result<(), MapError> {
        let record = self.map.record();
        self.keep(Record {
            unguarded,
            ..record
        })
    }

    /// A sync failed: whoever opens the image next has to compare all copies.
    ///
    /// # Errors
    /// [`MapError::Io`] and the like when its record cannot be kept.
    pub fn note_sync_failed(&self) -> Result<(), MapError> {
        let unsynced = true;
        self.keep(Record {
            unsynced,
            ..self.map.record()
        })
    }

    /// Ends the session's use of the map, as one that can be trusted unless a sync failed.
    ///
    /// # Errors
    /// As of [`DirtyMap::close_clean`].
    pub fn close(&self) -> Result<(), MapError> {
        let closed = match self.durability.failure() {
            None => self.noted(self.map.close_clean()),
            Some(_) => Ok(()),
        };
        let kept = match self.durability.failure() {
            None => Ok(()),
            Some(_) => self.note_sync_failed(),
        };
        self.map.release();
        closed.and(kept)
    }

    fn keep(&self, record: Record) -> Result<(), MapError> {
        let unsynced = record.unsynced || self.durability.failure().is_some();
        self.noted(self.map.set_record(Record { unsynced, ..record }))
    }

    /// What the next session must know, and may not find, is as lost as data.
    fn noted(&self, written: Result<(), MapError>) -> Result<(), MapError> {
        written.inspect_err(|error| {
            if error.is_of_the_disk() {
                self.durability.fail("writing the dirty map", &chain(error));
            }
        })
    }

    /// The stamp in use; 0 before the first marking.
    pub fn current_stamp(&self) -> i32 {
        self.map.record().stamp
    }

    /// The stamp to mark with, kept on the disk before it is given out.
    ///
    /// # Errors
    /// [`MapError::Io`] and the like.
    pub fn stamp(&mut self) -> Result<i32, MapError> {
        let record = self.map.record();
        if record.stamp != 0 {
            return Ok(record.stamp);
        }
        let stamp = stamp_of(self.session, record.previous);
        self.keep(Record { stamp, ..record })?;
        Ok(stamp)
    }

    /// Marks against these peers are gone: they miss nothing that is not in the map.
    ///
    /// # Errors
    /// [`MapError::Io`] and the like.
    pub fn settled(&mut self, equal: BrickSet) -> Result<(), MapError> {
        let record = self.map.record();
        let peers = self.shape.peers().iter().enumerate();
        let settled = peers
            .filter(|(_, child)| equal.contains(*child))
            .filter_map(|(index, _)| Peer::new(index));
        let settled: Peers = settled.collect();
        if equal.covers(self.shape.peers()) {
            self.accounted.fill(0);
        }
        self.keep(Record {
            suspect: record.suspect.without(settled),
            ..record
        })
    }
}

/// Bits of the session's name, which are random. Not zero, and not the one before.
fn stamp_of(session: Uuid, previous: i32) -> i32 {
    let bits = session.as_u128() as u32 % (MAX_STAMP - 2);
    let stamp = i32::try_from(bits).unwrap_or_default() + 1;
    if stamp == previous { stamp + 1 } else { stamp }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::dirty_map::{ExtentSize, Identity};
    use crate::image::replica::brick_set::SetChange;
    use crate::image::replica::names::Names;
    use crate::image::session::life::{MapPlace, prepare_map};

    const SHAPE: Shape = Shape {
        bricks: 2,
        local: 0,
        arbiter: None,
        since: SetChange::NONE,
    };

    fn identity() -> Identity {
        Identity {
            gfid: Uuid::from_u128(1),
            size: 8192,
            extent_size: ExtentSize::new(4096).unwrap(),
            local: "a:/b".into(),
            peers: vec!["b:/b".into()],
        }
    }

    /// Neither brick has a mark.
    fn adopt(path: &std::path::Path) -> MissedWrites {
        adopt_marked(path, 0)
    }

    /// Both bricks have this mark against the peer.
    fn adopt_marked(path: &std::path::Path, mark: i32) -> MissedWrites {
        adopt_over(path, mark, Arc::default())
    }

    fn adopt_over(path: &std::path::Path, mark: i32, durability: Arc<Durability>) -> MissedWrites {
        let (map, trust) = DirtyMap::open(path, &identity()).unwrap();
        let copy = CopyState {
            gfid: Uuid::from_u128(1),
            size: 8192,
            pending: vec![0, mark],
            dirty: 0,
            fenced: false,
        };
        let copies = [Some(copy.clone()), Some(copy)];
        let map = Arc::new(map);
        MissedWrites::adopt(SHAPE, map, trust, &copies, Uuid::new_v4(), durability).unwrap()
    }

    /// Its session ends as it should.
    fn close(path: &std::path::Path) {
        let (map, _) = DirtyMap::open(path, &identity()).unwrap();
        map.close_clean().unwrap();
    }

    fn written(path: &std::path::Path, unguarded: bool) {
        let mut debt = adopt(path);
        debt.set_unguarded(unguarded).unwrap();
        assert_eq!(
            debt.map().begin_write(0, 512),
            crate::image::dirty_map::Begun::Yes
        );
        let _ = debt.map().end_write(0, 512);
    }

    #[test]
    fn what_landed_while_every_brick_was_lost_stays_dirty_though_nobody_is_marked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("map");
        written(&path, false);
        close(&path);
        assert!(adopt(&path).behind().is_empty(), "healed by somebody");
        written(&path, true);
        close(&path);
        let mut debt = adopt(&path);
        let peer = Peer::new(0).unwrap();
        assert_eq!(debt.map().dirty_extents(peer), 1);
        assert!(!debt.map().record().suspect.contains(peer));
        debt.set_unguarded(false).unwrap();
        drop(debt);
        close(&path);
        assert!(adopt(&path).behind().is_empty());
    }

    #[test]
    fn what_a_killed_daemon_s_map_calls_dirty_stays_so_though_nobody_is_marked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("map");
        written(&path, false);
        let debt = adopt(&path);
        let peer = Peer::new(0).unwrap();
        assert_eq!(debt.map().dirty_extents(peer), 1, "its locks may be gone");
        assert!(!debt.map().record().suspect.contains(peer));
    }

    #[test]
    fn what_was_in_flight_in_a_killed_daemon_stays_dirty_though_nobody_is_marked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("map");
        let killed = adopt(&path);
        let begun = killed.map().begin_write(4096, 512);
        assert_eq!(begun, crate::image::dirty_map::Begun::Yes);
        drop(killed);
        let peer = Peer::new(0).unwrap();
        let next = adopt(&path);
        assert_eq!(next.map().dirty_extents(peer), 1);
        // It ends before it marks anything: refused, or killed as well.
        next.map().close_clean().unwrap();
        drop(next);
        let mut last = adopt(&path);
        assert_eq!(last.map().dirty_extents(peer), 1);
        last.set_unguarded(false).unwrap();
        last.map().close_clean().unwrap();
        drop(last);
        assert!(adopt(&path).behind().is_empty(), "marks stood meanwhile");
    }

    #[test]
    fn a_map_that_was_made_before_its_session_says_nothing_that_the_marks_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let names = Names {
            volume: "v".into(),
            bricks: vec!["a:/b".into(), "b:/b".into()],
        };
        for (name, mark) in [("clean", 0), ("marked", 7)] {
            let place = MapPlace {
                path: directory.path().join(name),
                extent_size: Some(ExtentSize::new(4096).unwrap()),
            };
            // The second time there is one.
            for _ in 0..2 {
                prepare_map(&place, &SHAPE, &names, Uuid::from_u128(1), 8192).unwrap();
            }
            let prepared = adopt_marked(&place.path, mark);
            let fresh = adopt_marked(&directory.path().join(format!("{name}-fresh")), mark);
            let seen = [prepared, fresh].map(|debt| {
                let dirty = debt.map().dirty_extents(Peer::new(0).unwrap());
                (dirty, debt.map().record())
            });
            assert_eq!(seen[0], seen[1]);
            assert_eq!(seen[0].0, if mark == 0 { 0 } else { 2 });
        }
        let kept = directory.path().join("written");
        written(&kept, false);
        let place = MapPlace {
            path: kept.clone(),
            extent_size: None,
        };
        prepare_map(&place, &SHAPE, &names, Uuid::from_u128(1), 8192).unwrap();
        let (map, _) = DirtyMap::open(&kept, &identity()).unwrap();
        assert_eq!(map.dirty_extents(Peer::new(0).unwrap()), 1, "left as it is");
    }

    #[test]
    fn after_a_sync_that_failed_all_of_it_is_compared_whatever_the_marks_say() {
        for killed in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("map");
            let durability = Arc::<Durability>::default();
            let debt = adopt_over(&path, 0, durability.clone());
            durability.fail_with("the guest's flush", libc::EIO);
            match killed {
                true => debt.note_sync_failed().unwrap(),
                false => debt.close().unwrap(),
            }
            drop(debt);
            // Until marks stand: this one is killed before.
            for _ in 0..2 {
                let debt = adopt(&path);
                let peer = Peer::new(0).unwrap();
                assert_eq!(debt.map().dirty_extents(peer), 2);
            }
            let mut debt = adopt(&path);
            debt.set_unguarded(false).unwrap();
            debt.close().unwrap();
            assert!(adopt(&path).behind().is_empty(), "believed again");
        }
    }

    #[test]
    fn after_a_restart_of_the_host_all_of_it_is_compared() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("map");
        written(&path, true);
        let (map, _) = DirtyMap::open(&path, &identity()).unwrap();
        let mut header = map.header().clone();
        (header.boot_id, header.record) = (Uuid::nil(), map.record());
        drop(map);
        let mut bytes = std::fs::read(&path).unwrap();
        let header = header.encode();
        bytes[..header.len()].copy_from_slice(&header);
        std::fs::write(&path, bytes).unwrap();
        let debt = adopt(&path);
        let peer = Peer::new(0).unwrap();
        assert_eq!(debt.map().dirty_extents(peer), 2);
        assert!(debt.map().record().suspect.contains(peer));
    }
}
