//! What was sent to a peer, and what the dirty map may forget of it once it is durable there.
//!
//! An extent is cleared by the map's own rule: *copying* is set while no write is in flight in
//! it, and still stands when the peer has it durably. That tells of writes that came after. Those
//! that came before *copying* was set, and are later in the stream than what is durable, it does
//! not tell of: they had landed, and may not have been sent. So it is noted how far the sequence
//! had got when *copying* was set, and the extent is cleared when the stream was sent that far,
//! and the last entry of it that touched the extent is durable.
//!
//! Used by the peer's sender.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// What the sender does with the dirty map, for its peer.
pub trait CopyMap {
    /// As [`crate::image::dirty_map::Healer::begin_copy`].
    fn begin(&self, extent: u64) -> bool;

    /// As [`crate::image::dirty_map::Healer::end_copy`]: is it cleared?
    fn end(&self, extent: u64) -> bool;

    /// As [`crate::image::dirty_map::Healer::abandon_copy`].
    fn abandon(&self, extent: u64);
}

/// What is known of an extent that an entry touched.
#[derive(Clone, Copy, Debug)]
struct Touched {
    /// The last entry that did.
    last: u64,
    /// All that had landed there when *copying* was set has a smaller number.
    landed: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Outstanding {
    /// Sent and not durable: the number after it, and the extents.
    entries: VecDeque<(u64, Range<u64>)>,
    touched: HashMap<u64, Touched>,
    /// Durable, but not all was sent yet that might have landed there.
    late: VecDeque<u64>,
    /// Everything before this number was sent.
    sent: u64,
}

impl Outstanding {
    /// An entry is sent now that touches these extents. `next_number` asks for the next number of
    /// the sequence.
    pub fn send(
        &mut self,
        map: &impl CopyMap,
        number: u64,
        extents: Range<u64>,
        next_number: impl Fn() -> u64,
    ) {
        for extent in extents.clone() {
            let touched = self.touched.entry(extent);
            let touched = touched.or_insert(Touched {
                last: number,
                landed: 0,
            });
            touched.last = number;
            // If it is set already, by an earlier entry, that holds for this one.
            if map.begin(extent) {
                touched.landed = next_number();
            }
        }
        self.entries.push_back((number + 1, extents));
        self.sent = number + 1;
        self.end_late(map);
    }

    /// The peer has everything before this number durably. How many extents are clean now?
    pub fn durable(&mut self, map: &impl CopyMap, before: u64) -> u64 {
        let mut cleared = 0;
        while let Some((end, _)) = self.entries.front()
            && *end <= before
            && let Some((end, extents)) = self.entries.pop_front()
        {
            for extent in extents {
                match self.touched.get(&extent) {
                    Some(touched) if touched.last + 1 != end => {}
                    Some(touched) if touched.landed > self.sent => self.late.push_back(extent),
                    Some(_) => cleared += self.end(map, extent),
                    None => {}
                }
            }
        }
        cleared
    }

    fn end(&mut self, map: &impl CopyMap, extent: u64) -> u64 {
        self.touched.remove(&extent);
        map.end(extent).into()
    }

    /// An entry that was sent meanwhile may have touched them.
    fn end_late(&mut self, map: &impl CopyMap) {
        for _ in 0..self.late.len() {
            let Some(extent) = self.late.pop_front() else {
                return;
            };
            let oldest = self.entries.front().map_or(self.sent, |(end, _)| end - 1);
            match self.touched.get(&extent) {
                Some(touched) if touched.last >= oldest => {}
                Some(touched) if touched.landed > self.sent => self.late.push_back(extent),
                Some(_) => {
                    self.end(map, extent);
                }
                None => {}
            }
        }
    }

    /// Entries that are not durable.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// The stream is over: what is not durable stays dirty.
    pub fn give_up(self, map: &impl CopyMap) {
        self.touched.into_keys().for_each(|extent| map.abandon(extent));
    }
}
