//! Finding and counting extents, a word (four extents) at a time.
//!
//! Each word is read at its own moment: under writes a result is true of no
//! single instant. It is exact while nothing changes, such as behind a closed
//! gate.

use super::extent::{LANES, spread};
use super::sync::{AtomicU64, Ordering};

/// Words that [`Scan::any`] reads before it looks whether it has found all.
const RUN: usize = 512;

/// The words of a map together with how many extents they hold.
#[derive(Clone, Copy)]
pub struct Scan<'a> {
    words: &'a [AtomicU64],
    extents: u64,
}

impl<'a> Scan<'a> {
    /// Over the first `extents` lanes of `words`.
    pub fn new(words: &'a [AtomicU64], extents: u64) -> Self {
        Self { words, extents }
    }

    /// How many extents have the bit `bit` of their state set.
    pub fn count(self, bit: u16) -> u64 {
        self.sum(|word| word & spread(bit))
    }

    /// Which of `bits` are set in any extent. One pass for all of them, which ends as soon
    /// as all are found.
    pub fn any(self, bits: u16) -> u16 {
        let (full, last) = self.split();
        let mut found = gather(last) & bits;
        for run in full.chunks(RUN) {
            if found == bits {
                break;
            }
            let each = run.iter().map(|word| word.load(Ordering::Acquire));
            found |= gather(each.fold(0, |all, word| all | word)) & bits;
        }
        found
    }

    /// In how many extents a write is in flight.
    pub fn count_in_flight(self) -> u64 {
        self.sum(in_flight)
    }

    /// The first extent at or after `from` that has the bit `bit` set.
    pub fn next(self, bit: u16, from: u64) -> Option<u64> {
        self.find(from, |word| word & spread(bit))
    }

    /// The first extent at or after `from` with a write in flight.
    pub fn next_in_flight(self, from: u64) -> Option<u64> {
        self.find(from, in_flight)
    }

    /// `pick` leaves at most one bit a lane.
    fn sum(self, pick: impl Fn(u64) -> u64) -> u64 {
        let (full, last) = self.split();
        let count = |word: u64| u64::from(pick(word).count_ones());
        let full = full.iter().map(|word| word.load(Ordering::Acquire));
        full.map(count).sum::<u64>() + count(last)
    }

    /// `pick` leaves at most one bit a lane.
    fn find(self, from: u64, pick: impl Fn(u64) -> u64) -> Option<u64> {
        let first = usize::try_from(from / LANES as u64).ok()?;
        let mut skipped = u64::MAX << ((from % LANES as u64) * 16);
        for (index, word) in self.words.iter().enumerate().skip(first) {
            let hits = pick(word.load(Ordering::Acquire)) & skipped;
            skipped = u64::MAX;
            if hits != 0 {
                let lane = u64::from(hits.trailing_zeros()) / 16;
                let extent = index as u64 * LANES as u64 + lane;
                return (extent < self.extents).then_some(extent);
            }
        }
        None
    }

    /// All words but the last, and of that one the lanes that are extents.
    fn split(self) -> (&'a [AtomicU64], u64) {
        match self.words.split_last() {
            Some((last, full)) => (full, last.load(Ordering::Acquire) & self.valid_in_last()),
            None => (self.words, 0),
        }
    }

    /// The lanes of the last word that are extents.
    fn valid_in_last(self) -> u64 {
        match self.extents % LANES as u64 {
            0 => u64::MAX,
            lanes => !(u64::MAX << (lanes * 16)),
        }
    }
}

/// The bits that any lane has.
fn gather(word: u64) -> u16 {
    let pairs = word | word >> 32;
    (pairs | pairs >> 16) as u16
}

/// Bit 8 of every lane that has a write in flight: a count of at least one plus
/// 255 carries into it.
fn in_flight(word: u64) -> u64 {
    let count = spread(0x00ff);
    ((word & count) + count) & spread(0x0100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(lanes: &[u16]) -> Vec<AtomicU64> {
        let word = |four: &[u16]| {
            let lanes = four.iter().enumerate();
            AtomicU64::new(lanes.fold(0, |w, (i, &l)| w | u64::from(l) << (16 * i)))
        };
        lanes.chunks(LANES).map(word).collect()
    }

    #[test]
    fn counts_every_extent_with_the_bit_and_no_other() {
        let words = words(&[0x0100, 0x0201, 0x0f00, 0, 0x10ff, 0x0102]);
        let scan = Scan::new(&words, 6);
        assert_eq!(scan.count(0x0100), 3);
        assert_eq!(scan.count(0x0200), 2);
        assert_eq!(scan.count_in_flight(), 3);
    }

    #[test]
    fn lanes_behind_the_last_extent_count_for_nothing() {
        let words = words(&[0, 0, 0, 0, 0x0100, 0x01ff, 0x0fff]);
        let scan = Scan::new(&words, 5);
        assert_eq!(scan.count(0x0100), 1);
        assert_eq!(scan.count_in_flight(), 0);
        assert_eq!(scan.next(0x0100, 5), None);
        assert_eq!(scan.next_in_flight(0), None);
    }

    #[test]
    fn one_pass_finds_the_bits_of_all_extents_wherever_they_are() {
        for extents in [1, 4, 5, 4 * RUN + 1, 8 * RUN + 3] {
            for at in [0, extents / 2, extents - 1] {
                let mut lanes = vec![0x00ff_u16; extents];
                lanes[at] |= 0x0200;
                lanes.push(0x0100); // behind the last extent
                let mut words = words(&lanes);
                words.truncate(extents.div_ceil(LANES));
                let scan = Scan::new(&words, extents as u64);
                assert_eq!(scan.any(0x0300), 0x0200, "{at} of {extents}");
                assert_eq!(scan.any(0x0100), 0);
            }
        }
        let all = words(&[0x0100, 0, 0, 0, 0x0800, 0x0200, 0]);
        assert_eq!(Scan::new(&all, 7).any(0x0f00), 0x0b00);
        assert_eq!(Scan::new(&[], 0).any(0x0f00), 0);
    }

    #[test]
    fn finds_each_extent_in_turn_and_then_nothing() {
        let words = words(&[0, 0x0100, 0, 0x0100, 0, 0, 0, 0, 0x0100]);
        let scan = Scan::new(&words, 9);
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(extent) = scan.next(0x0100, from) {
            found.push(extent);
            from = extent + 1;
        }
        assert_eq!(found, [1, 3, 8]);
        assert_eq!(scan.next(0x0100, u64::MAX), None);
    }
}
