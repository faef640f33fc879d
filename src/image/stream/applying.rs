//! In what order a peer's disk may be changed: everything before a flush before everything behind
//! it, and of what lies on the same bytes the earlier one first. All else at the same time.
//!
//! Called by whoever applies a stream. Pure: it says which change may begin, and hears which is
//! over.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// What a change is to this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderedStep<T> {
    /// Bytes of the disk, and whatever goes with them.
    Change(Range<u64>, T),
    /// A line that none crosses.
    Flush,
}

/// See the module.
#[derive(Debug)]
pub struct Applying<T> {
    /// Not begun, in order, the first with the number `begun`.
    waiting: VecDeque<OrderedStep<T>>,
    /// The number of the first that was not begun.
    begun: u64,
    /// Under way: by number, where each begins.
    under_way: BTreeMap<u64, u64>,
    /// The bytes of those, which do not overlap: by the beginning, the end.
    busy: BTreeMap<u64, u64>,
}

impl<T> Applying<T> {
    /// Nothing yet; the first entry will have this number.
    pub fn new(first: u64) -> Self {
        Self {
            waiting: VecDeque::new(),
            begun: first,
            under_way: BTreeMap::new(),
            busy: BTreeMap::new(),
        }
    }

    /// The next entry of the sequence.
    pub fn push(&mut self, step: OrderedStep<T>) {
        self.waiting.push_back(step);
    }

    /// Entries that were not begun.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A change that may begin now, with its number; [`Applying::over`] is owed when it is over.
    pub fn begin(&mut self) -> Option<(u64, Range<u64>, T)> {
        loop {
            match self.waiting.front()? {
                OrderedStep::Flush if !self.under_way.is_empty() => return None,
                OrderedStep::Change(range, _) if self.is_busy(range) => return None,
                OrderedStep::Flush | OrderedStep::Change(..) => {}
            }
            let number = self.begun;
            self.begun += 1;
            if let Some(OrderedStep::Change(range, what)) = self.waiting.pop_front() {
                self.under_way.insert(number, range.start);
                self.busy.insert(range.start, range.end);
                return Some((number, range, what));
            }
        }
    }

    /// Of those under way only the last that begins before the end can reach into it.
    fn is_busy(&self, range: &Range<u64>) -> bool {
        let last = self.busy.range(..range.end).next_back();
        last.is_some_and(|(_, end)| *end > range.start)
    }

    /// The change with this number is on the peer's disk.
    pub fn over(&mut self, number: u64) {
        if let Some(begin) = self.under_way.remove(&number) {
            self.busy.remove(&begin);
        }
    }

    /// Everything before this number is on the peer's disk, if not yet durable.
    pub fn applied(&self) -> u64 {
        let first = self.under_way.keys().next();
        first.copied().unwrap_or(self.begun)
    }
}
