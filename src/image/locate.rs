//! Finding an image: its volume's layout, its replica set, and the brick of this
//! host.
//!
//! Asks the local glusterd and, name by name, the bricks. It takes no lock and
//! decides nothing about the copies' state: that is [`super::session::open`]'s part.

mod bypassed;
mod error;
mod local_brick;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error_chain::chain;
use super::layout::shards::{self, BadCut, Cut};
use super::layout::{Layout, Pieces};
use super::local::{Name, name_of};
use super::replica::brick_set::{MAX_BRICKS, SetChange, Shape};
use super::replica::names::Names;
use crate::gluster::fops::Entry;
use crate::gluster::{
    Brick, BrickError, BrickSpec, Errno, FileType, Glusterd, Identity, ReplicaSet, Timeouts,
    Volume, VolumeState, tls,
};

pub use bypassed::{Allowed, Bypassable};
pub use error::LocateError;
pub use local_brick::local_brick;

/// DHT's pointer from the brick where a name hashes to, to the replica set that
/// has the file.
const LINK_XATTR: &str = "trusted.glusterfs.dht.linkto";
/// What a file is judged by.
const WANTED: [&str; 3] = [LINK_XATTR, shards::BLOCK_SIZE, shards::FILE_SIZE];

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
    /// How it is cut, if it is in shards; which files they are is known once they were looked
    /// up ([`crate::image::brick_client::shards`]).
    #[serde(default)]
    pub pieces: Option<Pieces>,
}

impl Located {
    /// The files that it is made of.
    pub fn layout(&self) -> Layout {
        Layout::new(self.gfid, self.size, self.pieces.as_ref())
    }

    /// The same image, of so many bytes in these pieces.
    #[must_use]
    pub fn in_pieces(self, size: u64, pieces: Pieces) -> Self {
        Self {
            size,
            pieces: Some(pieces),
            ..self
        }
    }

    /// How it is cut, if it is in shards.
    pub fn cut(&self) -> Option<Cut> {
        let pieces = self.pieces.as_ref()?;
        Some(Cut {
            block: pieces.size,
            size: self.size,
        })
    }

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
            since: SetChange::NONE,
        }
    }

    /// What the image is called on child `local`, a brick of this host; it was `known`.
    pub fn name_now(&self, local: usize, known: &str) -> Name {
        let brick = self.set.bricks.get(local).map(|brick| brick.path.as_str());
        name_of(Path::new(brick.unwrap_or_default()), self.gfid, known)
    }

    /// The image's file in the brick directory of child `local`.
    pub fn local_path(&self, local: usize) -> PathBuf {
        let brick = self.set.bricks.get(local).map(|brick| brick.path.as_str());
        Path::new(brick.unwrap_or_default()).join(self.image.trim_start_matches('/'))
    }
}

