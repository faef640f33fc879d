//! How large an image is to be: what is asked, what may be, what came of it.
//!
//! Pure; asked by the session ([`super::life::Session::grow`]) before anything is
//! done, and what the command prints at the end. An image only grows: what a guest
//! still uses cannot be told from here.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::image::dirty_map::{ExtentSize, Geometry, MapError};
use crate::image::layout::error::ShardsError;
use crate::image::layout::found::SizeSeen;
use crate::image::local::SECTOR;
use crate::image::local::error::LocalError;
use crate::image::replica::brick_set::{BrickSet, Shape};

/// The most bytes of the dirty map of an image that grows: what a host can be asked to
/// keep in memory for one image. 256 TiB in extents of 1 MiB.
const MAX_MAP: u64 = 513 << 20;

/// The size that is asked for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NewSize {
    /// So large altogether.
    To(u64),
    /// Larger by that.
    By(u64),
}

/// In spite of what it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Insist {
    /// Copies that are away.
    pub away: bool,
    /// A disk that has less free than is asked for.
    pub overcommit: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// The size before, in bytes.
    pub from: u64,
    /// The size now, in bytes.
    pub to: u64,
    /// The copies that were not reached: they are marked, and healed when they are back.
    pub behind: Vec<String>,
}

/// Why an image keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// It would lose its end.
    #[error(
        "it has {size} bytes, and {wanted} would be less: an image is not made smaller, for nobody here knows what the guest has there"
    )]
    Shrink {
        /// The size now.
        size: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// No disk is that large.
    #[error("{size} bytes and that much more are more than can be counted")]
    Overflow {
        /// The size now.
        size: u64,
    },
    /// It would end within a block of the disk.
    #[error(
        "{wanted} bytes are no multiple of the disk's block of {block} bytes. The next larger one is {next}"
    )]
    PartOfABlock {
        /// What was asked for.
        wanted: u64,
        /// Bytes of a block.
        block: u64,
        /// The next multiple.
        next: u64,
    },
    /// Nobody could follow what the copies miss.
    #[error(
        "{wanted} bytes are too many: what the other copies miss would take {map} bytes to note in extents of {extent}, and {MAX_MAP} are the limit"
    )]
    TooLarge {
        /// What was asked for.
        wanted: u64,
        /// Bytes of the dirty map.
        map: u64,
        /// Bytes of an extent.
        extent: u64,
    },
    /// They would be smaller until they are healed.
    #[error(
        "{peers} cannot be reached and would stay behind. Wait until all copies are there, or insist with --force: they are healed when they are back"
    )]
    Away {
        /// Their names.
        peers: String,
    },
    /// What is asked for is more than there is.
    #[error(
        "it would grow by {}, and the disk of its local copy has {} free. If that is meant (an image can never be made smaller), insist with --overcommit",
        bytes(.more),
        bytes(.free)
    )]
    BeyondFree {
        /// By how many bytes.
        more: u64,
        /// Bytes that the disk has free.
        free: u64,
    },
    /// Nothing may be changed.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The session cannot do it now.
    #[error("{0}. Try again")]
    NotNow(String),
    /// The session is over.
    #[error("the session is over: {0}")]
    Over(String),
    /// The local copy cannot be that large.
    #[error("the local copy keeps its size")]
    Local(#[from] LocalError),
    /// Another copy cannot be that large.
    #[error("the copy on {peer} cannot be made that large: {why}")]
    Peer {
        /// Its brick.
        peer: String,
        /// The brick's reason.
        why: String,
    },
    /// The dirty map.
    #[error("the dirty map cannot follow")]
    Map(#[from] MapError),
    /// The shards that it needs besides.
    #[error(transparent)]
    Shards(#[from] ShardsError),
    /// What is new would not read as zeros.
    #[error(
        "shard {file} has data behind the end of the image on {brick}, of a larger one that was made smaller. Make the image larger through a mount (truncate -s) while nobody serves it"
    )]
    Leftover {
        /// The shard.
        file: u32,
        /// The brick.
        brick: String,
    },
}

