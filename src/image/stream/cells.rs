//! What the queues' threads and the healer tell each other, as 64-bit words of the memory that
//! they share: who follows, the sequence, and for each queue a ring of slots.
//!
//! ```text
//! the buffer   next number of the sequence │ per peer: follows?
//! a queue      slots published │ per peer: slots that it has no more need of │ changes begun, and over
//! a slot       number and status │ offset │ kind and length │ place of the data
//! ```
//!
//! One thread writes a queue's slots, one sender per peer reads them, in another process. A slot
//! is used again when its entry is over and every peer that follows has let go of it, or was left
//! behind. So who reads a slot looks afterwards whether its peer still follows: if it does, what
//! it read was whole.
//!
//! Compiled twice: here, and with loom's atomics by `tests/loom_stream.rs`.

use super::sync::{AtomicU64, Ordering, fence};

/// The most peers, as in the dirty map.
pub const PEERS: usize = 4;
/// Words apart, so that nobody's writes disturb another's reads.
const LINE: usize = 16;
/// The next number of the sequence.
const NEXT: usize = 0;
/// Per peer, whether it follows.
const FOLLOWS: usize = LINE;
/// Where the queues begin.
const QUEUES: usize = FOLLOWS + PEERS * LINE;
/// Words of a queue beside its slots.
const QUEUE: usize = (2 + PEERS) * LINE;
/// Of a queue, its changes that were begun, and behind that word those that are over.
const CHANGES: usize = (1 + PEERS) * LINE;
/// Words of a slot.
const SLOT: usize = 4;

/// How the words are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Rings, one of each queue.
    pub queues: usize,
    /// Slots of each.
    pub slots: u64,
}

impl Rings {
    /// So many words there are.
    pub fn words(self) -> usize {
        QUEUES + self.queues * self.queue_words()
    }

    fn queue_words(self) -> usize {
        QUEUE + self.slots as usize * SLOT
    }

    fn queue(self, queue: usize) -> usize {
        QUEUES + queue * self.queue_words()
    }

    /// Slots are numbered from zero on and never again; the ring has the newest of them.
    fn slot(self, queue: usize, number: u64) -> usize {
        self.queue(queue) + QUEUE + (number % self.slots) as usize * SLOT
    }
}

/// Does a peer want entries? With a number that changes each time that it begins to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follows(u64);

impl Follows {
    const ON: u64 = 1;

    /// Entries are kept for it.
    pub fn is_on(self) -> bool {
        self.0 & Self::ON != 0
    }

    fn begun_again(self) -> Self {
        Self((self.0 | Self::ON) + 2)
    }

    fn left_behind(self) -> Self {
        Self(self.0 & !Self::ON)
    }
}

/// How far the change of an entry has got on the local disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// It is under way.
    Pending,
    /// It is over.
    Landed,
    /// The disk failed: nobody knows what is there.
    Failed,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Bytes that are with it.
    Write,
    /// Bytes that read as zeros, or as whatever, and take no room.
    Discard,
    /// Bytes that read as zeros, and have their room.
    Zeroes,
    /// No bytes: a line that no change crosses.
    Flush,
}

impl EntryKind {
    const ALL: [Self; 4] = [Self::Write, Self::Discard, Self::Zeroes, Self::Flush];

    /// From a number that was one, here or in another process.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// What a slot says, as it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The number in the sequence.
    pub number: u64,
    /// Its change of the local disk.
    pub landing: Landing,
    /// Byte of the disk.
    pub offset: u64,
    /// Bytes of the disk.
    pub len: u64,
    /// What it is.
    pub kind: EntryKind,
    /// Byte of the queue's data.
    pub data: u64,
}

/// See the module.
#[derive(Clone, Copy)]
pub struct Cells<'a> {
    words: &'a [AtomicU64],
    rings: Rings,
}

impl<'a> Cells<'a> {
    /// Over [`Rings::words`] words, which are all zero at the very beginning.
    pub fn over(words: &'a [AtomicU64], rings: Rings) -> Self {
        Self { words, rings }
    }

    /// How they are cut.
    pub fn rings(self) -> Rings {
        self.rings
    }

