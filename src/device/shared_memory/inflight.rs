//! The record of requests in flight (`VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD`), by
//! which requests outlive the process that took them.
//!
//! The front-end keeps the memory and hands it to whoever serves it next. Layout
//! and the order of all stores: vhost-user specification, "Inflight I/O
//! tracking", split virtqueues. [`Record`] is one queue's part of it. What is
//! read from the memory is checked once, in [`Record::open`]; while requests run
//! it is only written. So the front-end, which can write to it at any time, can
//! spoil what the next process finds, and nothing else.
//!
//! Every store is visible to the next process in program order, so a crash leaves
//! what some number of the first stores made. It submits nothing: what to do
//! again is told to `intake`.

use vm_memory::AtomicAccess;

mod region;

pub use region::{Description, Inflight, InflightError, QueueCells};

/// The only version there is; 0 is memory that was never used.
const VERSION: u16 = 1;

/// Offsets in a queue's part, in bytes (`QueueRegionSplit`).
const FEATURES: usize = 0;
const VERSION_AT: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const HEADER_LEN: usize = 16;
/// Offsets in an entry (`DescStateSplit`), one per descriptor.
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;
const ENTRY_LEN: usize = 16;

/// Bytes of the part of a queue with so many descriptors.
const fn part_len(entries: u16) -> usize {
    HEADER_LEN + ENTRY_LEN * entries as usize
}

/// Why a record cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by who knows what.
    #[error("the record of requests in flight has version {version}, not {VERSION}")]
    Version {
        /// As found.
        version: u16,
    },
    /// No feature is defined.
    #[error("the record of requests in flight has the unknown features {features:#x}")]
    Features {
        /// As found.
        features: u64,
    },
    /// Not the size that it was described with.
    #[error("the record of requests in flight has {found} entries, {entries} were announced")]
    Entries {
        /// As found.
        found: u16,
        /// As described.
        entries: u16,
    },
    /// The ring has descriptors that have no entry.
    #[error("the record of requests in flight has {entries} entries, the ring {ring}")]
    RingSize {
        /// Entries of the record.
        entries: u16,
        /// Entries of the ring.
        ring: u16,
    },
    /// Neither in flight nor not.
    #[error("the record of requests in flight marks descriptor {head} with {mark}")]
    Mark {
        /// The descriptor.
        head: u16,
        /// As found.
        mark: u8,
    },
    /// A descriptor that the ring does not have is in flight.
    #[error("the record has descriptor {head} in flight, in a ring of {ring}")]
    Head {
        /// The descriptor.
        head: u16,
        /// Entries of the ring.
        ring: u16,
    },
    /// More were answered at once than there are.
    #[error(
        "the record of requests in flight ends at used index {recorded}, the ring of {ring} is at {used}"
    )]
    UsedIndex {
        /// As recorded.
        recorded: u16,
        /// As the guest sees it.
        used: u16,
        /// Entries of the ring.
        ring: u16,
    },
    /// The list of the last batch leaves the record or comes back to where it was.
    #[error("the record's list of the last answers is broken at descriptor {head}")]
    Batch {
        /// The descriptor.
        head: u16,
    },
    /// Two requests cannot have been taken at the same time.
    #[error("the record has two requests in flight with the counter {counter}")]
    Order {
        /// The counter.
        counter: u64,
    },
    /// There is no counter left for the next request.
    #[error("the record's counter of requests is at its end")]
    Counter,
}

/// The memory of one queue's part. Offsets are below [`part_len`] and aligned;
/// a store is visible to other processes before any later one.
pub trait Cells {
    /// Reads a value.
    fn load<T: AtomicAccess + Default>(&self, offset: usize) -> T;
    /// Writes a value.
    fn store<T: AtomicAccess + Default>(&self, offset: usize, value: T);
}

/// A record that has been read and repaired.
#[derive(Debug)]
pub struct Opened<C> {
    /// For what happens from now on.
    pub record: Record<C>,
    /// Heads of the chains that were in flight, in the order they were taken.
    /// `None` for memory that was never used.
    pub again: Option<Vec<u16>>,
}

/// One queue's requests in flight.
#[derive(Debug)]
pub struct Record<C> {
    cells: C,
    entries: u16,
    /// The counter of the next request.
    counter: u64,
    last_batch_head: u16,
    /// Heads answered since the used index was last published.
    batch: Vec<u16>,
}

impl<C: Cells> Record<C> {
    /// Reads what `cells` of `entries` descriptors say about a ring of `ring`
    /// entries whose used index is `used`, and brings it up to date.
    ///
    /// # Errors
    /// The first thing that no correct back-end can have left; nothing is changed then.
    pub fn open(cells: C, entries: u16, ring: u16, used: u16) -> Result<Opened<C>, RecordError> {
        if ring > entries {
            return Err(RecordError::RingSize { entries, ring });
        }
        let again = match cells.load(VERSION_AT) {
            0 => {
                format(&cells, entries, used);
                None
            }
            VERSION => Some(recover(&cells, entries, ring, used)?),
            version => return Err(RecordError::Version { version }),
        };
        let newest = again.iter().flatten().last();
        let counter = match newest {
            None => 0,
            Some(&head) => cells
                .load::<u64>(entry(head) + COUNTER)
                .checked_add(1)
                .ok_or(RecordError::Counter)?,
        };
        let last_batch_head = cells.load(LAST_BATCH_HEAD);
        let record = Self {
            cells,
            entries,
            counter,
            last_batch_head,
            batch: Vec::with_capacity(usize::from(entries)),
        };
        Ok(Opened { record, again })
    }

