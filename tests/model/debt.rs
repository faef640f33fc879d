//! A session's dirty map and what it knows of the marks, as `missed_writes.rs` and `gate.rs`
//! keep them. The judgement of an older map is the real one (`map_trust.rs`).

use bypass_blk::image::dirty_map::{Peer, Peers, Record};
use bypass_blk::image::replica::brick_port::CopyState;
use bypass_blk::image::replica::brick_set::{BrickSet, Shape};
use bypass_blk::image::replica::map_trust;
use bypass_blk::image::replica::unmarking::{self, Absent};
use uuid::Uuid;

use super::setting::{Protection, Setting};
use super::world::{BRICKS, Counter, Extents, Map, Row, World};

/// What a probe tells.
pub fn copy_state(setting: &Setting, row: &Row) -> CopyState {
    CopyState {
        gfid: Uuid::from_u128(1),
        size: 512,
        pending: row[..setting.bricks].iter().map(|&c| c.into()).collect(),
        dirty: 0,
        fenced: false,
    }
}

impl Map {
    /// Is nothing dirty for this child?
    pub fn is_clean(&self, child: usize) -> bool {
        self.dirty[child] == 0
    }

    /// Is this a counter of the map's own sessions?
    pub fn explains(&self, counter: Counter) -> bool {
        self.record().explains(counter.into())
    }

    fn record(&self) -> Record {
        Record {
            stamp: self.stamp.into(),
            previous: self.previous.into(),
            suspect: Peers::NONE,
            unguarded: false,
            unsynced: false,
        }
    }

    /// `Debt::stands_on`.
    pub fn stands_on(&self, shape: &Shape, row: &Row) -> bool {
        self.stamp != 0 && shape.peers().iter().all(|peer| row[peer] == self.stamp)
    }
}

/// `Debt::adopt`: the map of the session in `slot`, which reached the bricks in `held`.
pub fn adopt(setting: &Setting, world: &mut World, slot: usize, held: BrickSet) {
    let shape = setting.shape(slot);
    let rows = world.rows();
    let read = |brick| {
        held.contains(brick)
            .then(|| copy_state(setting, &rows[brick]))
    };
    let copies: Vec<_> = (0..setting.bricks).map(read).collect();
    let old = world.maps[slot];
    let judged = map_trust::judge(&shape, old.map(|map| map.record()), &copies);
    let unjudged = old.is_some() && setting.lacks(Protection::StampsCompared);
    let everything = [setting.all_extents(); BRICKS];
    let mut map = old.unwrap_or(Map {
        stamp: 0,
        previous: 0,
        dirty: everything,
        clean_close: false,
    });
    // A daemon that was killed may have lost its locks before, and writes may have landed
    // since.
    if old.is_none_or(|map| map.clean_close) {
        each(&shape, judged.clean, |child| map.dirty[child] = 0);
    }
    if !unjudged {
        each(&shape, judged.unknown, |child| {
            map.dirty[child] = everything[child];
        });
        void_copies(world, slot, judged.unknown, &shape);
    }
    if judged.known.is_empty() {
        (map.previous, map.stamp) = (map.stamp, 0);
    }
    // A map names its peers only: what is said of others is nobody's.
    for child in BrickSet::first(BRICKS).without(shape.peers()).iter() {
        map.dirty[child] = 0;
    }
    map.clean_close = false;
    world.maps[slot] = Some(map);
}

/// `Debt::not_reached`: what the session knows of the bricks that are not in `held`. A
/// witness is a counter of writes under way.
pub fn not_reached(setting: &Setting, world: &World, held: BrickSet) -> Absent {
    let rows = world.rows();
    let read = |brick| {
        held.contains(brick).then(|| CopyState {
            dirty: world.bricks[brick].witness.into(),
            ..copy_state(setting, &rows[brick])
        })
    };
    let copies: Vec<_> = (0..setting.bricks).map(read).collect();
    unmarking::not_reached(&copies)
}

/// `Debt::note`: counters were read under the data lock. Did somebody else mark a
/// peer? Then all of it is dirty.
pub fn note(setting: &Setting, world: &mut World, slot: usize, rows: &[Row]) -> bool {
    if setting.lacks(Protection::ForeignMarksNoted) {
        return false;
    }
    let shape = setting.shape(slot);
    let Some(record) = world.maps[slot].map(|map| map.record()) else {
        return false;
    };
    let foreign = |counter: Counter| counter != 0 && !record.explains(counter.into());
    let unknown = |child: &usize| rows.iter().any(|row| foreign(row[*child]));
    let unknown: BrickSet = shape.peers().iter().filter(unknown).collect();
    for child in unknown.iter() {
        if let Some(map) = &mut world.maps[slot] {
            map.dirty[child] = setting.all_extents();
        }
        void_copy(world, slot, child);
    }
    !unknown.is_empty()
}

/// `Debt::stamp`.
pub fn stamp(world: &mut World, slot: usize) -> Counter {
    let fresh = world.fresh_stamp();
    match &mut world.maps[slot] {
        Some(map) if map.stamp != 0 => map.stamp,
        Some(map) => {
            map.stamp = fresh;
            fresh
        }
        None => fresh,
    }
}

/// A write to this extent begins: dirty for every peer, and no copy of it counts.
pub fn begin_write(setting: &Setting, world: &mut World, slot: usize, extent: Extents) {
    if let Some(map) = &mut world.maps[slot] {
        for peer in setting.shape(slot).peers().iter() {
            map.dirty[peer] |= extent;
        }
    }
    if let Some(copy) = &mut world.healers[slot]
        && 1 << copy.extent == extent
    {
        copy.intact = false;
    }
}

fn void_copy(world: &mut World, slot: usize, child: usize) {
    if let Some(copy) = world.healers[slot].as_mut().filter(|c| c.peer == child) {
        copy.intact = false;
    }
}

fn void_copies(world: &mut World, slot: usize, peers: Peers, shape: &Shape) {
    each(shape, peers, |child| void_copy(world, slot, child));
}

/// Peers of a map are numbered without the local brick.
fn each(shape: &Shape, peers: Peers, mut change: impl FnMut(usize)) {
    for (index, child) in shape.peers().iter().enumerate() {
        if Peer::new(index).is_some_and(|peer| peers.contains(peer)) {
            change(child);
        }
    }
}
