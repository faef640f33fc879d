//! What guest, healer and client do, a step at a time, in an order of the seed.

use std::ops::Range;

use super::{CLIENT, EXTENT, HEALER, Inner};
use crate::image::dirty_map::{Begun, Peer};

/// The extents that guest and client write to.
const ACTIVE: Range<u64> = 250..262;

/// What somebody does step by step.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Idle,
    /// A write of the guest, in flight: it has landed, or not.
    Guest(Range<u64>, bool),
    /// The healer holds the lock of an extent of a peer; it has read it.
    Copying(usize, u64, Option<Vec<u8>>),
    /// It has written it and given the lock back.
    Copied(usize, u64),
    /// The client holds the locks of so many bricks.
    Locking(Range<u64>, usize),
    /// The client has written to so many bricks.
    Writing(Range<u64>, usize, u8),
}

impl Inner {
    /// Somebody acts.
    pub(super) fn step(&mut self) {
        self.keep_hot();
        self.mark_late();
        self.ends_after = self.ends_after.map(|left| left.saturating_sub(1));
        for _ in 0..self.rng.below(4) {
            let who = self.rng.below(3) as usize;
            let step = std::mem::replace(&mut self.steps[who], Step::Idle);
            self.steps[who] = match who {
                0 => self.step_guest(step),
                1 => self.step_healer(step),
                _ => self.step_client(step),
            };
        }
    }

    fn mark_late(&mut self) {
        let Some((left, failed, file)) = self.late_mark else {
            return;
        };
        self.late_mark = left.checked_sub(1).map(|left| (left, failed, file));
        if left == 0 {
            for (child, copy) in self.copies.iter_mut().enumerate() {
                copy.marks_on(file)[failed] = i32::from(child != failed);
            }
        }
    }

    fn keep_hot(&mut self) {
        if let (Some(hot), Some(map)) = (self.hot, &self.map)
            && map.state(hot).is_some_and(|state| state.in_flight() == 0)
        {
            assert_eq!(map.begin_write(hot * EXTENT, EXTENT), Begun::Yes);
        }
        if let Some(hot) = self.hot {
            let value = self.rng.next() as u8;
            self.copies[0].bytes[(hot * EXTENT) as usize] = value;
        }
    }

    /// The client is in the middle of a write, with its locks.
    pub fn half_written(&mut self) {
        let range = self.active_bytes();
        for copy in &mut self.copies {
            assert!(copy.lock(CLIENT, &range, true));
        }
        self.copies[0].bytes[as_usize(&range)].fill(0xaa);
        self.steps[2] = Step::Writing(range, 1, 0xaa);
    }

    /// A whole write of the guest.
    pub(super) fn strike(&mut self, range: &Range<u64>) {
        let Some((left, extent)) = self.strike else {
            return;
        };
        let bytes = extent * EXTENT..(extent + 1) * EXTENT;
        if range.start >= bytes.end || bytes.start >= range.end {
            return;
        }
        self.strike = left.checked_sub(1).map(|left| (left, extent));
        if let Some(map) = self.map.as_ref().filter(|_| left == 0) {
            assert_eq!(map.begin_write(bytes.start, EXTENT), Begun::Yes);
            self.copies[0].bytes[as_usize(&bytes)].fill(0xaa);
            let _ = map.end_write(bytes.start, EXTENT);
        }
    }

    fn active_bytes(&mut self) -> Range<u64> {
        let extent = ACTIVE.start + self.rng.below(ACTIVE.end - ACTIVE.start);
        let start = extent * EXTENT + 512 * self.rng.below(8);
        start..start + 512 * (1 + self.rng.below(4))
    }

    fn step_guest(&mut self, step: Step) -> Step {
        let Some(map) = self.map.clone() else {
            return Step::Idle;
        };
        match step {
            Step::Guest(range, false) => {
                let value = self.rng.next() as u8;
                self.copies[0].bytes[as_usize(&range)].fill(value);
                Step::Guest(range, true)
            }
            Step::Guest(range, true) => {
                let _ = map.end_write(range.start, range.end - range.start);
                self.writes += 1;
                Step::Idle
            }
            _ if self.guest && self.rng.chance(2) => {
                let range = self.active_bytes();
                let begun = map.begin_write(range.start, range.end - range.start);
                assert_eq!(begun, Begun::Yes);
                Step::Guest(range, false)
            }
            step => step,
        }
    }

    fn step_healer(&mut self, step: Step) -> Step {
        let (Some(healer), Some(map)) = (&self.healer, &self.map) else {
            return Step::Idle;
        };
        let bytes = |extent: u64| map.geometry().bytes_of(extent);
        match step {
            Step::Copying(child, extent, None) => {
                let read = self.copies[0].bytes[as_usize(&bytes(extent))].to_vec();
                Step::Copying(child, extent, Some(read))
            }
            Step::Copying(child, extent, Some(read)) => {
                let copy = &mut self.copies[child];
                copy.bytes[as_usize(&bytes(extent))].copy_from_slice(&read);
                copy.unlock(HEALER, &bytes(extent));
                Step::Copied(child, extent)
            }
            // Only after an FSYNC, and without the lock.
            Step::Copied(child, extent) => {
                let peer = Peer::new(child - 1).unwrap();
                let _ = healer.end_copy(peer, extent);
                self.heals_done += 1;
                Step::Idle
            }
            _ if self.heals => {
                let child = 1 + self.rng.below(self.copies.len() as u64 - 1) as usize;
                let peer = Peer::new(child - 1).unwrap();
                let Some(extent) = map.next_dirty(peer, 0) else {
                    return Step::Idle;
                };
                let range = bytes(extent);
                if !self.copies[child].lock(HEALER, &range, true) {
                    return Step::Idle;
                }
                if healer.begin_copy(peer, extent) {
                    Step::Copying(child, extent, None)
                } else {
                    self.copies[child].unlock(HEALER, &range);
                    Step::Idle
                }
            }
            step => step,
        }
    }

    /// A client takes all locks, writes everywhere, gives them back.
    fn step_client(&mut self, step: Step) -> Step {
        let count = self.copies.len();
        if !self.rng.chance(self.client_pace) {
            return step;
        }
        match step {
            Step::Locking(range, held) if held < count => {
                if self.copies[held].lock(CLIENT, &range, true) {
                    return Step::Locking(range, held + 1);
                }
                for copy in &mut self.copies[..held] {
                    copy.unlock(CLIENT, &range);
                }
                Step::Idle
            }
            Step::Locking(range, _) => Step::Writing(range, 0, self.rng.next() as u8),
            Step::Writing(range, written, value) if written < count => {
                if self.fails_on != Some(written) {
                    self.copies[written].bytes[as_usize(&range)].fill(value);
                }
                Step::Writing(range, written + 1, value)
            }
            Step::Writing(range, ..) => {
                let parts: Vec<_> = self.layout.cut(range.clone()).collect();
                for (child, copy) in self.copies.iter_mut().enumerate() {
                    if let Some(failed) = self.fails_on.filter(|&failed| failed != child) {
                        for part in &parts {
                            let (file, _) = self.layout.place(part.start);
                            copy.marks_on(file)[failed] += 1;
                        }
                    }
                    copy.unlock(CLIENT, &range);
                }
                self.writes += 1;
                Step::Idle
            }
            _ if self.client && self.rng.chance(2) => Step::Locking(self.active_bytes(), 0),
            step => step,
        }
    }
}

fn as_usize(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}
