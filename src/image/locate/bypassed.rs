//! What of Gluster an image's reads and writes go past, and whether that is allowed.
//!
//! Called when an image is looked for, before anything is opened. What the translators
//! are is [`crate::gluster::volume`]'s to know.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{Catalog, LocateError};
use crate::gluster::{BrickFeatures, ReplicaSet};

/// A part of Gluster that does not see the guest's reads and writes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bypassable {
    /// Bit-rot detection: its scrubber may call the image corrupt or miss damage.
    Bitrot,
    /// Geo-replication: it misses the guest's writes.
    Changelog,
    /// Quota: the guest's writes are not counted.
    Quota,
    /// A translator of this type, of which it is not known that it may be passed.
    Translator(String),
}

/// What is passed in spite of it.
#[derive(Clone, Copy, Debug)]
pub enum Allowed<'a> {
    /// Everything: no guest writes.
    All,
    /// What the operator named.
    These(&'a [Bypassable]),
}

impl fmt::Display for Bypassable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bitrot => "bitrot",
            Self::Changelog => "changelog",
            Self::Quota => "quota",
            Self::Translator(kind) => kind,
        })
    }
}

/// No name of a feature, and no type of a translator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected bitrot, changelog, quota, or the type of a translator such as features/cdc")]
pub struct NoFeature;

impl FromStr for Bypassable {
    type Err = NoFeature;

    fn from_str(name: &str) -> Result<Self, NoFeature> {
        match name {
            "bitrot" => Ok(Self::Bitrot),
            "changelog" => Ok(Self::Changelog),
            "quota" => Ok(Self::Quota),
            kind => match kind.split_once('/') {
                Some((group, name)) if !group.is_empty() && !name.is_empty() => {
                    Ok(Self::Translator(kind.to_owned()))
                }
                _ => Err(NoFeature),
            },
        }
    }
}

impl Catalog {
    /// Refuses what the guest's reads and writes would go past, unless it is allowed. What
    /// only a writer passes does not matter to a reader.
    ///
    /// # Errors
    /// [`LocateError::Bypassed`], [`LocateError::Unchangeable`],
    /// [`LocateError::LocksRevoked`], or glusterd's.
    pub fn check_features(
        &self,
        set: &ReplicaSet,
        allowed: Allowed<'_>,
        read_only: bool,
    ) -> Result<(), LocateError> {
        let mut found: BTreeSet<_> = translators(&self.volume.unknown).collect();
        // The volume's options are the same for all, their glusterds' versions need not be.
        let writers = set.bricks.iter().filter(|_| !read_only);
        for brick in writers {
            let text = self.glusterd.brick_volfile(&self.volume.name, brick)?;
            let on = BrickFeatures::parse(&text)?;
            if on.worm || on.read_only {
                let volume = self.volume.name.clone();
                return Err(LocateError::Unchangeable { volume });
            }
            if on.revokes_locks {
                let volume = self.volume.name.clone();
                return Err(LocateError::LocksRevoked { volume });
            }
            found.extend(passed_by_writers(&on));
        }
        if let Allowed::These(allowed) = allowed {
            found.retain(|feature| !allowed.contains(feature));
        } else {
            found.clear();
        }
        match found.is_empty() {
            true => Ok(()),
            false => Err(LocateError::Bypassed {
                volume: self.volume.name.clone(),
                features: found.into_iter().collect(),
            }),
        }
    }
}

fn passed_by_writers(on: &BrickFeatures) -> impl Iterator<Item = Bypassable> {
    let known = [
        (on.bitrot, Bypassable::Bitrot),
        (on.changelog, Bypassable::Changelog),
        (on.quota, Bypassable::Quota),
    ];
    let known = known.into_iter().filter(|(on, _)| *on);
    let known = known.map(|(_, feature)| feature);
    known.chain(translators(&on.unknown))
}

fn translators(kinds: &BTreeSet<String>) -> impl Iterator<Item = Bypassable> {
    kinds.iter().cloned().map(Bypassable::Translator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_read_as_it_is_written() {
        for name in ["bitrot", "changelog", "quota", "features/simple-x"] {
            assert_eq!(Bypassable::from_str(name).unwrap().to_string(), name);
        }
        for bad in ["", "cdc", "/", "features/", "/cdc", "Quota"] {
            assert_eq!(Bypassable::from_str(bad), Err(NoFeature), "{bad}");
        }
    }
}
