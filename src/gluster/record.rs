//! Record marking (RFC 5531, section 11): messages in a byte stream.
//!
//! A record is one or more fragments, each preceded by 32 bits: the length, and
//! in the top bit whether it is the last. [`RecordDecoder`] puts them together
//! without doing I/O itself: the connection's reader asks where the next bytes
//! belong, puts them there and says how many came.

use thiserror::Error;

/// The longest record taken or sent: Gluster's largest I/O of 1 MiB with room
/// for its headers, and volfiles of large volumes.
pub const MAX_RECORD: usize = (2 << 20) + (64 << 10);

/// Fragments in one record. Gluster sends one or two; the limit stops a peer
/// that sends empty fragments for ever.
pub const MAX_FRAGMENTS: usize = 64;

/// Bytes of the mark before each fragment.
pub const MARK_LEN: usize = 4;

/// The buffer of a record grows at most this much ahead of what has arrived.
const GROWTH: usize = 128 << 10;

const LAST_FRAGMENT: u32 = 1 << 31;

/// The four bytes before a record of `length` bytes sent as one fragment, or
/// `None` if it is too long to be sent.
pub fn mark(length: usize) -> Option<[u8; MARK_LEN]> {
    if length > MAX_RECORD {
        return None;
    }
    let length = u32::try_from(length).ok()?;
    Some((length | LAST_FRAGMENT).to_be_bytes())
}

/// The peer's stream is not a sequence of acceptable records.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// Longer than [`MAX_RECORD`].
    #[error("a record of {length} bytes or more is over the limit of {MAX_RECORD}")]
    TooLong {
        /// Length of the record as far as its fragments told.
        length: usize,
    },
    /// More than [`MAX_FRAGMENTS`] fragments.
    #[error("a record in more than {MAX_FRAGMENTS} fragments")]
    TooManyFragments,
}

/// Where the records of a stream end that this side sends, each in one fragment.
#[derive(Debug, Default)]
pub struct RecordEnds {
    mark: [u8; MARK_LEN],
    /// Bytes of the mark that have passed.
    have: usize,
    /// Bytes after it that are still to come.
    left: usize,
}

impl RecordEnds {
    /// How many of the stream's next bytes, of which there are some, belong to the record
    /// that has begun or begins there. They are taken for passed.
    pub fn next(&mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        if self.left == 0 {
            let room = self.mark.get_mut(self.have..).unwrap_or_default();
            passed = room.len().min(bytes.len());
            for (to, from) in room.iter_mut().zip(bytes) {
                *to = *from;
            }
            self.have += passed;
            if self.have < MARK_LEN {
                return passed;
            }
            let word = u32::from_be_bytes(self.mark) & !LAST_FRAGMENT;
            (self.have, self.left) = (0, usize::try_from(word).unwrap_or(usize::MAX));
        }
        let body = self.left.min(bytes.len() - passed);
        self.left -= body;
        passed + body
    }
}

#[derive(Debug)]
enum Part {
    /// Reading a fragment header of which `have` bytes are there.
    Header { bytes: [u8; MARK_LEN], have: usize },
    /// `left` bytes of the current fragment are still to come.
    Body { left: usize, last: bool },
}

const NEW_HEADER: Part = Part::Header {
    bytes: [0; MARK_LEN],
    have: 0,
};

/// Assembles records from a byte stream.
#[derive(Debug)]
pub struct RecordDecoder {
    part: Part,
    record: Vec<u8>,
    /// Bytes of `record` that have arrived; the rest is room.
    filled: usize,
    fragments: usize,
}

impl Default for RecordDecoder {
    fn default() -> Self {
        Self {
            part: NEW_HEADER,
            record: Vec::new(),
            filled: 0,
            fragments: 0,
        }
    }
}

