//! Flushes of a disk over several files: several files are synced at once, as a sync is mostly waiting
//! for the disk, and disks do with one flush of their cache for all that ask meanwhile.
//!
//! A queue has [`LANES`] operations for this beside those of its slots. Flushes get them in the order
//! in which they were taken; each is answered when its own syncs have ended.

use std::collections::VecDeque;

use crate::device::gate::Gate;
use crate::device::io::disk::Disk;
use crate::device::io::engine::Operation;
use crate::device::queue::ring::{Ring, RingError};
use crate::device::request::syncs::FileSync;

use super::Queue;

/// The most files that a queue has synced at once.
const LANES: u16 = 32;

/// The lanes of a queue. A lane's token in the engine is its index behind those of the slots.
#[derive(Debug)]
pub struct Syncing {
    slots: u16,
    /// The slot of the flush whose sync is on the lane, and that sync.
    lanes: Vec<Option<(usize, FileSync)>>,
    free: Vec<usize>,
    /// Flushes for which there may be more to begin, oldest first.
    waiting: VecDeque<usize>,
}

impl Syncing {
    /// For a queue of so many `slots`; a disk of one whole file needs no lanes.
    pub fn new(disk: &Disk, slots: u16) -> Self {
        let lanes = if disk.is_whole() { 0 } else { LANES.into() };
        Self {
            slots,
            lanes: vec![None; lanes],
            free: (0..lanes).rev().collect(),
            waiting: VecDeque::new(),
        }
    }

    /// Operations of slots and lanes together.
    pub fn tokens(&self) -> u16 {
        self.slots + self.lanes.len() as u16
    }

    /// The flush in this slot begins.
    pub fn add(&mut self, token: usize) {
        self.waiting.push_back(token);
    }

    /// What was on the lane with this token in the engine, which is free again.
    fn take(&mut self, token: usize) -> Option<(usize, FileSync)> {
        let lane = token.checked_sub(self.slots.into())?;
        let taken = self.lanes.get_mut(lane)?.take();
        if taken.is_some() {
            self.free.push(lane);
        }
        taken
    }

    /// Puts a sync on a free lane; returns the lane's token.
    fn put(&mut self, slot: usize, sync: FileSync) -> Option<usize> {
        let lane = self.free.pop()?;
        *self.lanes.get_mut(lane)? = Some((slot, sync));
        Some(usize::from(self.slots) + lane)
    }
}

impl<G: Gate> Queue<G> {
    /// Begins what there are lanes for; answers the flushes that have nothing to wait for.
    pub(super) fn begin_syncs(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        while let Some(&token) = self.syncing.waiting.front()
            && !self.syncing.free.is_empty()
        {
            let slot = self.slots.get_mut(token);
            match slot.and_then(|slot| slot.begin_sync(&self.shared.disk)) {
                Some(sync) => self.push_sync(ring, token, sync)?,
                None => {
                    self.syncing.waiting.pop_front();
                    self.answer_synced(ring, token)?;
                }
            }
        }
        Ok(())
    }

    fn push_sync(
        &mut self,
        ring: &mut Ring<'_>,
        slot: usize,
        sync: FileSync,
    ) -> Result<(), RingError> {
        let Some(token) = self.syncing.put(slot, sync) else {
            return Ok(());
        };
        let file = sync.file;
        match self.engine.push(token, Operation::Sync { file }) {
            Ok(()) => Ok(()),
            Err(_) => {
                log::error!("queue {}: the I/O engine has no room", self.index);
                self.lane_ended(ring, token, Err(libc::EIO))
            }
        }
    }

    /// Takes the result of a lane's operation, by its token in the engine.
    pub(super) fn lane_ended(
        &mut self,
        ring: &mut Ring<'_>,
        token: usize,
        result: Result<usize, i32>,
    ) -> Result<(), RingError> {
        let Some((token, sync)) = self.syncing.take(token) else {
            return Ok(());
        };
        let Some(slot) = self.slots.get_mut(token) else {
            return Ok(());
        };
        if slot.sync_ended(result, sync, &self.shared.disk) {
            return self.push_sync(ring, token, sync);
        }
        if !self.syncing.waiting.contains(&token) {
            self.answer_synced(ring, token)?;
        }
        self.begin_syncs(ring)
    }

    fn answer_synced(&mut self, ring: &mut Ring<'_>, token: usize) -> Result<(), RingError> {
        match self.slots.get(token).and_then(|slot| slot.synced()) {
            Some(step) => self.go_on(ring, token, step, true),
            None => Ok(()),
        }
    }
}
