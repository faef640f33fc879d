//! The stream from the queues to a peer's disk, in one process.

mod applying;
mod receiving;
mod rings;
mod world;

use super::buffer::{BufferShape, StreamBuffer};
use super::cells::{EntryKind, Rings};
use super::in_order::{InOrder, NextEntry, StreamEntry};
use super::recorder::{Change, Recorder, Room};

/// A buffer with so many queues of a few slots and pages.
fn small(queues: usize, slots: u64, pages: u64) -> StreamBuffer {
    let mut shape = BufferShape::new(0, queues);
    // Fewer than any real one has: a test wants it full.
    shape.rings = Rings { queues, slots };
    shape.data = pages * 4096;
    StreamBuffer::make(shape).unwrap()
}

/// Records a write of these bytes, if anybody wants it.
fn record(
    buffer: &StreamBuffer,
    queue: (usize, &mut Recorder),
    offset: u64,
    bytes: &[u8],
) -> Option<Change> {
    let (number, recorder) = queue;
    let place = match recorder.make_room(buffer.cells(), bytes.len() as u64) {
        Room::At(place) => place,
        Room::NotWanted(change) => {
            recorder.end(buffer.cells(), change, true);
            return None;
        }
        Room::UnderWay => return None,
    };
    buffer.put(number, place.data, bytes).unwrap();
    let len = bytes.len() as u64;
    Some(recorder.publish(buffer.cells(), place, EntryKind::Write, offset, len))
}

/// The next entry and its bytes, taken.
fn take(
    buffer: &StreamBuffer,
    reader: &mut InOrder,
) -> Result<Option<(StreamEntry, Vec<u8>)>, Left> {
    let entry = match reader.next(buffer.cells()) {
        NextEntry::Entry(entry) => entry,
        NextEntry::Nothing => return Ok(None),
        NextEntry::Behind => return Err(Left),
    };
    let mut bytes = Vec::new();
    let got = buffer.get(entry.queue, entry.data, entry.len, &mut bytes);
    if got.is_none() || !reader.is_whole(buffer.cells()) {
        return Err(Left);
    }
    reader.take(&entry);
    Ok(Some((entry, bytes)))
}

/// The peer was left behind.
#[derive(Debug, PartialEq, Eq)]
struct Left;
