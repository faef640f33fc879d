//! One queue's side of the stream: makes room in its ring, publishes entries, says what has landed.
//!
//! Used by the queue's thread alone, and waits for nobody: who does not keep up is left behind.

use std::collections::VecDeque;

use super::cells::{Cells, EntryKind, Follows, Landing, Rings, Slot};

/// Data is placed at multiples of this, in bytes: what direct I/O asks for anywhere.
pub const ALIGNMENT: u64 = 4096;

/// Where an entry is going to be.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Room {
    /// Nobody follows: there is nothing to record, and the change may be submitted.
    NotWanted(Change),
    /// Changes of this queue that are under way hold the room: ask again when one is over.
    UnderWay,
    /// Here.
    At(Place),
}

/// A change that was begun, recorded or not; to be given to [`Recorder::end`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Change(u64);

/// Room that was found, for the next entry.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Place {
    /// Byte of the queue's data.
    pub data: u64,
    /// Where the data behind it begins, counted on and on.
    end: u64,
}

/// An entry that may still be needed.
struct Held {
    slot: Slot,
    /// Where the data behind it begins.
    end: u64,
}

/// What is known of a change that was begun.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ChangeState {
    Unrecorded,
    /// In the slot with this number.
    Recorded(u64),
    Over,
}

/// See the module.
pub struct Recorder {
    queue: usize,
    /// Bytes of the queue's data.
    data: u64,
    /// Entries published.
    published: u64,
    /// Counted on and on, as are the ends: the place is the remainder.
    data_end: u64,
    data_begin: u64,
    /// The newest that were published, the oldest first.
    held: VecDeque<Held>,
    /// The newest that were begun, the oldest first, which is not over.
    changes: VecDeque<ChangeState>,
    /// Changes before those: all over.
    over: u64,
}

impl Recorder {
    /// Of a queue whose ring nobody has used yet, with so many bytes of data, more than none.
    pub fn new(queue: usize, data: u64) -> Self {
        Self {
            queue,
            data,
            published: 0,
            data_end: 0,
            data_begin: 0,
            held: VecDeque::new(),
            changes: VecDeque::new(),
            over: 0,
        }
    }

    /// Room for an entry with `len` bytes of data. Asked after the change was let in and noted in
    /// the dirty map: see [`Cells::begin_to_follow`]. If nothing comes of the change, or it has
    /// to wait and is given up, [`Recorder::not_begun`] is owed.
    pub fn make_room(&mut self, cells: Cells<'_>, len: u64) -> Room {
        // If it has to ask again, the number is that of whichever is next.
        cells.note_begun(self.queue, self.begun() + 1);
        loop {
            if !cells.anybody_follows() {
                return Room::NotWanted(self.begin(ChangeState::Unrecorded));
            }
            if let Some(place) = self.room(cells.rings(), len) {
                return Room::At(place);
            }
            let following: Vec<_> = cells.following().collect();
            if self.free(cells, &following) {
                continue;
            }
            match self.held.front() {
                Some(oldest) if oldest.slot.landing == Landing::Pending => return Room::UnderWay,
                Some(_) => self.leave_behind_who_holds_the_oldest(cells, &following),
                // It does not fit in at all.
                None => following
                    .into_iter()
                    .for_each(|(peer, follows)| cells.leave_behind(peer, follows)),
            }
        }
    }

    /// There is no change after all for which room was asked: nobody waits for its end.
    pub fn not_begun(&mut self, cells: Cells<'_>) {
        cells.note_begun(self.queue, self.begun());
    }

    fn begun(&self) -> u64 {
        self.over + self.changes.len() as u64
    }

    fn begin(&mut self, begun: ChangeState) -> Change {
        self.changes.push_back(begun);
        Change(self.begun() - 1)
    }

    fn oldest(&self) -> u64 {
        self.published - self.held.len() as u64
    }

    /// Where the next `len` bytes go, in one piece, if they fit.
    fn room(&self, rings: Rings, len: u64) -> Option<Place> {
        let len = len.checked_next_multiple_of(ALIGNMENT)?;
        if self.held.len() as u64 >= rings.slots || len > self.data {
            return None;
        }
        let used = self.data_end % self.data;
        let begin = match used + len > self.data {
            true => self.data_end + (self.data - used),
            false => self.data_end,
        };
        let (data, end) = (begin % self.data, begin + len);
        (end - self.data_begin <= self.data).then_some(Place { data, end })
    }

    /// Gives back what nobody needs any more. Was there anything?
    fn free(&mut self, cells: Cells<'_>, following: &[(usize, Follows)]) -> bool {
        let let_go = |&(peer, _): &(usize, Follows)| cells.let_go(self.queue, peer);
        let let_go = following.iter().map(let_go).min().unwrap_or(u64::MAX);
        let before = self.held.len();
        while let Some(oldest) = self.held.front()
            && oldest.slot.landing != Landing::Pending
            && self.oldest() < let_go
        {
            self.data_begin = oldest.end;
            self.held.pop_front();
        }
        self.held.len() < before
    }

    fn leave_behind_who_holds_the_oldest(&self, cells: Cells<'_>, following: &[(usize, Follows)]) {
        for (peer, follows) in following {
            if cells.let_go(self.queue, *peer) <= self.oldest() {
                cells.leave_behind(*peer, *follows);
            }
        }
    }

    /// Publishes an entry, whose data is in its place already. Its change is submitted after this;
    /// `len` bytes at byte `offset` of the disk.
    pub fn publish(
        &mut self,
        cells: Cells<'_>,
        place: Place,
        kind: EntryKind,
        offset: u64,
        len: u64,
    ) -> Change {
        let slot = Slot {
            number: cells.take_number(),
            landing: Landing::Pending,
            offset,
            len,
            kind,
            data: place.data,
        };
        let number = self.published;
        cells.publish(self.queue, number, &slot);
        self.published += 1;
        self.data_end = place.end;
        let end = place.end;
        self.held.push_back(Held { slot, end });
        self.begin(ChangeState::Recorded(number))
    }

    /// A change is over, and the guest is not told yet.
    pub fn end(&mut self, cells: Cells<'_>, change: Change, landed: bool) {
        let place = change.0.checked_sub(self.over);
        let begun = place.and_then(|place| self.changes.get_mut(place as usize));
        let Some(begun) = begun else { return };
        if let ChangeState::Recorded(slot) = std::mem::replace(begun, ChangeState::Over) {
            self.end_entry(cells, slot, landed);
        }
        while self.changes.front() == Some(&ChangeState::Over) {
            self.changes.pop_front();
            self.over += 1;
        }
        cells.note_over(self.queue, self.over);
    }

    fn end_entry(&mut self, cells: Cells<'_>, number: u64, landed: bool) {
        let place = number.checked_sub(self.oldest());
        if let Some(held) = place.and_then(|place| self.held.get_mut(place as usize)) {
            held.slot.landing = match landed {
                true => Landing::Landed,
                false => Landing::Failed,
            };
            cells.end(self.queue, number, &held.slot);
        }
    }
}
