//! One peer's feed: the entries of the stream in order, and beside them, at the beginning, what
//! the peer misses of the time before. It is consistent when all of that was sent, and all that
//! had landed when it was read: as a log is replayed over a copy that was made meanwhile.
//!
//! Why a copy may be read while writes are under way: their entries come later in the stream than
//! the copy and are applied over it; those that come earlier had landed when they were sent. Only
//! writes that were let in before the peer joined have no entry for it, and must be over
//! ([`InOrder::is_settled`]).
//!
//! Called by the peer's sender, which reads, sends and listens.

use std::collections::VecDeque;
use std::ops::Range;

use super::backlog::Backlog;
use super::cells::Cells;
use super::in_order::{InOrder, NextEntry, StreamEntry};
use super::outstanding::{CopyMap, Outstanding};

/// Bytes that are copied at one time. While there are entries, as many bytes of them are sent
/// before the next copy: so the ring does not fill up for the copies' sake.
const COPY: u64 = 256 * 1024;

/// What is to be sent next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// This entry: its data is read, [`Feed::is_whole`] says whether it may be sent, then
    /// [`Feed::sent_entry`].
    Entry(StreamEntry),
    /// What the disk has in these extents: first [`Feed::begin_copy`], then it is read, then
    /// [`Feed::is_whole`] says whether it may be sent.
    Copy(Range<u64>),
    /// That the copy is consistent once everything before is applied; then
    /// [`Feed::sent_consistent`].
    Consistent,
    /// Nothing now.
    Nothing,
    /// The peer was left behind.
    Behind,
}

/// How far the peer's copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FeedState {
    /// Some of what it misses is not sent.
    Missing,
    /// Consistent when everything before this number is sent.
    Until(u64),
    /// It was told so.
    Consistent,
}

/// See the module.
pub struct Feed {
    reader: InOrder,
    outstanding: Outstanding,
    backlog: Backlog,
    state: FeedState,
    /// Bytes of an extent.
    extent: u64,
    /// Bytes of entries to be sent before the next copy, if there are any.
    first_entries: u64,
    /// Of each item that is not durable, whether it is an entry.
    items: VecDeque<bool>,
    /// Items that are durable.
    durable: u64,
    /// All entries before this number are durable.
    number: u64,
}

impl Feed {
    /// Of a peer that joins now. `dirty` lists all extents that the map says it misses, and is
    /// called when the peer has joined. `extents` of so many bytes the image has.
    pub fn begin<I: IntoIterator<Item = u64>>(
        cells: Cells<'_>,
        peer: usize,
        (extents, extent): (u64, u64),
        dirty: impl FnOnce() -> I,
    ) -> Self {
        let reader = InOrder::join(cells, peer);
        let number = reader.number();
        Self {
            reader,
            outstanding: Outstanding::new(number),
            backlog: Backlog::new(extents, dirty()),
            state: FeedState::Missing,
            extent,
            first_entries: 0,
            items: VecDeque::new(),
            durable: 0,
            number,
        }
    }

    /// What is to be done next; the same again until it is told as done.
    pub fn next(&mut self, cells: Cells<'_>) -> Work {
        if self.state == FeedState::Missing && self.backlog.left() == 0 {
            self.state = FeedState::Until(cells.next_number());
        }
        // Left behind, it would miss writes that a copy may have, and later ones.
        if !self.is_whole(cells) {
            return Work::Behind;
        }
        if let FeedState::Until(number) = self.state
            && self.reader.number() >= number
        {
            return Work::Consistent;
        }
        let entry = match self.reader.next(cells) {
            NextEntry::Behind => return Work::Behind,
            NextEntry::Entry(entry) => Some(entry),
            NextEntry::Nothing => None,
        };
        let turn = self.first_entries == 0 || entry.is_none();
        let may_copy = turn && self.reader.is_settled(cells);
        let most = (COPY / self.extent).max(1);
        match (self.backlog.first(most), entry) {
            (Some(extents), _) if may_copy => Work::Copy(extents),
            (_, Some(entry)) => Work::Entry(entry),
            (_, None) => Work::Nothing,
        }
    }

    /// Does what was read until now count? If not, nothing more is sent.
    pub fn is_whole(&self, cells: Cells<'_>) -> bool {
        self.reader.is_whole(cells)
    }

    /// The entry that was to be sent is. It touches these extents.
    pub fn sent_entry(
        &mut self,
        cells: Cells<'_>,
        map: &impl CopyMap,
        entry: &StreamEntry,
        extents: Range<u64>,
    ) {
        self.reader.take(entry);
        for extent in extents {
            // Of an extent that is to be copied the peer has not all else.
            if !self.backlog.contains(extent) {
                let landed = || cells.next_number();
                self.outstanding.send(map, extent..extent + 1, landed);
            }
        }
        self.outstanding.sent(map, self.reader.number());
        self.items.push_back(true);
        self.first_entries = self.first_entries.saturating_sub(entry.len);
    }

    /// These extents, which were to be copied, are read after this and sent.
    pub fn begin_copy(&mut self, cells: Cells<'_>, map: &impl CopyMap, extents: Range<u64>) {
        self.first_entries = (extents.end - extents.start) * self.extent;
        extents
            .clone()
            .for_each(|extent| self.backlog.remove(extent));
        self.outstanding.send(map, extents, || cells.next_number());
        self.outstanding.sent(map, self.reader.number());
        self.items.push_back(false);
    }

    /// The peer was told that it is consistent there.
    pub fn sent_consistent(&mut self) {
        self.state = FeedState::Consistent;
    }

    /// Was it?
    pub fn is_consistent(&self) -> bool {
        self.state == FeedState::Consistent
    }

    /// Is this extent still to be copied?
    pub fn is_missing(&self, extent: u64) -> bool {
        self.backlog.contains(extent)
    }

    /// Extents that are still to be copied.
    pub fn missing(&self) -> u64 {
        self.backlog.left()
    }

    /// The peer has so many items durably, of those that were sent.
    pub fn durable(&mut self, cells: Cells<'_>, map: &impl CopyMap, items: u64) {
        self.outstanding.durable(map, items);
        while self.durable < items
            && let Some(entry) = self.items.pop_front()
        {
            self.durable += 1;
            self.number += u64::from(entry);
        }
        self.reader.let_go_before(cells, self.number);
    }

    /// Extents that became clean.
    pub fn cleared(&self) -> u64 {
        self.outstanding.cleared()
    }

    /// The stream to this peer is over.
    pub fn give_up(self, cells: Cells<'_>, map: &impl CopyMap) {
        self.reader.leave(cells);
        self.outstanding.give_up(map);
    }
}
