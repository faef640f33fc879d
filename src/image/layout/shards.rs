//! What Gluster's shard translator calls things, and what it keeps of an image
//! (`xlators/features/shard/src/shard.h`).

use uuid::Uuid;

/// Bytes of a piece: eight, big-endian; on the file at the image's path only. A file without
/// it is whole, whatever `features.shard` says (`GF_XATTR_SHARD_BLOCK_SIZE`).
pub const BLOCK_SIZE: &str = "trusted.glusterfs.shard.block-size";
/// The image's size and blocks: four big-endian numbers of eight bytes
/// (`GF_XATTR_SHARD_FILE_SIZE`).
pub const FILE_SIZE: &str = "trusted.glusterfs.shard.file-size";
/// Where all images of a volume have their pieces (`GF_SHARD_DIR`).
pub const FOLDER: &str = ".shard";
/// Its identity, the same in every volume (`SHARD_ROOT_GFID`).
pub const FOLDER_GFID: Uuid = Uuid::from_u128(0xbe31_8638_e8a0_4c6d_977d_7a93_7aa8_4806);

/// The identity of the folder in it, `.remove_me`, that has a file for each image whose pieces are to be
/// deleted, named by the image's gfid (`SHARD_REMOVE_ME_GFID`).
pub const REMOVED_GFID: Uuid = Uuid::from_u128(0x77dd_5a45_dbf5_4592_b31b_b440_3823_02e9);

/// How an image is cut, as its own attributes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of a piece.
    pub block: u64,
    /// Bytes of the disk.
    pub size: u64,
}

/// Why an image's attributes make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCut {
    /// The piece's size has not eight bytes, or is none.
    #[error("its {BLOCK_SIZE} is no size")]
    Block,
    /// The image's size has not 32 bytes, or is negative, or is not there.
    #[error("its {FILE_SIZE} is missing or is no size")]
    Size,
}

impl Cut {
    /// From the values of the two attributes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(block: &[u8], size: Option<&[u8]>) -> Result<Self, BadCut> {
        let block = block.try_into().map(u64::from_be_bytes);
        let block = block
            .ok()
            .filter(|&block| block != 0)
            .ok_or(BadCut::Block)?;
        Ok(Self {
            block,
            size: size_of(size)?,
        })
    }
}

/// The size from the value of its attribute.
///
/// # Errors
/// [`BadCut::Size`].
pub fn size_of(value: Option<&[u8]>) -> Result<u64, BadCut> {
    let value = value.filter(|value| value.len() == 32);
    let size = value.and_then(|value| value.first_chunk().copied());
    let size = size.map(i64::from_be_bytes).ok_or(BadCut::Size)?;
    u64::try_from(size).map_err(|_| BadCut::Size)
}

/// The name of an image's piece in [`FOLDER`]; piece 0 is the file at the image's path.
pub fn name(base: Uuid, piece: u64) -> String {
    format!("{}.{piece}", base.hyphenated())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_the_shard_translator_writes_them() {
        let block = 4_194_304u64.to_be_bytes();
        let mut size = [0u8; 32];
        size[..8].copy_from_slice(&20_971_520u64.to_be_bytes());
        size[16..24].copy_from_slice(&40960u64.to_be_bytes());
        let cut = Cut::parse(&block, Some(&size)).unwrap();
        assert_eq!((cut.block, cut.size), (4 << 20, 20 << 20));
    }

    #[test]
    fn attributes_that_make_no_sense_are_told() {
        let size = [0u8; 32];
        let block = 4096u64.to_be_bytes();
        assert_eq!(Cut::parse(&[], Some(&size)), Err(BadCut::Block));
        assert_eq!(Cut::parse(&[0; 8], Some(&size)), Err(BadCut::Block));
        for bad in [None, Some(&[][..]), Some(&[0; 31]), Some(&[0xff; 32])] {
            assert_eq!(Cut::parse(&block, bad), Err(BadCut::Size));
        }
    }

    #[test]
    fn a_piece_is_named_by_the_image_and_its_number() {
        let base = Uuid::from_u128(0x00112233_4455_6677_8899_aabbccddeeff);
        assert_eq!(name(base, 12), "00112233-4455-6677-8899-aabbccddeeff.12");
    }
}
