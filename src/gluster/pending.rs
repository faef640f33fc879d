//! AFR's pending counters: the value of a `trusted.afr.*` attribute.
//!
//! Only the 12-byte codec. Which counters accuse whom is the image session's
//! business.

use thiserror::Error;

/// Length in bytes of the attribute's value.
pub const PENDING_LEN: usize = 12;

/// What every pending attribute's name starts with; a
/// [`ReplicaSet`](super::volume::ReplicaSet) has the complete names.
pub const PENDING_PREFIX: &str = "trusted.afr.";

/// Operations that a brick says another brick misses: three big-endian signed
/// 32-bit counters (GlusterFS `xlators/cluster/afr/src/afr.h`,
/// `afr_transaction_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pending {
    /// Writes to the file's bytes.
    pub data: i32,
    /// Changes of owner, mode, attributes.
    pub metadata: i32,
    /// Changes of a directory's entries.
    pub entry: i32,
}

/// The attribute's value is not three 32-bit counters.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a pending counter value has {length} bytes instead of {PENDING_LEN}")]
pub struct BadPending {
    /// The value's length in bytes.
    pub length: usize,
}

impl Pending {
    /// `count` missed data operations and nothing else.
    pub fn data(count: i32) -> Self {
        Self {
            data: count,
            ..Self::default()
        }
    }

    /// No counter is set.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// What takes exactly these counts away when added.
    pub fn negated(&self) -> Self {
        Self {
            data: self.data.wrapping_neg(),
            metadata: self.metadata.wrapping_neg(),
            entry: self.entry.wrapping_neg(),
        }
    }

    /// The attribute's value.
    pub fn to_bytes(self) -> [u8; PENDING_LEN] {
        let mut bytes = [0; PENDING_LEN];
        for (field, value) in bytes
            .chunks_exact_mut(4)
            .zip([self.data, self.metadata, self.entry])
        {
            field.copy_from_slice(&value.to_be_bytes());
        }
        bytes
    }

    /// Reads the attribute's value.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadPending> {
        let bytes: [u8; PENDING_LEN] = bytes.try_into().map_err(|_| BadPending {
            length: bytes.len(),
        })?;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Ok(Self {
            data: i32::from_be_bytes([a, b, c, d]),
            metadata: i32::from_be_bytes([e, f, g, h]),
            entry: i32::from_be_bytes([i, j, k, l]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_value_is_data_metadata_entry_big_endian() {
        let pending = Pending {
            data: 1,
            metadata: 0x0203,
            entry: -1,
        };
        assert_eq!(
            pending.to_bytes(),
            [0, 0, 0, 1, 0, 0, 2, 3, 255, 255, 255, 255]
        );
    }

    proptest! {
        #[test]
        fn the_codec_is_its_own_inverse(data: i32, metadata: i32, entry: i32) {
            let pending = Pending { data, metadata, entry };
            prop_assert_eq!(Pending::from_bytes(&pending.to_bytes()), Ok(pending));
            prop_assert_eq!(pending.negated().negated(), pending);
        }

        #[test]
        fn any_other_length_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..32)) {
            prop_assert_eq!(Pending::from_bytes(&bytes).is_ok(), bytes.len() == PENDING_LEN);
        }
    }
}