/// The peers whose size attribute is to be changed with the local brick's: those that have the
/// size that it had, of an image in pieces, and are not called old for another reason.
///
/// # Errors
/// Why it cannot be changed now, in words.
pub fn with_size(shape: &Shape, from: u64, seen: &[(usize, SizeSeen)]) -> Result<BrickSet, String> {
    let mut all = seen.iter();
    let Some((_, local)) = all.find(|(brick, _)| *brick == shape.local) else {
        return Err("this host's brick does not answer".to_owned());
    };
    let old: BrickSet = seen
        .iter()
        .flat_map(|(_, seen)| seen.accuses.iter())
        .collect();
    if old.contains(shape.local) {
        let why = "a brick says that attributes here are old: let Gluster heal the image first";
        return Err(why.to_owned());
    }
    if local.size != from {
        let size = local.size;
        return Err(format!(
            "somebody else has made it {size} bytes large: start the daemon again"
        ));
    }
    let same = |(brick, seen): &&(usize, SizeSeen)| {
        shape.peers().contains(*brick) && seen.size == from && !old.contains(*brick)
    };
    Ok(seen.iter().filter(same).map(|(brick, _)| *brick).collect())
}

impl NewSize {
    /// The size in bytes of an image of `size` bytes when it is done; `size` itself when
    /// nothing is to be done. `block` is that of the disk.
    ///
    /// # Errors
    /// [`ResizeError::Shrink`], [`ResizeError::Overflow`], [`ResizeError::PartOfABlock`].
    pub fn of(self, size: u64, block: u64) -> Result<u64, ResizeError> {
        let wanted = match self {
            Self::To(wanted) => wanted,
            Self::By(more) => size
                .checked_add(more)
                .ok_or(ResizeError::Overflow { size })?,
        };
        let block = block.max(SECTOR);
        if wanted < size {
            return Err(ResizeError::Shrink { size, wanted });
        }
        match wanted.checked_next_multiple_of(block) {
            Some(next) if next == wanted => Ok(wanted),
            Some(next) => Err(ResizeError::PartOfABlock {
                wanted,
                block,
                next,
            }),
            None => Err(ResizeError::Overflow { size }),
        }
    }
}

/// Refuses a growth by more than is free on the disk of the local copy: a slip of the
/// finger cannot be taken back.
///
/// # Errors
/// [`ResizeError::BeyondFree`].
pub fn check_room(from: u64, to: u64, free: u64) -> Result<(), ResizeError> {
    let more = to.saturating_sub(from);
    match more <= free {
        true => Ok(()),
        false => Err(ResizeError::BeyondFree { more, free }),
    }
}

fn bytes(count: &u64) -> indicatif::BinaryBytes {
    indicatif::BinaryBytes(*count)
}

/// How finely the map of an image of `size` bytes counts, `chosen` by the operator or by
/// default.
///
/// # Errors
/// [`ResizeError::TooLarge`], [`ResizeError::Map`].
pub fn extent_size(size: u64, chosen: Option<ExtentSize>) -> Result<ExtentSize, ResizeError> {
    let extent = chosen.unwrap_or_else(|| ExtentSize::default_for(size));
    // The number of peers does not change its length.
    let map = Geometry::new(size, extent, 0)?.file_len();
    match map <= MAX_MAP && i64::try_from(size).is_ok() {
        true => Ok(extent),
        false => Err(ResizeError::TooLarge {
            wanted: size,
            map,
            extent: extent.bytes(),
        }),
    }
}

impl std::str::FromStr for NewSize {
    type Err = String;

    /// `SIZE` or `+SIZE`: bytes, or with K, M, G or T.
    fn from_str(text: &str) -> Result<Self, String> {
        let (more, rest) = match text.strip_prefix('+') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (digits, unit) = match rest.char_indices().last() {
            Some((at, 'K' | 'k')) => (&rest[..at], 1 << 10),
            Some((at, 'M' | 'm')) => (&rest[..at], 1 << 20),
            Some((at, 'G' | 'g')) => (&rest[..at], 1 << 30),
            Some((at, 'T' | 't')) => (&rest[..at], 1 << 40),
            _ => (rest, 1u64),
        };
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse::<u64>().ok().filter(|_| is_number);
        let number = number.ok_or("expected a size such as 40G, or +10G for so much more")?;
        let bytes = number.checked_mul(unit).ok_or("the size is too large")?;
        Ok(match more {
            true => Self::By(bytes),
            false => Self::To(bytes),
        })
    }
}

