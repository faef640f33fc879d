//! The copy lock: by which a session knows that no healer of an earlier session
//! still writes to a brick.
//!
//! An INODELK domain of our own, on every brick that holds data. A healer holds
//! the byte of its session there, through the connection that it copies with, for
//! as long as it copies. A session that has just taken a brick tries all *other*
//! bytes: refused, there is a healer of another session at work. Different
//! sessions' healers do not hinder each other, nor does a session its own healer.
//!
//! Names and arithmetic only: [`crate::image::heal`] takes the byte, the session's side
//! tries the others.

use uuid::Uuid;

use crate::gluster::LockRange;

/// The INODELK domain.
pub const DOMAIN: &str = "bypass-blk.copy";

/// The highest byte of a session. A brick's ranges are signed, and one that begins
/// at 2^63 - 2 and has no end is another domain there: AFR's for metadata
/// (`_pl_convert_volume_for_special_range`, xlators/features/locks/src/inodelk.c).
const LAST: u64 = i64::MAX as u64 - 3;

/// The byte of a session: 63 bits of its name, and never so that there is no
/// byte below it, or none above it that a brick can lock.
pub fn byte_of(session: Uuid) -> u64 {
    // The bits that all names of a kind have in common lie over random ones.
    let (high, low) = session.as_u64_pair();
    ((high ^ low) >> 1).clamp(1, LAST)
}

/// What a healer of the session locks.
pub fn own(session: Uuid) -> LockRange {
    LockRange {
        start: byte_of(session),
        len: 1,
    }
}

/// What is free when no healer of another session copies: everything below and
/// everything above the session's own byte.
pub fn others(session: Uuid) -> [LockRange; 2] {
    let byte = byte_of(session);
    [
        LockRange {
            start: 0,
            len: byte,
        },
        LockRange {
            start: byte + 1,
            len: 0,
        },
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// First and last byte as `new_inode_lock` computes them.
    fn on_a_brick(range: LockRange) -> (i64, i64) {
        let start = i64::try_from(range.start).unwrap();
        let len = i64::try_from(range.len).unwrap();
        match len {
            0 => (start, i64::MAX),
            len => (start, start.checked_add(len - 1).unwrap()),
        }
    }

    fn is_well_formed(name: u128) {
        let session = Uuid::from_u128(name);
        let [below, above] = others(session).map(on_a_brick);
        let (first, last) = on_a_brick(own(session));
        assert_eq!(first, last);
        assert_eq!((below.0, below.1 + 1), (0, first));
        assert_eq!(above, (last + 1, i64::MAX));
        assert!(above.0 < i64::MAX - 1, "metadata's domain");
    }

    #[test]
    fn no_name_makes_a_range_that_a_brick_misreads() {
        let low = |bits: u64| u128::from(bits);
        for name in [0, u128::MAX, 1, 2, 3, low(u64::MAX), low(u64::MAX - 1)] {
            is_well_formed(name);
        }
        for below_the_top in 0..16 {
            is_well_formed(low(u64::MAX - below_the_top));
        }
    }

    proptest! {
        #[test]
        fn a_session_s_byte_and_the_others_are_all_there_is(name: u128) {
            is_well_formed(name);
        }

        #[test]
        fn sessions_have_bytes_of_their_own(one: [u8; 16], other: [u8; 16]) {
            let [one, other] =
                [one, other].map(|bits| uuid::Builder::from_random_bytes(bits).into_uuid());
            prop_assert!(one == other || byte_of(one) != byte_of(other));
        }
    }
}
