//! Compares the copies of an image byte for byte, straight from brick files.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::error::AtPath;

const CHUNK: usize = 1 << 20;
/// DHT's link files: empty, with only the sticky bit in their mode.
const LINK_FILE_MODE: u32 = 0o1000;

/// The verdict on the copies of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copies {
    /// All copies have the same bytes.
    Equal {
        /// How many copies there are.
        copies: usize,
        /// How long each is.
        bytes: u64,
    },
    /// Two copies differ.
    Differ {
        /// The first byte that differs, or the length of the shorter one.
        offset: u64,
        /// A copy.
        one: PathBuf,
        /// One that differs from it.
        other: PathBuf,
    },
}

impl Copies {
    /// Whether all copies are equal.
    pub fn are_equal(&self) -> bool {
        matches!(self, Copies::Equal { .. })
    }
}

pub(crate) fn is_link_file(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|meta| meta.len() == 0 && meta.permissions().mode() & 0o7777 == LINK_FILE_MODE)
}

/// Compares every file with the first one.
pub(crate) fn compare(files: &[PathBuf]) -> Result<Copies> {
    let Some((first, rest)) = files.split_first() else {
        return Ok(Copies::Equal {
            copies: 0,
            bytes: 0,
        });
    };
    for other in rest {
        if let Some(offset) = first_difference(first, other)? {
            return Ok(Copies::Differ {
                offset,
                one: first.clone(),
                other: other.clone(),
            });
        }
    }
    Ok(Copies::Equal {
        copies: files.len(),
        bytes: fs::metadata(first).at("stat", first)?.len(),
    })
}

/// The offset of the first byte in which two files differ.
fn first_difference(one: &Path, other: &Path) -> Result<Option<u64>> {
    let mut files = [
        (File::open(one).at("open", one)?, one),
        (File::open(other).at("open", other)?, other),
    ];
    let mut chunks = [Vec::new(), Vec::new()];
    let mut offset = 0;
    loop {
        for ((file, path), chunk) in files.iter_mut().zip(&mut chunks) {
            chunk.clear();
            file.take(CHUNK as u64)
                .read_to_end(chunk)
                .at("read", path)?;
        }
        let [left, right] = &chunks;
        if left != right {
            let same = left.iter().zip(right).take_while(|(a, b)| a == b).count();
            return Ok(Some(offset + same as u64));
        }
        if left.is_empty() {
            return Ok(None);
        }
        offset += left.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(contents: &[&[u8]]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let write = |(index, bytes): (usize, &&[u8])| {
            let path = dir.path().join(index.to_string());
            fs::write(&path, bytes).unwrap();
            path
        };
        let paths = contents.iter().enumerate().map(write).collect();
        (dir, paths)
    }

    #[test]
    fn equal_copies_are_equal() {
        let bytes = vec![7; CHUNK + 3];
        let (_dir, paths) = files(&[&bytes, &bytes, &bytes]);
        let expected = Copies::Equal {
            copies: 3,
            bytes: CHUNK as u64 + 3,
        };
        assert_eq!(compare(&paths).unwrap(), expected);
    }

    #[test]
    fn one_differing_byte_is_found_where_it_is() {
        let bytes = vec![7; 2 * CHUNK];
        let mut changed = bytes.clone();
        changed[CHUNK + 5] = 8;
        let (_dir, paths) = files(&[&bytes, &bytes, &changed]);
        let Copies::Differ { offset, other, .. } = compare(&paths).unwrap() else {
            panic!("taken for equal");
        };
        assert_eq!((offset, &other), (CHUNK as u64 + 5, &paths[2]));
    }

    #[test]
    fn a_shorter_copy_differs_at_its_end() {
        let (_dir, paths) = files(&[b"abcd", b"abc"]);
        assert!(matches!(
            compare(&paths).unwrap(),
            Copies::Differ { offset: 3, .. }
        ));
    }
}
