//! XDR (RFC 4506), the encoding of everything on Gluster's wire.
//!
//! Only the codec: what the fields mean is said where they are read. A decoder
//! borrows from the record it reads, so no length field in it can make it
//! allocate; whoever copies a value out has first been given its real bytes.

use thiserror::Error;

/// A value could not be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum XdrError {
    /// The record ends before the value does.
    #[error("the message ends early: {wanted} bytes wanted, {left} left")]
    Truncated {
        /// Bytes the value needs.
        wanted: usize,
        /// Bytes the record still has.
        left: usize,
    },
    /// A length field is above what the field may hold.
    #[error("a length of {length} is over the limit of {limit}")]
    TooLong {
        /// What the length field says.
        length: usize,
        /// The named limit of that field.
        limit: usize,
    },
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    NotUtf8,
    /// An enumeration has a value that nobody defined.
    #[error("{value} is no valid {what}")]
    UnknownValue {
        /// The field.
        what: &'static str,
        /// Its value.
        value: i64,
    },
}

/// XDR pads opaque data to a multiple of this (RFC 4506, section 3).
const UNIT: usize = 4;

fn padding(length: usize) -> usize {
    (UNIT - length % UNIT) % UNIT
}

/// Appends XDR values to a buffer.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an unsigned 32-bit integer.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends a signed 32-bit integer.
    pub fn i32(&mut self, value: i32) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends an unsigned 64-bit integer.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends a signed 64-bit integer.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Appends opaque data of a length both sides know, padded.
    pub fn fixed(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(value);
        self.bytes
            .resize(self.bytes.len() + padding(value.len()), 0);
        self
    }

    /// Appends opaque data preceded by its length, padded.
    ///
    /// A length that 32 bits cannot say is encoded as the largest one; no such
    /// message leaves, since a record is limited to far less.
    pub fn opaque(&mut self, value: &[u8]) -> &mut Self {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.fixed(value)
    }

    /// Appends a string preceded by its length, without a trailing NUL.
    pub fn string(&mut self, value: &str) -> &mut Self {
        self.opaque(value.as_bytes())
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Is nothing written yet?
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Overwrites the 32-bit integer at byte `position`, which must have been
    /// written before; out of range, nothing happens.
    pub fn patch_u32(&mut self, position: usize, value: u32) {
        let end = position.saturating_add(UNIT);
        if let Some(field) = self.bytes.get_mut(position..end) {
            field.copy_from_slice(&value.to_be_bytes());
        }
    }

    /// The encoded bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads XDR values from a borrowed message.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Reads `message` from its start.
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self, wanted: usize) -> Result<&'a [u8], XdrError> {
        match self.rest.split_at_checked(wanted) {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(head)
            }
            None => Err(XdrError::Truncated {
                wanted,
                left: self.rest.len(),
            }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], XdrError> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(*head)
            }
            None => Err(XdrError::Truncated {
                wanted: N,
                left: self.rest.len(),
            }),
        }
    }

    /// An unsigned 32-bit integer.
    pub fn u32(&mut self) -> Result<u32, XdrError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A signed 32-bit integer.
    pub fn i32(&mut self) -> Result<i32, XdrError> {
        self.array().map(i32::from_be_bytes)
    }

    /// An unsigned 64-bit integer.
    pub fn u64(&mut self) -> Result<u64, XdrError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A signed 64-bit integer.
    pub fn i64(&mut self) -> Result<i64, XdrError> {
        self.array().map(i64::from_be_bytes)
    }

    /// Opaque data of `N` bytes, and its padding.
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], XdrError> {
        let value = self.array()?;
        self.take(padding(N))?;
        Ok(value)
    }

    /// Opaque data preceded by its length, at most `limit` bytes, and its
    /// padding.
    pub fn opaque(&mut self, limit: usize) -> Result<&'a [u8], XdrError> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if length > limit {
            return Err(XdrError::TooLong { length, limit });
        }
        let value = self.take(length)?;
        self.take(padding(length))?;
        Ok(value)
    }

    /// A UTF-8 string of at most `limit` bytes.
    pub fn string(&mut self, limit: usize) -> Result<&'a str, XdrError> {
        std::str::from_utf8(self.opaque(limit)?).map_err(|_| XdrError::NotUtf8)
    }

    /// The number of elements of an array that follows, at most `limit`.
    ///
    /// Each element needs at least `element_size` bytes, so a count that the
    /// rest of the message cannot hold is refused before anything is allocated.
    pub fn count(&mut self, limit: usize, element_size: usize) -> Result<usize, XdrError> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if length > limit {
            return Err(XdrError::TooLong { length, limit });
        }
        let wanted = length.saturating_mul(element_size);
        if wanted > self.rest.len() {
            return Err(XdrError::Truncated {
                wanted,
                left: self.rest.len(),
            });
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_beyond_the_message_is_refused() {
        let mut encoder = Encoder::new();
        encoder.u32(u32::MAX).u32(7);
        let bytes = encoder.into_bytes();
        assert_eq!(
            Decoder::new(&bytes).opaque(usize::MAX),
            Err(XdrError::Truncated {
                wanted: u32::MAX as usize,
                left: 4
            })
        );
        assert!(matches!(
            Decoder::new(&bytes).opaque(100),
            Err(XdrError::TooLong { limit: 100, .. })
        ));
    }

    #[test]
    fn a_count_that_cannot_fit_is_refused_before_reading_elements() {
        let mut encoder = Encoder::new();
        encoder.u32(1000).u64(0);
        let bytes = encoder.into_bytes();
        assert!(matches!(
            Decoder::new(&bytes).count(4096, 8),
            Err(XdrError::Truncated { wanted: 8000, .. })
        ));
    }

    #[test]
    fn missing_padding_is_an_error() {
        let bytes = [0, 0, 0, 1, b'x'];
        assert!(Decoder::new(&bytes).opaque(10).is_err());
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(a: u32, b: i64, c in proptest::collection::vec(any::<u8>(), 0..64), d in ".{0,32}", e: i32, f: u64, g: [u8; 5]) {
            let mut encoder = Encoder::new();
            encoder.u32(a).opaque(&c).i64(b).string(&d).i32(e).fixed(&g).u64(f);
            let bytes = encoder.into_bytes();
            prop_assert_eq!(bytes.len() % 4, 0);
            let mut decoder = Decoder::new(&bytes);
            prop_assert_eq!(decoder.u32().unwrap(), a);
            prop_assert_eq!(decoder.opaque(64).unwrap(), &c[..]);
            prop_assert_eq!(decoder.i64().unwrap(), b);
            prop_assert_eq!(decoder.string(1024).unwrap(), d);
            prop_assert_eq!(decoder.i32().unwrap(), e);
            prop_assert_eq!(decoder.fixed::<5>().unwrap(), g);
            prop_assert_eq!(decoder.u64().unwrap(), f);
            prop_assert!(decoder.rest().is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), limit: usize) {
            let mut decoder = Decoder::new(&bytes);
            let _ = decoder.count(limit, 12);
            let _ = decoder.opaque(limit);
            let _ = decoder.string(limit);
            let _ = decoder.fixed::<16>();
        }
    }
}