impl Located {
    /// The folder of shards in the brick directory of child `local`.
    pub fn local_shards(&self, local: usize) -> PathBuf {
        let brick = self.set.bricks.get(local).map(|brick| brick.path.as_str());
        Path::new(brick.unwrap_or_default()).join(shards::FOLDER)
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

    /// The replica set that has a brick of this name.
    pub fn set_with(&self, brick: &str) -> Option<&ReplicaSet> {
        let has = |set: &&ReplicaSet| set.bricks.iter().any(|spec| spec.to_string() == brick);
        self.volume.replica_sets.iter().find(has)
    }

    /// How many replica sets it has.
    pub fn sets(&self) -> usize {
        self.volume.replica_sets.len()
    }

    /// The volume's identity.
    pub fn volume_id(&self) -> Uuid {
        self.volume.volume_id
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
                    Ok(Look::File { gfid, size, pieces }) => {
                        if pieces.is_some() && self.volume.replica_sets.len() > 1 {
                            return Err(LocateError::ShardsSpread {
                                volume: self.volume.name.clone(),
                                image: image.to_owned(),
                                sets: self.volume.replica_sets.len(),
                            });
                        }
                        return Ok(Located {
                            volume: self.volume.name.clone(),
                            volume_id: self.volume.volume_id,
                            image: image.to_owned(),
                            set: set.clone(),
                            gfid,
                            size,
                            pieces,
                        });
                    }
                    Ok(Look::BadShards(source)) => {
                        return Err(LocateError::BadShards {
                            volume: self.volume.name.clone(),
                            image: image.to_owned(),
                            source,
                        });
                    }
                    // An arbiter's file is empty, and a brick may lack what its
                    // set has: ask the next one too.
                    Ok(look) => search.add(look),
                    Err(error) => search.failed(spec, &error),
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
        let answer = brick.resolve(image, &WANTED);
        brick.close();
        match answer {
            Ok(entry) => Ok(Look::of(&entry)),
            Err(BrickError::Path {
                component, errno, ..
            }) if errno == Errno::NOENT => Ok(Look::Missing(component)),
            Err(error) => Err(error),
        }
    }
}

/// What a brick has under the image's name.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    File {
        gfid: Uuid,
        size: u64,
        pieces: Option<Pieces>,
    },
    BadShards(BadCut),
    Link(String),
    NotAFile(&'static str),
    Missing(String),
}

impl Look {
    fn of(entry: &Entry) -> Self {
        let value = |name: &str| entry.xattrs.get(name);
        match entry.iatt.file_type() {
            FileType::Regular => {}
            FileType::Directory => return Self::NotAFile("a directory"),
            FileType::Symlink => return Self::NotAFile("a symbolic link"),
            FileType::Other => return Self::NotAFile("a special file"),
        }
        if let Some(target) = value(LINK_XATTR) {
            let target = String::from_utf8_lossy(target);
            return Self::Link(target.trim_end_matches('\0').to_owned());
        }
        let gfid = entry.iatt.gfid.0;
        let Some(block) = value(shards::BLOCK_SIZE) else {
            let (size, pieces) = (entry.iatt.size, None);
            return Self::File { gfid, size, pieces };
        };
        match Cut::parse(block, value(shards::FILE_SIZE).map(Vec::as_slice)) {
            Err(bad) => Self::BadShards(bad),
            Ok(Cut { block, size }) => Self::File {
                gfid,
                size,
                pieces: Some(Pieces {
                    size: block,
                    gfids: Vec::new(),
                }),
            },
        }
    }
}

/// What was found instead of the file.
#[derive(Default)]
struct Search {
    link: Option<String>,
    not_a_file: Option<&'static str>,
    missing: Option<String>,
    failed: Vec<String>,
    /// Why there is no TLS, and to which bricks: mostly it is the same for all.
    no_tls: BTreeMap<String, Vec<String>>,
}

impl Search {
    fn add(&mut self, look: Look) {
        match look {
            Look::File { .. } | Look::BadShards(_) => {}
            Look::Link(target) => self.link = Some(target),
            Look::NotAFile(what) => self.not_a_file = Some(what),
            Look::Missing(component) => self.missing = Some(component),
        }
    }

    fn failed(&mut self, spec: &BrickSpec, error: &BrickError) {
        match tls::cause(error) {
            Some(why) => {
                let bricks = self.no_tls.entry(chain(why)).or_default();
                bricks.push(spec.to_string());
            }
            None => self.failed.push(format!("{spec} ({})", chain(error))),
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
            Self { failed, no_tls, .. } if no_tls.is_empty() => LocateError::NoBrick {
                volume,
                why: failed.join("; "),
            },
            Self { failed, no_tls, .. } => {
                let told = no_tls
                    .into_iter()
                    .map(|(why, bricks)| format!("{why} ({})", bricks.join(", ")));
                LocateError::NoTls {
                    volume,
                    why: told.chain(failed).collect::<Vec<_>>().join("; "),
                }
            }
        }
    }
}
