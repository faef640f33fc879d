//! Gluster's dictionaries, in the two forms they take on the wire.
//!
//! [`Dict`] is the typed form of the file operations (`gfx_dict` of
//! `rpc/xdr/src/glusterfs4-xdr.x`); [`encode_text`] and [`decode_text`] are the
//! older form of handshake and glusterd (`dict_serialize` of
//! `libglusterfs/src/dict.c`), where every value is a string.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::inode::Iatt;
use super::xdr::{Decoder, Encoder, XdrError};

/// Pairs in one dictionary. A replica set's pending attributes are a handful;
/// the details of a volume some hundreds.
pub const MAX_PAIRS: usize = 4096;
/// Bytes of one key.
pub const MAX_KEY: usize = 1024;
/// Bytes of one value. An extended attribute has at most 64 KiB; glusterd's
/// texts stay below this too.
pub const MAX_VALUE: usize = 256 << 10;

/// The least a pair takes on the wire: key length, key, type, value length.
const MIN_PAIR: usize = 12;

/// A value of the typed form.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// A floating-point number's bits.
    Double(u64),
    /// Text; bricks count its trailing NUL in.
    Text(Vec<u8>),
    /// Bytes, such as an extended attribute's value.
    Bytes(Vec<u8>),
    /// Bytes under the type number of the oldest clients.
    OldBytes(Vec<u8>),
    /// A gfid or other UUID.
    Uuid(Uuid),
    /// A file's attributes.
    Iatt(Box<Iatt>),
    /// Times kept in an attribute: access, modification, change.
    Times([(i64, u32); 3]),
}

/// `gf_dict_data_type` of GlusterFS `libglusterfs/src/glusterfs/glusterfs-fops.h`.
mod kind {
    pub const OLD_BYTES: u32 = 1;
    pub const INT: u32 = 2;
    pub const UINT: u32 = 3;
    pub const DOUBLE: u32 = 4;
    pub const TEXT: u32 = 5;
    pub const BYTES: u32 = 6;
    pub const UUID: u32 = 7;
    pub const IATT: u32 = 8;
    pub const TIMES: u32 = 9;
}

impl Value {
    /// The value's bytes, where it has any; text without its trailing NUL.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Text(bytes) => Some(bytes.strip_suffix(&[0]).unwrap_or(bytes)),
            Self::Bytes(bytes) | Self::OldBytes(bytes) => Some(bytes),
            Self::Uuid(uuid) => Some(uuid.as_bytes()),
            _ => None,
        }
    }

    fn encode(&self, to: &mut Encoder) {
        match self {
            Self::Int(value) => to.u32(kind::INT).i64(*value),
            Self::Uint(value) => to.u32(kind::UINT).u64(*value),
            Self::Double(bits) => to.u32(kind::DOUBLE).u64(*bits),
            Self::Text(bytes) => to.u32(kind::TEXT).opaque(bytes),
            Self::Bytes(bytes) => to.u32(kind::BYTES).opaque(bytes),
            Self::OldBytes(bytes) => to.u32(kind::OLD_BYTES).opaque(bytes),
            Self::Uuid(uuid) => to.u32(kind::UUID).fixed(uuid.as_bytes()),
            Self::Iatt(iatt) => {
                iatt.encode(to.u32(kind::IATT));
                to
            }
            Self::Times(times) => {
                to.u32(kind::TIMES);
                for (seconds, _) in times {
                    to.i64(*seconds);
                }
                for (_, nanoseconds) in times {
                    to.u32(*nanoseconds);
                }
                to
            }
        };
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, XdrError> {
        Ok(match from.u32()? {
            kind::INT => Self::Int(from.i64()?),
            kind::UINT => Self::Uint(from.u64()?),
            kind::DOUBLE => Self::Double(from.u64()?),
            kind::TEXT => Self::Text(from.opaque(MAX_VALUE)?.to_vec()),
            kind::BYTES => Self::Bytes(from.opaque(MAX_VALUE)?.to_vec()),
            kind::OLD_BYTES => Self::OldBytes(from.opaque(MAX_VALUE)?.to_vec()),
            kind::UUID => Self::Uuid(Uuid::from_bytes(from.fixed()?)),
            kind::IATT => Self::Iatt(Box::new(Iatt::decode(from)?)),
            kind::TIMES => {
                let mut times = [(0, 0); 3];
                for (seconds, _) in &mut times {
                    *seconds = from.i64()?;
                }
                for (_, nanoseconds) in &mut times {
                    *nanoseconds = from.u32()?;
                }
                Self::Times(times)
            }
            other => {
                return Err(XdrError::UnknownValue {
                    what: "dictionary value type",
                    value: other.into(),
                });
            }
        })
    }
}