impl fmt::Display for Resized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from == self.to {
            true => write!(f, "has {} bytes already", self.to)?,
            false => write!(f, "grown from {} to {} bytes", self.from, self.to)?,
        }
        match self.behind.as_slice() {
            [] => Ok(()),
            behind => write!(f, "; {} is healed when it is back", behind.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::replica::brick_set::SetChange;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_size_is_bytes_or_has_a_unit_and_a_plus_makes_it_so_much_more() {
        let size = |text: &str| text.parse::<NewSize>();
        assert_eq!(size("512"), Ok(NewSize::To(512)));
        assert_eq!(size("40G"), Ok(NewSize::To(40 * GIB)));
        assert_eq!(size("+1t"), Ok(NewSize::By(1024 * GIB)));
        assert_eq!(size("+8K"), Ok(NewSize::By(8192)));
        for bad in [
            "",
            "+",
            "G",
            "-1G",
            "++1",
            "1.5G",
            "1 G",
            "99999999T",
            "1GB",
            "é",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_image_grows_by_whole_blocks_and_never_shrinks() {
        assert_eq!(NewSize::By(512).of(GIB, 512).unwrap(), GIB + 512);
        assert_eq!(NewSize::To(GIB).of(GIB, 4096).unwrap(), GIB);
        assert!(matches!(
            NewSize::To(GIB - 512).of(GIB, 512),
            Err(ResizeError::Shrink { size: GIB, .. })
        ));
        assert!(matches!(
            NewSize::By(512).of(GIB, 4096),
            Err(ResizeError::PartOfABlock { next, .. }) if next == GIB + 4096
        ));
        assert!(matches!(
            NewSize::By(u64::MAX).of(GIB, 512),
            Err(ResizeError::Overflow { .. })
        ));
        assert!(matches!(
            NewSize::To(u64::MAX).of(GIB, 512),
            Err(ResizeError::Overflow { .. })
        ));
    }

    #[test]
    fn more_than_the_disk_has_free_is_asked_for_by_mistake_and_said_in_words() {
        assert!(check_room(GIB, 2 * GIB, GIB).is_ok());
        let refused = check_room(GIB, 2 * GIB, GIB - 1).unwrap_err();
        assert!(matches!(
            refused,
            ResizeError::BeyondFree { more: GIB, free } if free == GIB - 1
        ));
        let told = check_room(GIB, 10241 * GIB, 50 * GIB).unwrap_err();
        let told = told.to_string();
        assert!(told.contains("by 10.00 TiB"), "{told}");
        assert!(told.contains("50.00 GiB free"), "{told}");
        assert!(told.contains("--overcommit"), "{told}");
    }

    #[test]
    fn a_size_is_changed_where_it_was_the_local_one_s_and_not_by_one_whose_own_is_old() {
        let shape = Shape {
            bricks: 3,
            local: 1,
            arbiter: None,
            since: SetChange::NONE,
        };
        let seen = |size, accuses: &[usize]| SizeSeen {
            size,
            accuses: accuses.iter().copied().collect(),
        };
        let peers = |seen: &[(usize, SizeSeen)]| with_size(&shape, 8, seen);
        let all = [(0, seen(8, &[])), (1, seen(8, &[])), (2, seen(8, &[]))];
        assert_eq!(peers(&all).unwrap(), [0, 2].into_iter().collect());
        // One was away when the image grew before.
        let behind = [(0, seen(8, &[2])), (1, seen(8, &[2])), (2, seen(4, &[]))];
        assert_eq!(peers(&behind).unwrap(), BrickSet::only(0));
        assert!(peers(&all[..1]).is_err(), "the local brick is away");
        assert!(peers(&[(0, seen(8, &[1])), (1, seen(8, &[]))]).is_err());
        let by_a_mount = [(0, seen(9, &[])), (1, seen(9, &[]))];
        assert!(peers(&by_a_mount).unwrap_err().contains("9 bytes"));
    }

    #[test]
    fn the_limit_is_what_can_be_noted_of_it() {
        let extent = |size, chosen: Option<u32>| {
            extent_size(size, chosen.map(|bytes| ExtentSize::new(bytes).unwrap()))
        };
        assert_eq!(extent(256 * GIB, None).unwrap().bytes(), 4096);
        assert_eq!(extent(256 << 40, None).unwrap().bytes(), 1 << 20);
        assert_eq!(extent(GIB, Some(65536)).unwrap().bytes(), 65536);
        for (size, chosen) in [
            (257 << 40, None),
            (i64::MAX as u64 + 1, None),
            (2 << 40, Some(4096)),
        ] {
            let refused = extent(size, chosen);
            assert!(
                matches!(refused, Err(ResizeError::TooLarge { .. })),
                "{size}"
            );
        }
    }
}