    fn word(self, at: usize) -> &'a AtomicU64 {
        &self.words[at]
    }

    /// Takes the next number of the sequence.
    pub fn take_number(self) -> u64 {
        self.word(NEXT).fetch_add(1, Ordering::AcqRel)
    }

    /// The number that is taken next.
    pub fn next_number(self) -> u64 {
        self.word(NEXT).load(Ordering::SeqCst)
    }

    /// Everybody that follows. Orders what was published before against whoever begins.
    pub fn following(self) -> impl Iterator<Item = (usize, Follows)> {
        fence(Ordering::SeqCst);
        let all = (0..PEERS).map(move |peer| (peer, self.follows(peer)));
        all.filter(|(_, follows)| follows.is_on())
    }

    /// Whether a peer follows, now.
    pub fn follows(self, peer: usize) -> Follows {
        Follows(self.word(FOLLOWS + peer * LINE).load(Ordering::Acquire))
    }

    /// Does anybody?
    pub fn anybody_follows(self) -> bool {
        (0..PEERS).any(|peer| self.follows(peer).is_on())
    }

    /// From now on entries are kept for the peer. Whoever's write is let in and is not seen in
    /// the dirty map after this is recorded.
    pub fn begin_to_follow(self, peer: usize) -> Follows {
        let begun = self.follows(peer).begun_again();
        let word = self.word(FOLLOWS + peer * LINE);
        word.store(begun.0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        begun
    }

    /// Nothing is kept for the peer any more, if it still follows as it did then.
    pub fn leave_behind(self, peer: usize, as_then: Follows) {
        let word = self.word(FOLLOWS + peer * LINE);
        let (old, new) = (as_then.0, as_then.left_behind().0);
        let _ = word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed);
        // What is written to slots from now on is seen by nobody who does not see this.
        fence(Ordering::SeqCst);
    }

    /// Does the peer still follow as it did then? So what was read until now was whole.
    pub fn still_follows(self, peer: usize, as_then: Follows) -> bool {
        fence(Ordering::Acquire);
        Follows(self.word(FOLLOWS + peer * LINE).load(Ordering::Relaxed)) == as_then
    }

    /// Slots of a queue that were ever published.
    pub fn published(self, queue: usize) -> u64 {
        self.word(self.rings.queue(queue)).load(Ordering::SeqCst)
    }

    fn gone_from(self, queue: usize, peer: usize) -> &'a AtomicU64 {
        self.word(self.rings.queue(queue) + (1 + peer) * LINE)
    }

    /// Slots of a queue that the peer has let go of.
    pub fn let_go(self, queue: usize, peer: usize) -> u64 {
        self.gone_from(queue, peer).load(Ordering::Acquire)
    }

    /// The peer has no more need of the queue's slots before this one.
    pub fn let_go_before(self, queue: usize, peer: usize, slot: u64) {
        self.gone_from(queue, peer).store(slot, Ordering::Release);
    }

    /// So many changes of this queue were begun. Then it is looked whether anybody follows: who
    /// joins sees the one, or the queue sees the other.
    pub fn note_begun(self, queue: usize, changes: u64) {
        let begun = self.word(self.rings.queue(queue) + CHANGES);
        begun.store(changes, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Changes of a queue that were begun, recorded or not.
    pub fn begun(self, queue: usize) -> u64 {
        self.word(self.rings.queue(queue) + CHANGES)
            .load(Ordering::Acquire)
    }

    /// All changes of this queue before this one are over.
    pub fn note_over(self, queue: usize, before: u64) {
        let over = self.word(self.rings.queue(queue) + CHANGES + 1);
        over.store(before, Ordering::Release);
    }

    /// All changes of a queue before which one are over?
    pub fn over_before(self, queue: usize) -> u64 {
        self.word(self.rings.queue(queue) + CHANGES + 1)
            .load(Ordering::Acquire)
    }

    /// Publishes an entry in the queue's slot with this number, which is the next one.
    pub fn publish(self, queue: usize, number: u64, slot: &Slot) {
        let at = self.rings.slot(queue, number);
        let kind_and_len = (slot.kind as u64) << 56 | slot.len;
        // Who sees any of this sees that those who were left behind were.
        fence(Ordering::Release);
        self.word(at + 1).store(slot.offset, Ordering::Relaxed);
        self.word(at + 2).store(kind_and_len, Ordering::Relaxed);
        self.word(at + 3).store(slot.data, Ordering::Relaxed);
        self.word(at).store(stamp(slot), Ordering::Release);
        let published = self.word(self.rings.queue(queue));
        published.store(number + 1, Ordering::Release);
    }

    /// The change of the entry in this slot is over.
    pub fn end(self, queue: usize, number: u64, slot: &Slot) {
        let at = self.rings.slot(queue, number);
        self.word(at).store(stamp(slot), Ordering::Release);
    }

    /// What is in a slot, which is one that was published; nonsense, perhaps, if the peer was
    /// left behind meanwhile. `None`, if it is no entry at all.
    pub fn read(self, queue: usize, number: u64) -> Option<Slot> {
        let at = self.rings.slot(queue, number);
        let stamp = self.word(at).load(Ordering::Acquire);
        let kind_and_len = self.word(at + 2).load(Ordering::Relaxed);
        Some(Slot {
            number: stamp >> 2,
            landing: match stamp & 3 {
                LANDED => Landing::Landed,
                FAILED => Landing::Failed,
                _ => Landing::Pending,
            },
            offset: self.word(at + 1).load(Ordering::Relaxed),
            len: kind_and_len & (u64::MAX >> 8),
            kind: EntryKind::from_code((kind_and_len >> 56) as u8)?,
            data: self.word(at + 3).load(Ordering::Relaxed),
        })
    }
}

const PENDING: u64 = 0;
const LANDED: u64 = 1;
const FAILED: u64 = 2;

fn stamp(slot: &Slot) -> u64 {
    let landing = match slot.landing {
        Landing::Pending => PENDING,
        Landing::Landed => LANDED,
        Landing::Failed => FAILED,
    };
    slot.number << 2 | landing
}