    /// Makes `cells` a record with nothing in flight, of a ring whose used index is `used`.
    pub fn forget(cells: &C, entries: u16, used: u16) {
        format(cells, entries, used);
    }

    /// The chain at `head` was taken from the available ring.
    pub fn taken(&mut self, head: u16) {
        if head < self.entries {
            self.cells.store(entry(head) + COUNTER, self.counter);
            // 2^64 requests are more than any device serves.
            self.counter = self.counter.wrapping_add(1);
            self.cells.store(entry(head) + INFLIGHT, 1u8);
        }
    }

    /// The chain at `head`, the last that was taken, goes back.
    pub fn untaken(&mut self, head: u16) {
        if head < self.entries {
            self.cells.store(entry(head) + INFLIGHT, 0u8);
        }
    }

    /// The chain at `head` has a used element that is not published yet.
    pub fn answered(&mut self, head: u16) {
        if head < self.entries {
            self.cells.store(entry(head) + NEXT, self.last_batch_head);
            self.cells.store(LAST_BATCH_HEAD, head);
            self.last_batch_head = head;
            self.batch.push(head);
        }
    }

    /// The used index is now `used`: the guest sees every answer so far.
    pub fn published(&mut self, used: u16) {
        for head in self.batch.drain(..) {
            self.cells.store(entry(head) + INFLIGHT, 0u8);
        }
        self.cells.store(USED_IDX, used);
    }
}

fn entry(head: u16) -> usize {
    HEADER_LEN + ENTRY_LEN * usize::from(head)
}

/// Makes memory a record with nothing in flight; the version comes last.
fn format<C: Cells>(cells: &C, entries: u16, used: u16) {
    cells.store(FEATURES, 0u64);
    cells.store(DESC_NUM, entries);
    cells.store(LAST_BATCH_HEAD, 0u16);
    cells.store(USED_IDX, used);
    for head in 0..entries {
        cells.store(entry(head) + INFLIGHT, 0u8);
    }
    cells.store(VERSION_AT, VERSION);
}

/// The specification's steps "when reconnecting", with everything checked before
/// the first store. Returns the heads in flight, oldest first.
fn recover<C: Cells>(
    cells: &C,
    entries: u16,
    ring: u16,
    used: u16,
) -> Result<Vec<u16>, RecordError> {
    check_header(cells, entries)?;
    let mut in_flight = marks(cells, entries)?;
    let recorded: u16 = cells.load(USED_IDX);
    // With nothing in flight there is nothing to find out: a driver that began
    // anew has set its index back.
    if recorded != used && in_flight.contains(&true) {
        let batch = used.wrapping_sub(recorded);
        if batch > ring {
            return Err(RecordError::UsedIndex {
                recorded,
                used,
                ring,
            });
        }
        for head in last_batch(cells, entries, batch)? {
            if let Some(mark) = in_flight.get_mut(usize::from(head)) {
                *mark = false;
            }
        }
    }
    let again = in_order(cells, &in_flight, ring)?;
    for (head, in_flight) in (0..entries).zip(in_flight) {
        if !in_flight {
            cells.store(entry(head) + INFLIGHT, 0u8);
        }
    }
    cells.store(USED_IDX, used);
    Ok(again)
}

fn check_header<C: Cells>(cells: &C, entries: u16) -> Result<(), RecordError> {
    let features = cells.load(FEATURES);
    if features != 0 {
        return Err(RecordError::Features { features });
    }
    let found = cells.load(DESC_NUM);
    if found != entries {
        return Err(RecordError::Entries { found, entries });
    }
    Ok(())
}

fn marks<C: Cells>(cells: &C, entries: u16) -> Result<Vec<bool>, RecordError> {
    (0..entries)
        .map(|head| match cells.load(entry(head) + INFLIGHT) {
            0u8 => Ok(false),
            1 => Ok(true),
            mark => Err(RecordError::Mark { head, mark }),
        })
        .collect()
}

/// The heads of the last `len` answers. What the list holds behind them is of
/// older batches, and may lead back into itself.
fn last_batch<C: Cells>(cells: &C, entries: u16, len: u16) -> Result<Vec<u16>, RecordError> {
    let mut seen = vec![false; usize::from(entries)];
    let mut batch = Vec::with_capacity(usize::from(len));
    let mut head: u16 = cells.load(LAST_BATCH_HEAD);
    for _ in 0..len {
        match seen.get_mut(usize::from(head)) {
            Some(seen @ false) => *seen = true,
            _ => return Err(RecordError::Batch { head }),
        }
        batch.push(head);
        head = cells.load(entry(head) + NEXT);
    }
    Ok(batch)
}

/// The heads that are in flight, by their counters.
fn in_order<C: Cells>(cells: &C, in_flight: &[bool], ring: u16) -> Result<Vec<u16>, RecordError> {
    let mut heads = Vec::new();
    for (head, _) in (0..).zip(in_flight).filter(|(_, in_flight)| **in_flight) {
        if head >= ring {
            return Err(RecordError::Head { head, ring });
        }
        heads.push((cells.load::<u64>(entry(head) + COUNTER), head));
    }
    heads.sort_unstable();
    for (&(counter, _), &(next, _)) in heads.iter().zip(heads.iter().skip(1)) {
        if counter == next {
            return Err(RecordError::Order { counter });
        }
    }
    if heads
        .last()
        .is_some_and(|&(counter, _)| counter == u64::MAX)
    {
        return Err(RecordError::Counter);
    }
    Ok(heads.into_iter().map(|(_, head)| head).collect())
}

#[cfg(test)]
mod tests;
