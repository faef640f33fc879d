//! What the peers miss, as a session knows it: the dirty map together with what it
//! knows of the marks that stand for it.
//!
//! Owned by the session's thread; the gate writes to the same map and a healer clears
//! it. It judges counters that were read ([`super::belief`]) and keeps the map's
//! record of them; it reads and changes no brick.

use std::sync::Arc;

use uuid::Uuid;

use super::belief;
use super::bricks::{BrickSet, Shape};
use super::dirty::{DirtyMap, MapError, Peer, Peers, Record, Trust};
use super::port::CopyState;
use super::unmarking::{self, Absent};

/// Stamps are below this, so that AFR's adding to them cannot overflow.
const MAX_STAMP: u32 = 1 << 30;

/// See the module.
pub struct Debt {
    shape: Shape,
    map: Arc<DirtyMap>,
    session: Uuid,
    /// AFR's counters of writes cut short, per brick, for which everything was
    /// made dirty already.
    accounted: Vec<i32>,
    /// Of bricks that were not reached at open.
    not_reached: Absent,
}

impl Debt {
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
    ) -> Result<Self, MapError> {
        let old = match trust {
            Trust::Kept { .. } | Trust::CleanClose => Some(map.record()),
            Trust::Fresh | Trust::Distrusted(_) => None,
        };
        let belief = belief::judge(&shape, old, copies);
        // Writes that were in flight when their daemon was killed may have landed
        // after somebody healed: those extents stay dirty without marks, too.
        if !matches!(trust, Trust::Kept { interrupted: 1.. }) {
            map.declare_clean(belief.clean);
        }
        map.mark_all_dirty(belief.unknown);
        let old = old.unwrap_or_default();
        let keep_stamp = !belief.known.is_empty();
        map.set_record(Record {
            stamp: if keep_stamp { old.stamp } else { 0 },
            previous: if keep_stamp { old.previous } else { old.stamp },
            suspect: old.suspect.and(belief.known).or(belief.unknown),
        })?;
        let cut_short = |copy: &Option<CopyState>| copy.as_ref().map_or(0, |copy| copy.dirty);
        Ok(Self {
            shape,
            map,
            session,
            accounted: copies.iter().map(cut_short).collect(),
            not_reached: unmarking::not_reached(copies),
        })
    }

    /// The map.
    pub fn map(&self) -> &Arc<DirtyMap> {
        &self.map
    }

    /// The child that is this peer of the map.
    pub fn child(&self, peer: Peer) -> Option<usize> {
        self.shape.peers().iter().nth(peer.index())
    }

    /// The children among the peers that miss something.
    pub fn behind(&self) -> BrickSet {
        let misses = |(index, _): &(usize, usize)| {
            Peer::new(*index).is_some_and(|peer| self.map.next_dirty(peer, 0).is_some())
        };
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
        self.map.set_record(Record {
            suspect: record.suspect.or(peers),
            ..record
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
        self.map.set_record(Record { stamp, ..record })?;
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
        self.map.set_record(Record {
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
