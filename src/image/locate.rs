//! Finding an image: its volume's layout, its replica set, and the brick of this
//! host.
//!
//! Asks the local glusterd and, name by name, the bricks. It takes no lock and
//! decides nothing about the copies' state: that is [`super::open`]'s part.

mod error;
mod local_brick;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::bricks::{MAX_BRICKS, Shape};
use super::error::{Names, chain};
use crate::gluster::{
    Brick, BrickError, BrickFeatures, BrickSpec, Errno, FileType, Glusterd, Identity, ReplicaSet,
    Timeouts, Volume, VolumeState,
};

pub use error::LocateError;
pub use local_brick::local_brick;

/// DHT's pointer from the brick where a name hashes to, to the replica set that
/// has the file.
const LINK_XATTR: &str = "trusted.glusterfs.dht.linkto";

/// A volume that can be served.
pub struct Catalog {
    glusterd: Glusterd,
    volume: Volume,
}

/// An image in its replica set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Located {
    /// The volume's name.
    pub volume: String,
    /// The volume's identity.
    pub volume_id: Uuid,
    /// The path in the volume.
    pub image: String,
    /// The replica set that has it.
    pub set: ReplicaSet,
    /// Gluster's identity of the image.
    pub gfid: Uuid,
    /// Size in bytes.
    pub size: u64,
}

impl Located {
    /// Names of the replica set's bricks.
    pub fn names(&self) -> Names {
        Names {
            volume: self.volume.clone(),
            bricks: self.set.bricks.iter().map(BrickSpec::to_string).collect(),
        }
    }

    /// Child index of the arbiter, if there is one: the last.
    pub fn arbiter(&self) -> Option<usize> {
        (self.set.arbiter_count > 0).then(|| self.set.bricks.len().saturating_sub(1))
    }

    /// The replica set as seen from child `local`.
    pub fn shape(&self, local: usize) -> Shape {
        Shape {
            bricks: self.set.bricks.len(),
            local,
            arbiter: self.arbiter(),
        }
    }

    /// The image's file in the brick directory of child `local`.
    pub fn local_path(&self, local: usize) -> PathBuf {
        let brick = self.set.bricks.get(local).map(|brick| brick.path.as_str());
        Path::new(brick.unwrap_or_default()).join(self.image.trim_start_matches('/'))
    }
}

impl Catalog {
    /// Asks glusterd for the volume's layout.
    ///
    /// # Errors
    /// See [`LocateError`]; only those about the volume as a whole.
    pub fn load(
        host: &str,
        port: u16,
        volume: &str,
        timeouts: &Timeouts,
    ) -> Result<Self, LocateError> {
        let glusterd = Glusterd::connect(host, port, timeouts)?;
        if glusterd.volume_info(volume)?.state != VolumeState::Started {
            return Err(LocateError::NotStarted {
                volume: volume.to_owned(),
            });
        }
        let volume = Volume::parse(&glusterd.volfile(volume)?)?;
        if volume.sharded {
            return Err(LocateError::Sharded {
                volume: volume.name,
            });
        }
        for set in &volume.replica_sets {
            if set.bricks.len() > MAX_BRICKS {
                return Err(LocateError::TooManyBricks {
                    set: set.name.clone(),
                    bricks: set.bricks.len(),
                });
            }
        }
        Ok(Self { glusterd, volume })
    }

    /// Refuses features that our writes bypass, unless they are allowed or nothing
    /// will be written.
    ///
    /// # Errors
    /// [`LocateError::Bypassed`], [`LocateError::Unchangeable`], or glusterd's.
    pub fn check_features(
        &self,
        set: &ReplicaSet,
        allowed: &[Bypassable],
        read_only: bool,
    ) -> Result<(), LocateError> {
        let Some(brick) = set.bricks.first().filter(|_| !read_only) else {
            return Ok(());
        };
        let text = self.glusterd.brick_volfile(&self.volume.name, brick)?;
        let on = BrickFeatures::parse(&text)?;
        let volume = self.volume.name.clone();
        if on.worm || on.read_only {
            return Err(LocateError::Unchangeable { volume });
        }
        let features: Vec<_> = Bypassable::ALL
            .into_iter()
            .filter(|feature| feature.is_on(&on) && !allowed.contains(feature))
            .map(Bypassable::name)
            .collect();
        match features.is_empty() {
            true => Ok(()),
            false => Err(LocateError::Bypassed { volume, features }),
        }
    }

