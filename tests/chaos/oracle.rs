//! What the disk must hold, sector by sector: the last version that was
//! acknowledged, and those after it whose requests were never answered, which
//! may be there or not.
//!
//! A version is the number of one write; every sector of it names its version
//! and its own place, so that old, torn and misplaced sectors are recognised.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Instant;

/// The unit in which a write may be cut short, in bytes.
pub const SECTOR: usize = 512;
/// The version of zeroes: a fresh disk, a discard, a write of zeroes.
pub const ZEROES: u64 = 0;
/// The most differences that are told one by one.
const MAX_TOLD: usize = 8;

/// See the module.
pub struct Oracle {
    acknowledged: Vec<u64>,
    unsure: BTreeMap<usize, BTreeSet<u64>>,
    /// When each version was issued, from version 1.
    issued: Vec<Instant>,
    begin: Instant,
}

/// What is found in a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Version(u64),
    /// Another sector's contents.
    Misplaced {
        version: u64,
        sector: u64,
    },
    /// Not one version's contents.
    Torn,
}

impl Oracle {
    /// A disk of zeroes. Times are told since `begin`.
    pub fn new(bytes: u64, begin: Instant) -> Self {
        Self {
            acknowledged: vec![ZEROES; bytes as usize / SECTOR],
            unsure: BTreeMap::new(),
            issued: Vec::new(),
            begin,
        }
    }

    /// The disk's size in sectors.
    pub fn sectors(&self) -> usize {
        self.acknowledged.len()
    }

    /// Fills a buffer with a new version of the sectors from `first` on.
    pub fn next_version(&mut self, first: usize, buffer: &mut [u8]) -> u64 {
        self.issued.push(Instant::now());
        let version = self.issued.len() as u64;
        for (sector, bytes) in (first..).zip(buffer.chunks_exact_mut(SECTOR)) {
            for words in bytes.chunks_exact_mut(16) {
                words[..8].copy_from_slice(&version.to_le_bytes());
                words[8..].copy_from_slice(&(sector as u64).to_le_bytes());
            }
        }
        version
    }

    /// The device said that these sectors now hold this version.
    pub fn acknowledge(&mut self, first: usize, sectors: usize, version: u64) {
        for sector in first..first + sectors {
            self.acknowledged[sector] = version;
            self.unsure.remove(&sector);
        }
    }

    /// The device did not say so, and never will.
    pub fn leave_open(&mut self, first: usize, sectors: usize, version: u64) {
        for sector in first..first + sectors {
            self.unsure.entry(sector).or_default().insert(version);
        }
    }

    /// From now on what is found in `disk` is what must be there. Only for when
    /// nothing can be under way any more.
    pub fn settle(&mut self, disk: &[u8]) {
        for sector in std::mem::take(&mut self.unsure).into_keys() {
            let bytes = &disk[sector * SECTOR..(sector + 1) * SECTOR];
            if let Found::Version(version) = look(sector, bytes) {
                self.acknowledged[sector] = version;
            }
        }
    }

    /// Whether the sectors from `first` on hold what they must.
    ///
    /// # Errors
    /// Every difference, in words.
    pub fn check(&self, first: usize, bytes: &[u8]) -> Result<(), String> {
        let mut wrong: Vec<(usize, usize, Found)> = Vec::new();
        for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR)) {
            let found = look(sector, bytes);
            if self.allows(sector, found) {
                continue;
            }
            match wrong.last_mut() {
                Some((start, count, last))
                    if *start + *count == sector
                        && *last == found
                        && self.acknowledged[*start] == self.acknowledged[sector] =>
                {
                    *count += 1;
                }
                _ => wrong.push((sector, 1, found)),
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let total: usize = wrong.iter().map(|(_, count, _)| count).sum();
        let mut text = format!("{total} sectors in {} places are wrong:", wrong.len());
        for (start, count, found) in wrong.into_iter().take(MAX_TOLD) {
            let _ = write!(text, "\n  {}", self.tell(start, count, found));
        }
        Err(text)
    }

    fn allows(&self, sector: usize, found: Found) -> bool {
        let Found::Version(version) = found else {
            return false;
        };
        version == self.acknowledged[sector]
            || self
                .unsure
                .get(&sector)
                .is_some_and(|unsure| unsure.contains(&version))
    }

    fn tell(&self, start: usize, count: usize, found: Found) -> String {
        let found = match found {
            Found::Version(version) => self.name(version),
            Found::Misplaced { version, sector } => {
                format!("sector {sector} of {}", self.name(version))
            }
            Found::Torn => "a torn sector".to_owned(),
        };
        let unsure = self.unsure.get(&start);
        let unsure: Vec<_> = unsure
            .into_iter()
            .flatten()
            .map(|v| self.name(*v))
            .collect();
        format!(
            "sectors {start} to {} (byte {}): found {found}, acknowledged was {}, never answered: [{}]",
            start + count - 1,
            start * SECTOR,
            self.name(self.acknowledged[start]),
            unsure.join(", ")
        )
    }

    fn name(&self, version: u64) -> String {
        let issued = version.checked_sub(1).and_then(|at| {
            let at = self.issued.get(usize::try_from(at).ok()?)?;
            Some(at.duration_since(self.begin).as_secs_f64())
        });
        match issued {
            _ if version == ZEROES => "zeroes".to_owned(),
            Some(at) => format!("version {version} (issued at {at:.3} s)"),
            None => format!("version {version} (never issued)"),
        }
    }
}

fn look(sector: usize, bytes: &[u8]) -> Found {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    let (version, place) = (word(0), word(8));
    if bytes.chunks_exact(16).any(|words| words != &bytes[..16]) {
        Found::Torn
    } else if version == ZEROES && place == 0 {
        Found::Version(ZEROES)
    } else if place == sector as u64 {
        Found::Version(version)
    } else {
        Found::Misplaced {
            version,
            sector: place,
        }
    }
}
