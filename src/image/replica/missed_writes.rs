//! What the peers miss, as a session knows it: the dirty map together with what it
//! knows of the marks that stand for it.
//!
//! Owned by the session's thread; the gate writes to the same map and a healer clears
//! it. It judges counters that were read ([`super::map_trust`]) and keeps the map's
//! record of them; it reads and changes no brick.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use crate::image::dirty_map::{DirtyMap, MapError, Peer, Peers, Record, Trust};
use crate::image::error_chain::chain;
use crate::image::layout::{FileIndex, Layout};
use crate::image::local::Durability;

use super::brick_port::{CopyState, FileCopies};
use super::brick_set::{BrickSet, Shape};
use super::map_trust;
use super::unmarking::{self, Absent};

/// Stamps are below this, so that AFR's adding to them cannot overflow.
const MAX_STAMP: u32 = 1 << 30;

/// See the module.
pub struct MissedWrites {
    shape: Shape,
    layout: Layout,
    map: Arc<DirtyMap>,
    session: Uuid,
    /// In the layout's order.
    files: Vec<FileMarks>,
    durability: Arc<Durability>,
}

/// What is known of the counters on one file.
struct FileMarks {
    /// AFR's counters of writes cut short, per brick, for which everything was
    /// made dirty already.
    accounted: Vec<i32>,
    /// Of bricks that were not reached at open.
    not_reached: Absent,
}

impl FileMarks {
    fn of(copies: &FileCopies) -> Self {
        let cut_short = |copy: &Option<CopyState>| copy.as_ref().map_or(0, |copy| copy.dirty);
        Self {
            accounted: copies.iter().map(cut_short).collect(),
            not_reached: unmarking::not_reached(copies),
        }
    }
}

impl MissedWrites {
    /// Takes a map over that `session` just opened, in the light of what the bricks
    /// said.
    ///
    /// # Errors
    /// [`MapError::Io`] and the like when its record cannot be kept.
    pub fn adopt(
        shape: Shape,
        layout: Layout,
        map: Arc<DirtyMap>,
        trust: Trust,
        copies: &[FileCopies],
        session: Uuid,
        durability: Arc<Durability>,
    ) -> Result<Self, MapError> {
        let old = match trust {
            Trust::Kept { .. } | Trust::CleanClose => Some(map.record()),
            Trust::Fresh | Trust::Distrusted(_) => None,
        };
        // Of a daemon that was killed nobody knows whether it still had its locks at the end.
        // Noted, for this session may end before it marks anything.
        let in_doubt = matches!(trust, Trust::Kept { .. }) && !map.behind().is_empty();
        let unguarded = map.record().unguarded || in_doubt;
        let (mut known, mut unknown) = (Peers::NONE, Peers::NONE);
        for (file, copies) in layout.files().zip(copies) {
            let mut belief = map_trust::judge(&shape, old, copies);
            if unguarded && old.is_none() {
                belief.unknown = belief.unknown.or(belief.clean);
            }
            let bytes = layout.range(file);
            // Nobody accuses them, so somebody healed. But writes that were in flight when
            // their daemon was killed, or when every brick was lost, may have landed after
            // that: what such a map calls dirty stays so, without marks, too.
            if !unguarded {
                map.declare_clean_in(bytes.clone(), belief.clean);
            }
            map.mark_dirty(belief.unknown, bytes.start, bytes.end - bytes.start);
            (known, unknown) = (known.or(belief.known), unknown.or(belief.unknown));
        }
        let old = old.unwrap_or_default();
        let keep_stamp = !known.is_empty();
        map.set_record(Record {
            stamp: if keep_stamp { old.stamp } else { 0 },
            previous: if keep_stamp { old.previous } else { old.stamp },
            suspect: old.suspect.and(known).or(unknown),
            unguarded,
            unsynced: false,
        })?;
        Ok(Self {
            shape,
            layout,
            map,
            session,
            files: copies.iter().map(FileMarks::of).collect(),
            durability,
        })
    }

