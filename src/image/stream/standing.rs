//! What a copy is that a stream is applied to, as its host has it on record: known without the
//! host of the guest, and after any death.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyStanding {
    /// Some of what it has is newer than something that it lacks: no guest can be started from it.
    Inconsistent,
    /// Something that a power cut could have left of the guest's own disk.
    Consistent {
        /// It has everything that the guest had asked for until then, on the sender's clock, in
        /// milliseconds since 1970.
        as_of: u64,
    },
}

/// The record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyRecord {
    /// Whose writes were applied.
    pub session: Uuid,
    /// The boot of this host in which they were.
    pub boot: Uuid,
    /// All of it is durable, and nothing was applied since. Until then it is what it is only as
    /// long as this host does not go down: its disk keeps what it likes.
    pub settled: bool,
    /// What it is.
    pub standing: CopyStanding,
}

impl CopyRecord {
    /// What the copy is in this boot of its host.
    pub fn standing_in(&self, boot: Uuid) -> CopyStanding {
        match self.settled || self.boot == boot {
            true => self.standing,
            false => CopyStanding::Inconsistent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_durable_is_worth_nothing_after_the_host_went_down() {
        let (boot, next) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let standing = CopyStanding::Consistent { as_of: 7 };
        let mut record = CopyRecord {
            session: Uuid::from_u128(3),
            boot,
            settled: false,
            standing,
        };
        assert_eq!(record.standing_in(boot), standing);
        assert_eq!(record.standing_in(next), CopyStanding::Inconsistent);
        record.settled = true;
        assert_eq!(record.standing_in(next), standing);
    }
}
