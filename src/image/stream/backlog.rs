//! The extents that a peer misses of the time before it followed, while they are copied beside
//! the stream: as in a log that is replayed over a copy made meanwhile.

use std::ops::Range;

/// Extents in one word.
const EACH: u64 = u64::BITS as u64;

/// A set of extents, of which some are taken out at a time.
#[derive(Debug, Default)]
pub struct Backlog {
    words: Vec<u64>,
    left: u64,
    /// No word before this one has any.
    from: usize,
}

impl Backlog {
    /// Of an image of so many extents.
    pub fn new(extents: u64, missing: impl IntoIterator<Item = u64>) -> Self {
        let words = extents.div_ceil(EACH) as usize;
        let mut backlog = Self {
            words: vec![0; words],
            left: 0,
            from: 0,
        };
        missing
            .into_iter()
            .for_each(|extent| backlog.insert(extent));
        backlog
    }

    fn insert(&mut self, extent: u64) {
        if let Some(word) = self.words.get_mut((extent / EACH) as usize) {
            let bit = 1 << (extent % EACH);
            self.left += u64::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Is it missing, and not taken out yet?
    pub fn contains(&self, extent: u64) -> bool {
        let word = self.words.get((extent / EACH) as usize);
        word.is_some_and(|word| word & 1 << (extent % EACH) != 0)
    }

    /// How many there are.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The first of them, and those next to it, `most` at most.
    pub fn first(&mut self, most: u64) -> Option<Range<u64>> {
        let word = self
            .words
            .get(self.from..)?
            .iter()
            .position(|word| *word != 0)?;
        self.from += word;
        let first = self.from as u64 * EACH + u64::from(self.words[self.from].trailing_zeros());
        let end = (first..first + most).find(|extent| !self.contains(*extent));
        Some(first..end.unwrap_or(first + most))
    }

    /// It is copied, or all of it was written anew.
    pub fn remove(&mut self, extent: u64) {
        if let Some(word) = self.words.get_mut((extent / EACH) as usize) {
            let bit = 1 << (extent % EACH);
            self.left -= u64::from(*word & bit != 0);
            *word &= !bit;
        }
    }
}
