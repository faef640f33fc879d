//! Finding an image: its volume's layout, its replica set, and the brick of this
//! host.
//!
//! Asks the local glusterd and, name by name, the bricks. It takes no lock and
//! decides nothing about the copies' state: that is [`super::open`]'s part.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::bricks::{MAX_BRICKS, Shape};
use super::error::{Names, chain};
use super::local::may_see_trusted;
use crate::gluster::volume::VolfileError;
use crate::gluster::{
    Brick, BrickError, BrickFeatures, BrickSpec, Errno, FileType, Glusterd, GlusterdError,
    Identity, ReplicaSet, Timeouts, Volume, VolumeState,
};

/// DHT's pointer from the brick where a name hashes to, to the replica set that
/// has the file.
const LINK_XATTR: &str = "trusted.glusterfs.dht.linkto";
/// The volume that a brick's directory belongs to.
const VOLUME_ID_XATTR: &str = "trusted.glusterfs.volume-id";
/// Gluster's identity of a file, on the brick.
const GFID_XATTR: &str = "trusted.gfid";

/// Why an image could not be found or may not be served.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// glusterd does not answer, or does not know the volume.
    #[error(transparent)]
    Glusterd(#[from] GlusterdError),
    /// The volume's layout is not one that can be served.
    #[error(transparent)]
    Volfile(#[from] VolfileError),
    /// The volume was created or stopped, not started.
    #[error("the volume {volume} is not started. Start it: gluster volume start {volume}")]
    NotStarted {
        /// Its name.
        volume: String,
    },
    /// The volume cuts files into shards.
    #[error(
        "the volume {volume} is sharded (features.shard is on): images in pieces cannot be served yet. Copy the image to a volume without shards"
    )]
    Sharded {
        /// Its name.
        volume: String,
    },
    /// The replica set is larger than this program's sets of bricks.
    #[error("the replica set {set} has {bricks} bricks; at most {MAX_BRICKS} can be handled")]
    TooManyBricks {
        /// Its name.
        set: String,
        /// Its size.
        bricks: usize,
    },
    /// Features that must see every write would not see ours.
    #[error("{} on for the volume {volume}, and would not see the guest's writes, which bypass the brick process. Turn it off, or insist with {}", on(.features), allow(.features))]
    Bypassed {
        /// The volume.
        volume: String,
        /// The features, by their `--allow` names.
        features: Vec<&'static str>,
    },
    /// The bricks refuse changes.
    #[error(
        "the volume {volume} is write-once or read-only (features.worm, features.read-only): its bricks refuse changes. Turn that off, or serve with --read-only"
    )]
    Unchangeable {
        /// The volume.
        volume: String,
    },
    /// No such file in the volume.
    #[error("there is no image {image} in the volume {volume} ({component:?} does not exist)")]
    NoImage {
        /// The volume.
        volume: String,
        /// The path in it.
        image: String,
        /// The part of the path that is missing.
        component: String,
    },
    /// Something else than a regular file.
    #[error("{image} in the volume {volume} is {what}, not an image file")]
    NotAFile {
        /// The volume.
        volume: String,
        /// The path in it.
        image: String,
        /// What it is instead.
        what: &'static str,
    },
    /// Only DHT's pointers were found, not the file.
    #[error(
        "{image} is only a DHT link file here; its data is on the replica set {target}, none of whose bricks has it or answers. Bring that replica set up, or fix the layout: gluster volume rebalance {volume} fix-layout start"
    )]
    LinkFile {
        /// The volume.
        volume: String,
        /// The path in it.
        image: String,
        /// Where the pointer points to.
        target: String,
    },
    /// No brick of any replica set answered.
    #[error("no brick of the volume {volume} answers: {why}")]
    NoBrick {
        /// The volume.
        volume: String,
        /// The reasons, brick by brick.
        why: String,
    },
    /// This host has no copy.
    #[error(
        "no brick of this host has a copy of {image}; its bricks are {bricks}. Run bypass-blk on one of those hosts"
    )]
    NoLocalBrick {
        /// The path in the volume.
        image: String,
        /// The bricks of its replica set.
        bricks: String,
    },
    /// This host has several copies.
    #[error(
        "several bricks of this host have a copy of {image}: {bricks}. Choose one with --brick"
    )]
    SeveralLocalBricks {
        /// The path in the volume.
        image: String,
        /// Those on this host.
        bricks: String,
    },
    /// `--brick` names none of the replica set's bricks.
    #[error("{brick} is not a brick of the replica set of {image}; those are {bricks}")]
    UnknownBrick {
        /// What was asked for.
        brick: String,
        /// The path in the volume.
        image: String,
        /// The bricks of its replica set.
        bricks: String,
    },
    /// `--brick` names a brick whose directory is not on this host.
    #[error("the brick {brick} is not on this host: {} is not a directory of this volume here", .path.display())]
    NotOnThisHost {
        /// The brick.
        brick: String,
        /// Its directory.
        path: PathBuf,
    },
    /// The local brick is an arbiter.
    #[error(
        "the local brick {brick} is an arbiter: it has no data to serve. Run bypass-blk on a host of a data brick: {others}"
    )]
    Arbiter {
        /// The brick.
        brick: String,
        /// The data bricks.
        others: String,
    },
    /// The process may not see `trusted.*` attributes.
    #[error("not enough privilege for trusted.* attributes: run as root or with CAP_SYS_ADMIN")]
    Privilege,
}

