//! The entries of all queues in their sequence, for one peer.
//!
//! Used by the peer's sender, in another process than the queues' threads. The numbers have no
//! gaps: the next entry is the one with the next number, in whichever ring it is, or it is not
//! published yet. It believes nothing that it reads: what makes no sense leaves the peer behind.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::cells::{Cells, EntryKind, Follows, Landing, Slot};

/// One change of the disk, or a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamEntry {
    /// Its number.
    pub number: u64,
    /// Byte of the disk.
    pub offset: u64,
    /// Bytes of the disk.
    pub len: u64,
    /// What it is.
    pub kind: EntryKind,
    /// The queue.
    pub queue: usize,
    /// Byte of the queue's data.
    pub data: u64,
    /// Has it landed on the local disk? If not, nobody knows what is there.
    pub landed: bool,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextEntry {
    /// This one: once its data was read too, [`InOrder::is_whole`] says whether it counts.
    Entry(StreamEntry),
    /// Nothing yet.
    Nothing,
    /// The peer was left behind: what was taken until now is all.
    Behind,
}

/// See the module.
pub struct InOrder {
    peer: usize,
    follows: Follows,
    /// Per queue, the slot that is looked at next.
    slots: Vec<u64>,
    /// The number that comes next.
    number: u64,
    /// Taken, and not let go of: the queue of each, the last with the number before `number`.
    taken: VecDeque<usize>,
    /// Per queue, the first slot that is not let go of.
    held: Vec<u64>,
    /// Per queue, the changes that had begun when it joined.
    before: Vec<u64>,
}

impl InOrder {
    /// From the next number on. What was let in before is in the dirty map, as far as the peer
    /// misses it, and is to be copied from there after this.
    pub fn join(cells: Cells<'_>, peer: usize) -> Self {
        let queues = || 0..cells.rings().queues;
        // At first a place that may be too early. It only has to hold nobody up.
        for queue in queues() {
            cells.let_go_before(queue, peer, cells.published(queue));
        }
        let follows = cells.begin_to_follow(peer);
        let slots: Vec<_> = queues().map(|queue| cells.published(queue)).collect();
        // Read after the places: what has this number or a later one is published behind them.
        let number = cells.next_number();
        Self {
            peer,
            follows,
            before: queues().map(|queue| cells.begun(queue)).collect(),
            held: slots.clone(),
            slots,
            number,
            taken: VecDeque::new(),
        }
    }

    /// Is every change over that is not among the entries, as it was let in before the peer
    /// joined?
    pub fn is_settled(&self, cells: Cells<'_>) -> bool {
        let mut queues = self.before.iter().enumerate();
        queues.all(|(queue, begun)| cells.over_before(queue) >= *begun)
    }

    /// The number of the entry that comes next: all before it were taken.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next entry; the same again until it is taken.
    pub fn next(&mut self, cells: Cells<'_>) -> NextEntry {
        for queue in 0..self.slots.len() {
            while let Some(slot) = self.look(cells, queue) {
                let slot = match slot {
                    Ok(slot) => slot,
                    Err(Nonsense) => return NextEntry::Behind,
                };
                match slot.number.cmp(&self.number) {
                    // Let in before the peer followed.
                    Ordering::Less => self.skip(cells, queue),
                    Ordering::Greater => break,
                    Ordering::Equal if slot.landing == Landing::Pending => {
                        return NextEntry::Nothing;
                    }
                    Ordering::Equal => return NextEntry::Entry(entry(queue, &slot)),
                }
            }
        }
        match self.is_whole(cells) {
            true => NextEntry::Nothing,
            false => NextEntry::Behind,
        }
    }

    /// The queue's next slot, if it is published.
    fn look(&self, cells: Cells<'_>, queue: usize) -> Option<Result<Slot, Nonsense>> {
        let number = self.slots[queue];
        (number < cells.published(queue)).then(|| {
            let slot = cells.read(queue, number);
            slot.filter(|_| self.is_whole(cells)).ok_or(Nonsense)
        })
    }

    /// None is skipped once one was taken: all that come after have larger numbers.
    fn skip(&mut self, cells: Cells<'_>, queue: usize) {
        self.slots[queue] += 1;
        self.held[queue] += 1;
        cells.let_go_before(queue, self.peer, self.held[queue]);
    }

    /// Was everything whole that was read until now?
    pub fn is_whole(&self, cells: Cells<'_>) -> bool {
        self.follows.is_on() && cells.still_follows(self.peer, self.follows)
    }

    /// The entry that [`InOrder::next`] gave was read; its place is still needed.
    pub fn take(&mut self, entry: &StreamEntry) {
        self.slots[entry.queue] += 1;
        self.number += 1;
        self.taken.push_back(entry.queue);
    }

    /// The peer has everything before this number, durably.
    pub fn let_go_before(&mut self, cells: Cells<'_>, number: u64) {
        while self.number - (self.taken.len() as u64) < number
            && let Some(queue) = self.taken.pop_front()
        {
            self.held[queue] += 1;
            cells.let_go_before(queue, self.peer, self.held[queue]);
        }
    }

    /// Gives up: nothing is kept for the peer any more.
    pub fn leave(self, cells: Cells<'_>) {
        cells.leave_behind(self.peer, self.follows);
    }
}

/// The peer was left behind, or what was read is no entry.
struct Nonsense;

fn entry(queue: usize, slot: &Slot) -> StreamEntry {
    StreamEntry {
        number: slot.number,
        offset: slot.offset,
        len: slot.len,
        kind: slot.kind,
        queue,
        data: slot.data,
        landed: slot.landing == Landing::Landed,
    }
}
