//! The image as it is on the bricks: one file, or shards, each with marks of its own.

use std::ops::Range;
use std::time::Duration;

use bypass_harness::{Volume, wait_until};

use crate::support::shards::{self, FILES, SHARD};
use crate::support::{IMAGE, IMAGE_BYTES};

/// How many files it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    Whole,
    InShards,
}

impl Image {
    /// Their numbers.
    pub fn files(self) -> Range<u64> {
        match self {
            Self::Whole => 0..1,
            Self::InShards => 0..FILES,
        }
    }

    /// The path of one in the volume.
    pub fn path(self, volume: &Volume, file: u64) -> String {
        match self {
            Self::Whole => IMAGE.to_owned(),
            Self::InShards => shards::file(volume, file),
        }
    }

    /// Where on the disk one begins, in bytes.
    pub fn begin(self, file: u64) -> usize {
        (file * SHARD) as usize
    }

    /// One as it is on a brick. A shard is as long as it was written; what it lacks reads as
    /// zeros.
    pub fn read(self, volume: &Volume, brick: usize, file: u64) -> Result<Vec<u8>, String> {
        let path = volume.brick_file(brick, &self.path(volume, file));
        let read = std::fs::read(&path);
        let mut bytes = read.map_err(|error| format!("{}: {error}", path.display()))?;
        let length = match self {
            Self::Whole => IMAGE_BYTES,
            Self::InShards => SHARD,
        };
        bytes.resize(length as usize, 0);
        Ok(bytes)
    }

    /// How long one is on a brick.
    pub fn size(self, volume: &Volume, brick: usize, file: u64) -> Result<u64, String> {
        let path = volume.brick_file(brick, &self.path(volume, file));
        let found = std::fs::metadata(&path);
        let found = found.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(found.len())
    }

    /// Waits until no mark is left, whoever takes them away.
    pub fn wait_healed(self, volume: &Volume, limit: Duration) -> Result<(), String> {
        let healed = volume.wait_healed(IMAGE, limit).and_then(|()| {
            wait_until("every shard to be unmarked", limit, || {
                let marks = |file| volume.marks(&self.path(volume, file));
                let marks = self.files().map(marks).collect::<Result<Vec<_>, _>>();
                let marks = marks.map_err(|error| error.to_string())?;
                match marks.iter().find(|marks| !marks.is_clean()) {
                    Some(marks) => Err(marks.to_string()),
                    None => Ok(()),
                }
            })
        });
        healed.map_err(|error| error.to_string())
    }
}