impl RecordDecoder {
    /// Where the stream's next bytes belong; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        match &mut self.part {
            Part::Header { bytes, have } => bytes.get_mut(*have..).unwrap_or_default(),
            Part::Body { left, .. } => {
                if self.record.len() == self.filled {
                    let room = (*left).min(GROWTH);
                    self.record.resize(self.filled + room, 0);
                }
                self.record.get_mut(self.filled..).unwrap_or_default()
            }
        }
    }

    /// Nothing of a next record has arrived.
    pub fn is_between_records(&self) -> bool {
        matches!(self.part, Part::Header { have: 0, .. }) && self.fragments == 0
    }

    /// Says that `count` bytes were put at the start of [`Self::space`].
    /// Returns the record if that completed it.
    pub fn advance(&mut self, count: usize) -> Result<Option<Vec<u8>>, RecordError> {
        match &mut self.part {
            Part::Header { bytes, have } => {
                *have = (*have + count).min(bytes.len());
                if *have < bytes.len() {
                    return Ok(None);
                }
                let word = u32::from_be_bytes(*bytes);
                self.start_fragment(word)?;
            }
            Part::Body { left, .. } => {
                let count = count.min(*left);
                *left -= count;
                self.filled += count;
            }
        }
        Ok(self.take_complete())
    }

    fn start_fragment(&mut self, word: u32) -> Result<(), RecordError> {
        self.fragments += 1;
        if self.fragments > MAX_FRAGMENTS {
            return Err(RecordError::TooManyFragments);
        }
        let left = usize::try_from(word & !LAST_FRAGMENT).unwrap_or(usize::MAX);
        let length = self.filled.saturating_add(left);
        if length > MAX_RECORD {
            return Err(RecordError::TooLong { length });
        }
        let last = word & LAST_FRAGMENT != 0;
        self.part = Part::Body { left, last };
        Ok(())
    }

    fn take_complete(&mut self) -> Option<Vec<u8>> {
        match self.part {
            Part::Body { left: 0, last } => {
                self.part = NEW_HEADER;
                self.record.truncate(self.filled);
                if !last {
                    return None;
                }
                self.filled = 0;
                self.fragments = 0;
                Some(std::mem::take(&mut self.record))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `stream` in pieces of at most `step` bytes.
    fn decode(stream: &[u8], step: usize) -> Result<Vec<Vec<u8>>, RecordError> {
        let mut decoder = RecordDecoder::default();
        let mut records = Vec::new();
        let mut rest = stream;
        while !rest.is_empty() {
            let space = decoder.space();
            assert!(!space.is_empty());
            let count = space.len().min(rest.len()).min(step);
            space[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            records.extend(decoder.advance(count)?);
        }
        Ok(records)
    }

    #[test]
    fn a_record_over_the_limit_is_refused_before_its_bytes_are_taken() {
        let mut decoder = RecordDecoder::default();
        decoder.space().copy_from_slice(&[0xff; 4]);
        assert!(matches!(
            decoder.advance(4),
            Err(RecordError::TooLong { .. })
        ));
        assert_eq!(decoder.record.capacity(), 0);
        assert_eq!(mark(MAX_RECORD + 1), None);
    }

    #[test]
    fn fragments_add_up_to_the_limit() {
        let half = (MAX_RECORD / 2 + 1) as u32;
        let mut stream = half.to_be_bytes().to_vec();
        stream.extend(vec![0; half as usize]);
        stream.extend(half.to_be_bytes());
        assert!(matches!(
            decode(&stream, 1 << 16),
            Err(RecordError::TooLong { .. })
        ));
    }

    #[test]
    fn a_promised_length_is_not_allocated_ahead_of_the_data() {
        let mut decoder = RecordDecoder::default();
        decoder.space().copy_from_slice(&mark(MAX_RECORD).unwrap());
        decoder.advance(4).unwrap();
        assert!(decoder.space().len() <= GROWTH);
        assert!(decoder.record.capacity() <= 2 * GROWTH);
    }

    #[test]
    fn endless_empty_fragments_are_refused() {
        assert_eq!(
            decode(&[0; 4 * (MAX_FRAGMENTS + 1)], 4),
            Err(RecordError::TooManyFragments)
        );
    }

    proptest! {
        #[test]
        fn records_come_back_however_they_are_cut(
            records in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..4), 0..5),
            step in 1usize..50,
        ) {
            let mut stream = Vec::new();
            for fragments in &records {
                for (index, fragment) in fragments.iter().enumerate() {
                    let mut word = mark(fragment.len()).unwrap();
                    if index + 1 < fragments.len() {
                        word[0] &= 0x7f;
                    }
                    stream.extend(word);
                    stream.extend(fragment);
                }
            }
            let whole: Vec<Vec<u8>> = records.iter().map(|r| r.concat()).collect();
            prop_assert_eq!(decode(&stream, step).unwrap(), whole);
        }

        #[test]
        fn a_stream_is_cut_where_its_records_end(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
            step in 1usize..50,
        ) {
            let (mut stream, mut wanted) = (Vec::new(), Vec::new());
            for record in &records {
                stream.extend(mark(record.len()).unwrap());
                stream.extend(record);
                wanted.push(stream.len());
            }
            let (mut ends, mut cuts, mut at) = (RecordEnds::default(), Vec::new(), 0);
            for mut arrived in stream.chunks(step) {
                while !arrived.is_empty() {
                    let passed = ends.next(arrived);
                    prop_assert!(passed > 0);
                    at += passed;
                    cuts.push(at);
                    arrived = &arrived[passed..];
                }
            }
            prop_assert!(wanted.iter().all(|end| cuts.contains(end)), "{:?} {:?}", wanted, cuts);
        }

        #[test]
        fn garbage_never_panics(stream in proptest::collection::vec(any::<u8>(), 0..256), step in 1usize..64) {
            let _ = decode(&stream, step);
        }
    }
}
