//! What was sent to a peer, and what the dirty map may forget of it once it is durable there.
//!
//! An extent is cleared by the map's own rule: *copying* is set while no write is in flight in
//! it, and still stands when the peer has it durably. That tells of writes that came after. Those
//! that came before *copying* was set, and are later in the stream than what is durable, it does
//! not tell of: they had landed, and may not have been sent. So it is noted how far the sequence
//! had got when *copying* was set, and the extent is cleared when the stream was sent that far,
//! and the last that was sent of it is durable.
//!
//! Used by [`super::feed`].

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

/// What is known of an extent that was sent.
#[derive(Clone, Copy, Debug)]
struct Touched {
    /// The last item that had some of it.
    last: u64,
    /// All entries that had landed there when *copying* was set have a smaller number.
    landed: u64,
}

/// See the module. Items are what is sent, entries and copies, counted from zero on.
#[derive(Debug, Default)]
pub struct Outstanding {
    /// Sent and not durable: the extents of each item that counts.
    items: VecDeque<(u64, Range<u64>)>,
    /// Items that were sent.
    sent_items: u64,
    /// Items before this one are durable.
    durable: u64,
    touched: HashMap<u64, Touched>,
    /// Durable, but not all was sent yet that might have landed there.
    late: VecDeque<u64>,
    /// All entries before this number were sent.
    sent: u64,
    /// Extents that are clean.
    cleared: u64,
}

impl Outstanding {
    /// Entries before this number are not sent.
    pub fn new(number: u64) -> Self {
        Self {
            sent: number,
            ..Self::default()
        }
    }

    /// An item is sent now with bytes of these extents, of which the peer has all else, too;
    /// `landed` asks for the next number of the sequence.
    pub fn send(&mut self, map: &impl CopyMap, extents: Range<u64>, landed: impl Fn() -> u64) {
        for extent in extents.clone() {
            let touched = self.touched.entry(extent);
            let touched = touched.or_insert(Touched { last: 0, landed: 0 });
            touched.last = self.sent_items;
            // If it is set already, by an earlier item, that holds for this one.
            if map.begin(extent) {
                touched.landed = landed();
            }
        }
        self.items.push_back((self.sent_items, extents));
    }

    /// All of an item was told by [`Outstanding::send`]. All entries before this number are sent.
    pub fn sent(&mut self, map: &impl CopyMap, before: u64) {
        self.sent_items += 1;
        self.sent = before;
        for _ in 0..self.late.len() {
            if let Some(extent) = self.late.pop_front() {
                self.settle(map, extent);
            }
        }
    }

    /// The peer has all items before this one durably.
    pub fn durable(&mut self, map: &impl CopyMap, before: u64) {
        self.durable = before;
        while let Some((item, _)) = self.items.front()
            && *item < before
            && let Some((item, extents)) = self.items.pop_front()
        {
            for extent in extents {
                let touched = self.touched.get(&extent);
                if touched.is_some_and(|touched| touched.last == item) {
                    self.settle(map, extent);
                }
            }
        }
    }

    /// Of an extent of which something was durable that was the last.
    fn settle(&mut self, map: &impl CopyMap, extent: u64) {
        match self.touched.get(&extent) {
            // Something was sent since.
            Some(touched) if touched.last >= self.durable => {}
            Some(touched) if touched.landed > self.sent => self.late.push_back(extent),
            Some(_) => {
                self.touched.remove(&extent);
                self.cleared += u64::from(map.end(extent));
            }
            None => {}
        }
    }

    /// Items that were sent.
    pub fn items(&self) -> u64 {
        self.sent_items
    }

    /// Extents that became clean.
    pub fn cleared(&self) -> u64 {
        self.cleared
    }

    /// The stream is over: what is not durable stays dirty.
    pub fn give_up(self, map: &impl CopyMap) {
        self.touched
            .into_keys()
            .for_each(|extent| map.abandon(extent));
    }
}