    /// The map.
    pub fn map(&self) -> &Arc<DirtyMap> {
        &self.map
    }

    /// The image has grown: from now on `map`, which knows all that the one before knew, and
    /// `layout`, with what the bricks said of the files that it has besides.
    pub fn grow(&mut self, map: Arc<DirtyMap>, layout: Layout, more: &[FileCopies]) {
        std::mem::replace(&mut self.map, map).release();
        self.layout = layout;
        self.files.extend(more.iter().map(FileMarks::of));
    }

    /// The child that is this peer of the map.
    pub fn child(&self, peer: Peer) -> Option<usize> {
        self.shape.peers().iter().nth(peer.index())
    }

    /// The children among the peers that miss something.
    pub fn behind(&self) -> BrickSet {
        self.children(self.map.behind())
    }

    /// Those that miss something of this file.
    pub fn behind_in(&self, file: FileIndex) -> BrickSet {
        match self.layout.is_whole() {
            true => self.behind(),
            false => self.children(self.map.behind_in(self.layout.range(file))),
        }
    }

    fn children(&self, behind: Peers) -> BrickSet {
        let misses =
            |(index, _): &(usize, usize)| Peer::new(*index).is_some_and(|p| behind.contains(p));
        let peers = self.shape.peers().iter().enumerate();
        peers.filter(misses).map(|(_, child)| child).collect()
    }

    /// Whom a brick accuses, on this file, that has been away since the session opened.
    pub fn not_reached(&self, file: FileIndex) -> Absent {
        let known = self.files.get(file.at());
        known.map_or(Absent::Unknown, |known| known.not_reached)
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
    pub fn note(
        &mut self,
        file: FileIndex,
        copies: &[(usize, CopyState)],
    ) -> Result<Peers, MapError> {
        let record = self.map.record();
        let mut unknown = Peers::NONE;
        for (brick, copy) in copies {
            for (index, child) in self.shape.peers().iter().enumerate() {
                let counter = copy.pending.get(child).copied().unwrap_or_default();
                if counter != 0 && !record.explains(counter) {
                    unknown = unknown.or(Peer::new(index).into_iter().collect());
                }
            }
            let marks = self.files.get_mut(file.at());
            if let Some(accounted) = marks.and_then(|marks| marks.accounted.get_mut(*brick))
                && *accounted != copy.dirty
            {
                *accounted = copy.dirty;
                if copy.dirty != 0 {
                    unknown = self.map.geometry().all_peers();
                }
            }
        }
        // What the last session of a suspect peer did not explain is dirty already.
        self.distrust(self.layout.range(file), unknown)?;
        Ok(unknown)
    }

    /// Makes peers dirty as a whole, to be compared first.
    ///
    /// # Errors
    /// [`MapError::Io`] and the like when its record cannot be kept.
    pub fn distrust_all(&mut self, peers: Peers) -> Result<(), MapError> {
        self.distrust(0..self.map.geometry().size(), peers)
    }

    fn distrust(&mut self, bytes: Range<u64>, peers: Peers) -> Result<(), MapError> {
        self.map
            .mark_dirty(peers, bytes.start, bytes.end - bytes.start);
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

    /// Marks against these peers are gone from this file: they miss nothing of it that is not
    /// in the map.
    ///
    /// # Errors
    /// [`MapError::Io`] and the like.
    pub fn settled(&mut self, file: FileIndex, equal: BrickSet) -> Result<(), MapError> {
        let record = self.map.record();
        let peers = self.shape.peers().iter().enumerate();
        let settled = peers
            .filter(|(_, child)| equal.contains(*child))
            .filter_map(|(index, _)| Peer::new(index));
        let mut settled: Peers = settled.collect();
        if !self.layout.is_whole() {
            // What they miss of other files may be as unknown as before.
            settled = settled.without(self.map.behind());
        }
        if equal.covers(self.shape.peers())
            && let Some(marks) = self.files.get_mut(file.at())
        {
            marks.accounted.fill(0);
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
mod tests;
