//! One queue's side of the stream: makes room in its ring, publishes entries, says what has landed.
//!
//! Used by the queue's thread alone, and waits for nobody: who does not keep up is left behind.

use std::collections::VecDeque;

use super::cells::{Cells, Cut, Follows, Kind, Landing, Slot};

/// Data is placed at multiples of this, in bytes: what direct I/O asks for anywhere.
pub const ALIGNMENT: u64 = 4096;

/// Where an entry is going to be.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Room {
    /// Nobody follows: there is nothing to record.
    NotWanted,
    /// Changes of this queue that are under way hold the room: ask again when one is over.
    UnderWay,
    /// Here.
    At(Place),
}

/// Room that was found, for the next entry.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Place {
    /// Byte of the queue's data.
    pub data: u64,
    /// Where the data behind it begins, counted on and on.
    end: u64,
}

/// A published entry whose change is under way; to be given to [`Recorder::end`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ticket(u64);

/// An entry that may still be needed.
struct Held {
    slot: Slot,
    /// Where the data behind it begins.
    end: u64,
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
        }
    }

    /// Room for an entry with `len` bytes of data. Asked after the change was let in and noted in
    /// the dirty map: see [`Cells::begin_to_follow`].
    pub fn make_room(&mut self, cells: Cells<'_>, len: u64) -> Room {
        loop {
            if !cells.anybody_follows() {
                return Room::NotWanted;
            }
            if let Some(place) = self.room(cells.cut(), len) {
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

    fn oldest(&self) -> u64 {
        self.published - self.held.len() as u64
    }

    /// Where the next `len` bytes go, in one piece, if they fit.
    fn room(&self, cut: Cut, len: u64) -> Option<Place> {
        let len = len.checked_next_multiple_of(ALIGNMENT)?;
        if self.held.len() as u64 >= cut.slots || len > self.data {
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
        kind: Kind,
        offset: u64,
        len: u64,
    ) -> Ticket {
        let slot = Slot {
            number: cells.take_number(),
            landing: Landing::Pending,
            offset,
            len,
            kind,
            data: place.data,
        };
        cells.publish(self.queue, self.published, &slot);
        self.data_end = place.end;
        let end = place.end;
        self.held.push_back(Held { slot, end });
        self.published += 1;
        Ticket(self.published - 1)
    }

    /// The change of an entry is over, and the guest is not told yet.
    pub fn end(&mut self, cells: Cells<'_>, ticket: Ticket, landed: bool) {
        let place = ticket.0.checked_sub(self.oldest());
        let held = place.and_then(|place| self.held.get_mut(place as usize));
        if let Some(held) = held {
            held.slot.landing = match landed {
                true => Landing::Landed,
                false => Landing::Failed,
            };
            cells.end(self.queue, ticket.0, &held.slot);
        }
    }
}