    /// Finds the replica set that has the image.
    ///
    /// # Errors
    /// See [`LocateError`].
    pub fn find(
        &self,
        image: &str,
        identity: &Identity,
        timeouts: &Timeouts,
    ) -> Result<Located, LocateError> {
        let mut search = Search::default();
        for set in &self.volume.replica_sets {
            for spec in &set.bricks {
                match self.look_on(spec, image, identity, timeouts) {
                    Ok(Look::File { gfid, size }) => {
                        return Ok(Located {
                            volume: self.volume.name.clone(),
                            volume_id: self.volume.volume_id,
                            image: image.to_owned(),
                            set: set.clone(),
                            gfid,
                            size,
                        });
                    }
                    // An arbiter's file is empty, and a brick may lack what its
                    // set has: ask the next one too.
                    Ok(look) => search.add(look),
                    Err(error) => search.failed.push(format!("{spec} ({})", chain(&error))),
                }
            }
        }
        Err(search.conclude(&self.volume.name, image))
    }

    fn look_on(
        &self,
        spec: &BrickSpec,
        image: &str,
        identity: &Identity,
        timeouts: &Timeouts,
    ) -> Result<Look, BrickError> {
        let brick = Brick::connect(spec, self.volume.volume_id, identity, timeouts)?;
        let answer = brick.resolve(image, &[LINK_XATTR]);
        brick.close();
        match answer {
            Ok(entry) => Ok(
                match (entry.iatt.file_type(), entry.xattrs.get(LINK_XATTR)) {
                    (FileType::Regular, Some(target)) => {
                        let target = String::from_utf8_lossy(target);
                        Look::Link(target.trim_end_matches('\0').to_owned())
                    }
                    (FileType::Regular, None) => Look::File {
                        gfid: entry.iatt.gfid.0,
                        size: entry.iatt.size,
                    },
                    (FileType::Directory, _) => Look::NotAFile("a directory"),
                    (FileType::Symlink, _) => Look::NotAFile("a symbolic link"),
                    (FileType::Other, _) => Look::NotAFile("a special file"),
                },
            ),
            Err(BrickError::Path {
                component, errno, ..
            }) if errno == Errno::NOENT => Ok(Look::Missing(component)),
            Err(error) => Err(error),
        }
    }
}

/// What a brick has under the image's name.
enum Look {
    File { gfid: Uuid, size: u64 },
    Link(String),
    NotAFile(&'static str),
    Missing(String),
}

/// What was found instead of the file.
#[derive(Default)]
struct Search {
    link: Option<String>,
    not_a_file: Option<&'static str>,
    missing: Option<String>,
    failed: Vec<String>,
}

impl Search {
    fn add(&mut self, look: Look) {
        match look {
            Look::File { .. } => {}
            Look::Link(target) => self.link = Some(target),
            Look::NotAFile(what) => self.not_a_file = Some(what),
            Look::Missing(component) => self.missing = Some(component),
        }
    }

    fn conclude(self, volume: &str, image: &str) -> LocateError {
        let (volume, image) = (volume.to_owned(), image.to_owned());
        match self {
            Self {
                link: Some(target), ..
            } => LocateError::LinkFile {
                volume,
                image,
                target,
            },
            Self {
                not_a_file: Some(what),
                ..
            } => LocateError::NotAFile {
                volume,
                image,
                what,
            },
            Self {
                missing: Some(component),
                ..
            } => LocateError::NoImage {
                volume,
                image,
                component,
            },
            Self { failed, .. } => LocateError::NoBrick {
                volume,
                why: failed.join("; "),
            },
        }
    }
}

/// Features of the brick process that direct writes bypass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bypassable {
    /// Bit-rot detection: its scrubber may call the image corrupt or miss damage
    Bitrot,
    /// Geo-replication: it misses the guest's writes
    Changelog,
    /// Quota: the guest's writes are not counted
    Quota,
}

impl Bypassable {
    const ALL: [Self; 3] = [Self::Bitrot, Self::Changelog, Self::Quota];

    fn is_on(self, features: &BrickFeatures) -> bool {
        match self {
            Self::Bitrot => features.bitrot,
            Self::Changelog => features.changelog,
            Self::Quota => features.quota,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bitrot => "bitrot",
            Self::Changelog => "changelog",
            Self::Quota => "quota",
        }
    }
}