/// A dictionary of the typed form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dict(BTreeMap<String, Value>);

impl Dict {
    /// An empty dictionary, which goes onto the wire as a missing one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a pair, in place of an older one with that key.
    pub fn set(&mut self, key: impl Into<String>, value: Value) -> &mut Self {
        self.0.insert(key.into(), value);
        self
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The pairs that are bytes, as extended attributes are.
    pub fn into_attributes(self) -> BTreeMap<String, Vec<u8>> {
        let bytes = |value: &Value| value.as_bytes().map(<[u8]>::to_vec);
        self.0
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), bytes(value)?)))
            .collect()
    }

    /// Appends the dictionary; keys carry their trailing NUL.
    pub fn encode(&self, to: &mut Encoder) {
        if self.0.is_empty() {
            to.u32(0).i32(-1).u32(0);
            return;
        }
        // The first field tells the bytes of the pairs alone: a brick needs it
        // to find where WRITE's data begins (`dict_to_xdr`, rpc/xdr/src/glusterfs3.h).
        let count = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let size_position = to.len();
        to.u32(0).u32(count).u32(count);
        let pairs_position = to.len();
        for (key, value) in &self.0 {
            let mut key = key.as_bytes().to_vec();
            key.push(0);
            to.opaque(&key);
            value.encode(to);
        }
        let size = u32::try_from(to.len() - pairs_position).unwrap_or(u32::MAX);
        to.patch_u32(size_position, size);
    }

    /// Reads a dictionary; a missing one reads as an empty one.
    pub fn decode(from: &mut Decoder<'_>) -> Result<Self, XdrError> {
        let _size = from.u32()?;
        let _count = from.i32()?;
        let pairs = from.count(MAX_PAIRS, MIN_PAIR)?;
        let mut dict = Self::new();
        for _ in 0..pairs {
            let key = from.string(MAX_KEY)?.trim_end_matches('\0').to_owned();
            dict.set(key, Value::decode(from)?);
        }
        Ok(dict)
    }
}

/// Encodes the older form: i32 count; per pair i32 key length without NUL, i32
/// value length, key, NUL, value, here always with a NUL. Nothing is padded.
pub fn encode_text<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut count = 0u32;
    let mut body = Vec::new();
    for (key, value) in pairs {
        count += 1;
        let length = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX);
        body.extend_from_slice(&length(key).to_be_bytes());
        body.extend_from_slice(&length(value).saturating_add(1).to_be_bytes());
        body.extend_from_slice(key.as_bytes());
        body.push(0);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    let mut bytes = count.to_be_bytes().to_vec();
    bytes.append(&mut body);
    bytes
}

/// Reads the older form. Values lose their trailing NUL; those that are not
/// UTF-8 are left out, since nothing here asks for them.
pub fn decode_text(bytes: &[u8]) -> Result<BTreeMap<String, String>, XdrError> {
    let mut from = Decoder::new(bytes);
    let pairs = from.count(MAX_PAIRS, MIN_TEXT_PAIR)?;
    let mut dict = BTreeMap::new();
    let mut rest = from.rest();
    for _ in 0..pairs {
        let mut lengths = Decoder::new(rest);
        let key_length = bounded(lengths.u32()?, MAX_KEY)?;
        let value_length = bounded(lengths.u32()?, MAX_VALUE)?;
        let (key, tail) = split(lengths.rest(), key_length)?;
        let (_nul, tail) = split(tail, 1)?;
        let (value, tail) = split(tail, value_length)?;
        rest = tail;
        let key = std::str::from_utf8(key).map_err(|_| XdrError::NotUtf8)?;
        if let Ok(value) = std::str::from_utf8(value) {
            dict.insert(key.to_owned(), value.trim_end_matches('\0').to_owned());
        }
    }
    Ok(dict)
}

/// The least a pair of the older form takes: two lengths and a NUL.
const MIN_TEXT_PAIR: usize = 9;

