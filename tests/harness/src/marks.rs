//! The pending matrix of an image, read from the bricks' files with the xattr
//! system calls: what each copy says that the others miss.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::AtPath;
use crate::{Error, Result};

const PREFIX: &str = "trusted.afr.";
/// The kernel's limits for the names of a file and for one value.
const MAX_LIST: usize = 65_536;
/// Three big-endian 32-bit counters.
const PENDING_BYTES: usize = 12;

/// The counters of one `trusted.afr.*` xattr (AFR's change log).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    /// Data operations missed.
    pub data: i32,
    /// Metadata operations missed.
    pub metadata: i32,
    /// Entry operations missed (folders).
    pub entry: i32,
}

impl Pending {
    /// Reads the 12 bytes of the xattr's value.
    pub fn parse(value: &[u8]) -> Result<Pending> {
        let counters: [u8; PENDING_BYTES] = value.try_into().map_err(|_| Error::Parse {
            what: "a trusted.afr xattr",
            text: format!("{} bytes instead of {PENDING_BYTES}", value.len()),
        })?;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = counters;
        Ok(Pending {
            data: i32::from_be_bytes([a, b, c, d]),
            metadata: i32::from_be_bytes([e, f, g, h]),
            entry: i32::from_be_bytes([i, j, k, l]),
        })
    }

    /// Whether nothing is pending.
    pub fn is_zero(self) -> bool {
        self == Pending::default()
    }
}

/// The matrix: a row per brick, in the volume's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    volume: String,
    /// Per brick the counters by name (`gv0-client-1`, `dirty`); `None` where
    /// the brick has no such file.
    pub rows: Vec<Option<BTreeMap<String, Pending>>>,
}

impl Marks {
    pub(crate) fn read(volume: &str, files: impl Iterator<Item = PathBuf>) -> Result<Marks> {
        Ok(Marks {
            volume: volume.to_owned(),
            rows: files.map(|file| read_row(&file)).collect::<Result<_>>()?,
        })
    }

    /// What brick `on` says that brick `about` misses; zero where it has no such
    /// mark. The names are those of a volume whose bricks were never replaced.
    pub fn pending(&self, on: usize, about: usize) -> Pending {
        let name = format!("{}-client-{about}", self.volume);
        let row = self.rows.get(on).and_then(Option::as_ref);
        row.and_then(|row| row.get(&name))
            .copied()
            .unwrap_or_default()
    }

    /// Whether brick `on` says that brick `about` misses data.
    pub fn accuses(&self, on: usize, about: usize) -> bool {
        self.pending(on, about).data != 0
    }

    /// Whether every brick has the file and none carries a mark, AFR's own
    /// `dirty` included.
    pub fn is_clean(&self) -> bool {
        self.rows.iter().all(|row| {
            row.as_ref()
                .is_some_and(|row| row.values().all(|pending| pending.is_zero()))
        })
    }
}

impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (brick, row) in self.rows.iter().enumerate() {
            write!(f, "brick {brick}:")?;
            match row {
                None => write!(f, " no such file")?,
                Some(row) if row.is_empty() => write!(f, " no marks")?,
                Some(row) => {
                    for (name, pending) in row {
                        let Pending {
                            data,
                            metadata,
                            entry,
                        } = pending;
                        write!(f, "  {name}={data}/{metadata}/{entry}")?;
                    }
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn read_row(file: &Path) -> Result<Option<BTreeMap<String, Pending>>> {
    let mut names = vec![0u8; MAX_LIST];
    let length = match rustix::fs::listxattr(file, &mut names[..]) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.at("list the xattrs of", file)?,
    };
    names.truncate(length);
    let mut row = BTreeMap::new();
    for name in names.split(|byte| *byte == 0) {
        let name = String::from_utf8_lossy(name);
        if let Some(short) = name.strip_prefix(PREFIX) {
            let mut value = [0u8; PENDING_BYTES];
            let length = rustix::fs::getxattr(file, name.as_ref(), &mut value[..])
                .map_err(io::Error::from)
                .at("read an xattr of", file)?;
            row.insert(short.to_owned(), Pending::parse(&value[..length])?);
        }
    }
    Ok(Some(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: &[&[(&str, i32)]]) -> Marks {
        let row = |row: &&[(&str, i32)]| {
            let pending = |data| Pending {
                data,
                ..Pending::default()
            };
            Some(
                row.iter()
                    .map(|(name, data)| ((*name).to_owned(), pending(*data)))
                    .collect(),
            )
        };
        Marks {
            volume: "gv0".into(),
            rows: rows.iter().map(row).collect(),
        }
    }

    #[test]
    fn counters_are_three_big_endian_numbers() {
        let value = [0, 0, 0, 2, 0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff];
        let expected = Pending {
            data: 2,
            metadata: 256,
            entry: -1,
        };
        assert_eq!(Pending::parse(&value).unwrap(), expected);
        assert!(Pending::parse(&value[..8]).is_err());
        assert!(Pending::parse(&[]).is_err());
    }

    #[test]
    fn an_accusation_is_found_on_the_brick_that_makes_it() {
        let marks = matrix(&[&[("gv0-client-1", 2)], &[("gv0-client-1", 0)], &[]]);
        assert!(marks.accuses(0, 1));
        assert!(!marks.accuses(1, 0) && !marks.accuses(1, 1) && !marks.accuses(2, 1));
        assert!(!marks.accuses(9, 1));
        assert!(!marks.is_clean());
    }

    #[test]
    fn zero_counters_are_clean_and_a_missing_copy_is_not() {
        let mut marks = matrix(&[&[("gv0-client-1", 0)], &[], &[("dirty", 0)]]);
        assert!(marks.is_clean());
        marks.rows[1] = None;
        assert!(!marks.is_clean());
    }
}
