//! The receiver's part, as a machine: which changes may begin, when the disk is synced, what the
//! record says and what the sender is told. Whoever drives it has the socket, the disk and the
//! clock.
//!
//! The record comes first: nothing is changed before it says that the copy is inconsistent, or
//! that it is no longer settled, and that is durable.

use std::collections::VecDeque;
use std::time::Duration;

use uuid::Uuid;

use super::applying::{Applying, OrderedStep};
use super::cells::EntryKind;
use super::message::{FromReceiver, Item};
use super::standing::{CopyRecord, CopyStanding};

/// Changes under way at one time, at most.
const UNDER_WAY: usize = 64;
/// Bytes of changes after which the disk is synced.
const SYNC_BYTES: u64 = 16 << 20;
/// And the time.
const SYNC_PAUSE: Duration = Duration::from_secs(1);
/// The most items that were received and not begun, after which no more are read.
const WAITING: usize = 4096;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Do<T> {
    /// Change the disk; then [`Receiving::over`] with this number.
    Change {
        /// Of the item.
        number: u64,
        /// What.
        item: Item,
        /// Its data.
        data: T,
    },
    /// Make all that is over durable; then [`Receiving::synced`].
    Sync,
    /// Replace the record, durably; then [`Receiving::stored`].
    Store(CopyRecord),
    /// Send this.
    Tell(FromReceiver),
}

/// What the record is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnRecord {
    /// It says so.
    Stored,
    /// It is being written.
    Storing,
}

/// See the module. Times are of any clock that goes on.
pub struct Receiving<T> {
    applying: Applying<(Item, T)>,
    /// Items that count.
    received: u64,
    /// Those that do when it is said that they were whole.
    unsure: Vec<(Item, T)>,
    under_way: usize,
    record: CopyRecord,
    state: OnRecord,
    /// Consistent, when so many items are applied.
    consistent: Option<u64>,
    /// With so many items it is as of this time.
    as_of: VecDeque<(u64, u64)>,
    durable: u64,
    /// The disk is being synced, with so many items applied.
    syncing: Option<u64>,
    /// Bytes of changes since the last sync began, and when that was.
    changed: u64,
    synced_at: Duration,
    /// The sender asked for a sync when so many items had been received.
    asked: Option<u64>,
    /// What it was told last.
    told: (u64, u64),
}

impl<T> Receiving<T> {
    /// Of a session, in this boot of the host. Nothing is known of the copy: it is inconsistent
    /// until the sender says otherwise.
    pub fn begin(session: Uuid, boot: Uuid, now: Duration) -> (Self, Do<T>) {
        let record = CopyRecord {
            session,
            boot,
            settled: false,
            standing: CopyStanding::Inconsistent,
        };
        let receiving = Self {
            applying: Applying::new(0),
            received: 0,
            unsure: Vec::new(),
            under_way: 0,
            record,
            state: OnRecord::Storing,
            consistent: None,
            as_of: VecDeque::new(),
            durable: 0,
            syncing: None,
            changed: 0,
            synced_at: now,
            asked: None,
            told: (0, 0),
        };
        (receiving, Do::Store(record))
    }

    /// May more be read from the sender?
    pub fn wants_more(&self) -> bool {
        self.applying.waiting() + self.unsure.len() < WAITING
    }

    /// An item, which counts when [`Receiving::whole`] is said.
    pub fn item(&mut self, item: Item, data: T) {
        self.unsure.push((item, data));
    }

    /// The items until now count.
    pub fn whole(&mut self) {
        for (item, data) in std::mem::take(&mut self.unsure) {
            self.received += 1;
            self.applying.push(match item.kind {
                EntryKind::Flush => OrderedStep::Flush,
                _ => OrderedStep::Change(item.offset..item.offset + item.len, (item, data)),
            });
        }
    }

    /// With all items until now the copy is consistent.
    pub fn consistent(&mut self) {
        self.consistent.get_or_insert(self.received);
    }

    /// With all items until now it is as of this time.
    pub fn as_of(&mut self, time: u64) {
        self.as_of.push_back((self.received, time));
    }

    /// The sender waits for all items until now to be durable.
    pub fn sync_asked(&mut self) {
        self.asked = Some(self.received);
    }

    /// A change is on the disk, if not durably.
    pub fn over(&mut self, number: u64, bytes: u64) {
        self.applying.over(number);
        self.under_way -= 1;
        self.changed += bytes;
    }

    /// The disk has all that was over when this began.
    pub fn synced(&mut self) {
        if let Some(applied) = self.syncing.take() {
            self.durable = applied;
        }
    }

    /// The record says what it was to say.
    pub fn stored(&mut self) {
        self.state = OnRecord::Stored;
    }

    /// What the copy is, as the record says.
    pub fn standing(&self) -> CopyStanding {
        self.record.standing
    }

    /// What is to be done now; asked until there is nothing.
    pub fn next(&mut self, now: Duration) -> Option<Do<T>> {
        if let Some(change) = self.next_change() {
            return Some(change);
        }
        if self.is_sync_due(now) {
            (self.changed, self.synced_at) = (0, now);
            self.syncing = Some(self.applying.applied());
            return Some(Do::Sync);
        }
        if let Some(record) = self.next_record() {
            (self.record, self.state) = (record, OnRecord::Storing);
            return Some(Do::Store(record));
        }
        let progress = (self.applying.applied(), self.durable);
        (progress != self.told).then(|| {
            self.told = progress;
            let (applied, durable) = progress;
            Do::Tell(FromReceiver::Progress { applied, durable })
        })
    }

    fn next_change(&mut self) -> Option<Do<T>> {
        let may = self.state == OnRecord::Stored && !self.record.settled;
        if !may || self.under_way >= UNDER_WAY {
            return None;
        }
        let (number, _, (item, data)) = self.applying.begin()?;
        self.under_way += 1;
        Some(Do::Change { number, item, data })
    }

    fn is_sync_due(&self, now: Duration) -> bool {
        let applied = self.applying.applied();
        let asked = self
            .asked
            .is_some_and(|asked| asked <= applied && asked > self.durable);
        let late = now.saturating_sub(self.synced_at) >= SYNC_PAUSE;
        self.syncing.is_none()
            && self.durable < applied
            && (asked || late || self.changed >= SYNC_BYTES)
    }

    /// What the record should say, if it says something else.
    fn next_record(&mut self) -> Option<CopyRecord> {
        if self.state == OnRecord::Storing {
            return None;
        }
        let applied = self.applying.applied();
        let mut record = self.record;
        record.settled = self.durable == self.received && self.unsure.is_empty();
        if self.consistent.is_some_and(|from| from <= applied) {
            while let Some((items, as_of)) = self.as_of.front()
                && *items <= applied
            {
                record.standing = CopyStanding::Consistent { as_of: *as_of };
                self.as_of.pop_front();
            }
        }
        (record != self.record).then_some(record)
    }
}