fn on(features: &[&'static str]) -> String {
    let verb = if features.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", features.join(" and "))
}

fn allow(features: &[&'static str]) -> String {
    format!("--allow {}", features.join(","))
}

/// A volume that can be served.
pub struct Catalog {
    glusterd: Glusterd,
    volume: Volume,
}

/// An image in its replica set.
#[derive(Clone, Debug)]
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
        Names(self.set.bricks.iter().map(BrickSpec::to_string).collect())
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

/// The brick of this host whose copy to serve. `wanted` is `HOST:/PATH` when the
/// operator chose.
///
/// # Errors
/// See [`LocateError`].
pub fn local_brick(located: &Located, wanted: Option<&str>) -> Result<usize, LocateError> {
    if !may_see_trusted() {
        return Err(LocateError::Privilege);
    }
    let names = located.names();
    let chosen = match wanted {
        Some(wanted) => chosen_brick(located, &names, wanted)?,
        None => only_local_brick(located, &names)?,
    };
    match located.arbiter() {
        Some(arbiter) if arbiter == chosen => Err(LocateError::Arbiter {
            brick: names.one(chosen),
            others: names.list(located.shape(chosen).copies()),
        }),
        _ => Ok(chosen),
    }
}

fn chosen_brick(located: &Located, names: &Names, wanted: &str) -> Result<usize, LocateError> {
    let wanted_name = wanted.trim_end_matches('/');
    let Some(brick) = names.0.iter().position(|name| name == wanted_name) else {
        return Err(LocateError::UnknownBrick {
            brick: wanted.to_owned(),
            image: located.image.clone(),
            bricks: names.list(located.shape(0).all()),
        });
    };
    let path = PathBuf::from(&located.set.bricks[brick].path);
    if !is_brick_of(&path, located.volume_id) {
        return Err(LocateError::NotOnThisHost {
            brick: wanted.to_owned(),
            path,
        });
    }
    Ok(brick)
}

fn only_local_brick(located: &Located, names: &Names) -> Result<usize, LocateError> {
    let here = |&brick: &usize| {
        is_brick_of(
            Path::new(&located.set.bricks[brick].path),
            located.volume_id,
        )
    };
    let mut mine: Vec<usize> = (0..located.set.bricks.len()).filter(here).collect();
    if mine.len() > 1 {
        mine.retain(|&brick| has_copy(located, brick));
    }
    match mine.as_slice() {
        [brick] => Ok(*brick),
        [] => Err(LocateError::NoLocalBrick {
            image: located.image.clone(),
            bricks: names.list(located.shape(0).all()),
        }),
        several => Err(LocateError::SeveralLocalBricks {
            image: located.image.clone(),
            bricks: names.list(several.iter().copied().collect()),
        }),
    }
}

/// Has this directory the image's file, by Gluster's identity of it?
fn has_copy(located: &Located, brick: usize) -> bool {
    let gfid = xattr::get(located.local_path(brick), GFID_XATTR)
        .ok()
        .flatten();
    gfid.as_deref() == Some(located.gfid.as_bytes())
}

/// Is the directory on this host a brick of the volume? A name of the host proves
/// nothing: the directory must carry the volume's identity.
fn is_brick_of(path: &Path, volume_id: Uuid) -> bool {
    let found = xattr::get(path, VOLUME_ID_XATTR).ok().flatten();
    found.as_deref() == Some(volume_id.as_bytes())
}

/// Features of the brick process that direct writes bypass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bypassable {
    /// Bit-rot detection signs files by what it saw written.
    Bitrot,
    /// Geo-replication's journal of changes.
    Changelog,
    /// Quota accounting.
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