fn bounded(length: u32, limit: usize) -> Result<usize, XdrError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > limit {
        return Err(XdrError::TooLong { length, limit });
    }
    Ok(length)
}

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), XdrError> {
    bytes.split_at_checked(at).ok_or(XdrError::Truncated {
        wanted: at,
        left: bytes.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gluster::inode::Gfid;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
        prop_oneof![
            any::<i64>().prop_map(Value::Int),
            any::<u64>().prop_map(Value::Uint),
            any::<u64>().prop_map(Value::Double),
            bytes().prop_map(Value::Text),
            bytes().prop_map(Value::Bytes),
            bytes().prop_map(Value::OldBytes),
            any::<u128>().prop_map(|bits| Value::Uuid(Uuid::from_u128(bits))),
            any::<[(i64, u32); 3]>().prop_map(Value::Times),
            iatt().prop_map(|iatt| Value::Iatt(Box::new(iatt))),
        ]
    }

    fn iatt() -> impl Strategy<Value = Iatt> {
        any::<(u128, [u64; 8], [(i64, u32); 4], [u32; 5])>().prop_map(|(gfid, w, times, n)| Iatt {
            gfid: Gfid(Uuid::from_u128(gfid)),
            flags: w[0],
            ino: w[1],
            dev: w[2],
            rdev: w[3],
            size: w[4],
            blocks: w[5],
            attributes: w[6],
            attributes_mask: w[7],
            times,
            nlink: n[0],
            uid: n[1],
            gid: n[2],
            blksize: n[3],
            mode: n[4],
        })
    }

    fn encoded(dict: &Dict) -> Vec<u8> {
        let mut encoder = Encoder::new();
        dict.encode(&mut encoder);
        encoder.into_bytes()
    }

    #[test]
    fn a_missing_dictionary_has_count_minus_one() {
        assert_eq!(
            encoded(&Dict::new()),
            [0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0]
        );
    }

    #[test]
    fn the_size_field_counts_the_pairs_alone() {
        let mut dict = Dict::new();
        dict.set("key", Value::Bytes(vec![1; 12]));
        let bytes = encoded(&dict);
        let size = u32::from_be_bytes(*bytes.first_chunk().unwrap());
        assert_eq!(size as usize, bytes.len() - 12);
    }

    #[test]
    fn a_pair_count_beyond_the_message_is_refused() {
        let mut bytes = encoded(&Dict::new());
        bytes[8..].copy_from_slice(&4000u32.to_be_bytes());
        assert!(matches!(
            Dict::decode(&mut Decoder::new(&bytes)),
            Err(XdrError::Truncated { .. })
        ));
        bytes[8..].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(
            Dict::decode(&mut Decoder::new(&bytes)),
            Err(XdrError::TooLong { .. })
        ));
    }

    #[test]
    fn the_text_form_is_neither_padded_nor_without_nul() {
        assert_eq!(
            encode_text([("ab", "c")]),
            b"\0\0\0\x01\0\0\0\x02\0\0\0\x02ab\0c\0"
        );
    }

    #[test]
    fn text_lengths_beyond_the_message_are_refused() {
        let mut bytes = encode_text([("ab", "c")]);
        bytes[8..12].copy_from_slice(&1000u32.to_be_bytes());
        assert!(matches!(
            decode_text(&bytes),
            Err(XdrError::Truncated { .. })
        ));
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(decode_text(&bytes), Err(XdrError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(pairs in proptest::collection::btree_map("[a-z.]{1,12}", value(), 0..6)) {
            let dict = Dict(pairs);
            let bytes = encoded(&dict);
            let mut decoder = Decoder::new(&bytes);
            prop_assert_eq!(Dict::decode(&mut decoder).unwrap(), dict);
            prop_assert!(decoder.rest().is_empty());
        }

        #[test]
        fn what_was_encoded_as_text_is_decoded(pairs in proptest::collection::btree_map("[a-z-]{0,12}", "[^\0]{0,12}", 0..6)) {
            let bytes = encode_text(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())));
            prop_assert_eq!(decode_text(&bytes).unwrap(), pairs);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Dict::decode(&mut Decoder::new(&bytes));
            let _ = decode_text(&bytes);
        }

        #[test]
        fn damage_never_panics(
            pairs in proptest::collection::btree_map("[a-z]{1,6}", value(), 1..4),
            position: prop::sample::Index, bits: u8,
        ) {
            let mut bytes = encoded(&Dict(pairs));
            let position = position.index(bytes.len());
            bytes[position] ^= bits;
            let _ = Dict::decode(&mut Decoder::new(&bytes));
            let _ = decode_text(&bytes);
        }
    }
}
