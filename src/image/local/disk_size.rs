//! The size of the disk as the local copy says it: the file's length, or, of an image in pieces,
//! an attribute of the first file.
//!
//! A session changes it here, on the brick's disk, and not through the brick's process: what a
//! killed daemon has asked of that may be carried out after others were let in by its death.
//! Gluster's own heal would give the peers the old size, and remove the marks, before the new
//! one came.

use std::fs::File;
use std::io;

use xattr::FileExt as _;

use crate::image::layout::shards::{self, FILE_SIZE};

/// In bytes.
///
/// # Errors
/// Those of the disk; `Other`, if the attribute makes no sense.
pub(super) fn read(file: &File) -> io::Result<u64> {
    match file.get_xattr(FILE_SIZE)? {
        Some(noted) => shards::size_of(Some(&noted)).map_err(io::Error::other),
        None => Ok(file.metadata()?.len()),
    }
}

/// Changes it, not durably yet.
///
/// # Errors
/// Those of the disk.
pub(super) fn write(file: &File, size: u64) -> io::Result<()> {
    let Some(mut noted) = file.get_xattr(FILE_SIZE)? else {
        return file.set_len(size);
    };
    // The others of the four numbers are the shard translator's count of blocks, and stay.
    if let Some(number) = noted.first_chunk_mut() {
        *number = size.to_be_bytes();
    }
    file.set_xattr(FILE_SIZE, &noted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_image_in_pieces_the_attribute_changes_and_its_count_of_blocks_stays() {
        let file = tempfile::tempfile().unwrap();
        write(&file, 1024).unwrap();
        assert_eq!(read(&file).unwrap(), 1024);
        let mut noted = [0; 32];
        noted[..8].copy_from_slice(&5000_u64.to_be_bytes());
        noted[16..24].copy_from_slice(&7_u64.to_be_bytes());
        file.set_xattr(FILE_SIZE, &noted).unwrap();
        assert_eq!(read(&file).unwrap(), 5000);
        write(&file, 6000).unwrap();
        assert_eq!(read(&file).unwrap(), 6000);
        assert_eq!(file.metadata().unwrap().len(), 1024);
        let now = file.get_xattr(FILE_SIZE).unwrap().unwrap();
        assert_eq!(now[8..], noted[8..]);
        file.set_xattr(FILE_SIZE, b"short").unwrap();
        assert!(read(&file).is_err());
    }
}
