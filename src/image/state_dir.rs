//! The state directory: what this host remembers of the images that it serves.
//!
//! Per image a dirty map and a small document beside it, which says where the image
//! is, so that a healer finds it again when its session is over, and what was done with
//! it. What is lost of these is made anew, but for a promotion. And an empty file while the
//! image's guest has its disk in write-through mode, which a new daemon under that guest
//! must know. (A file of its own: it is looked for without reading a document.)
//!
//! Sessions, healers, `verify` and `promote` of several processes change one document, so
//! it is read, changed and stored under the lock of a file beside it
//! ([`StateDir::change`]), and is on the disk when that returns.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::dirty_map::ExtentSize;
use super::durable;
use super::replica::promotion::Promotion;
use super::verify::VerifyRecord;

/// Where it is unless said otherwise.
pub const STATE_DIR: &str = "/var/lib/bypass-blk";

/// The longest document, in bytes.
const MAX_ENTRY: u64 = 1 << 20;

/// See the module.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

/// One image of this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The volume's name.
    pub volume: String,
    /// The image's path in the volume.
    pub image: String,
    /// Gluster's identity of the image.
    pub gfid: Uuid,
    /// Host of the glusterd that was asked.
    pub server: String,
    /// Its port.
    pub port: u16,
    /// The local brick, `host:/path`.
    pub brick: String,
    /// Bytes of an extent of the map, if not by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extent_size: Option<u32>,
    /// The last session left all copies equal and no mark behind.
    pub settled: bool,
    /// The last session gave the image to another host, which heals it from now on.
    #[serde(default)]
    pub handed_over: bool,
    /// This copy was made the fresh one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Promotion>,
    /// The last comparison of all copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<VerifyRecord>,
}

impl Entry {
    /// `volume/image`, as it is told to people.
    pub fn name(&self) -> String {
        format!("{}{}", self.volume, self.image)
    }

    /// The extent size that was chosen for the image, if one was.
    pub fn chosen_extent_size(&self) -> Option<ExtentSize> {
        ExtentSize::new(self.extent_size?).ok()
    }
}

/// The state directory could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}. The state directory must exist, be writable and have room; or give another --state-dir", .path.display())]
pub struct StateError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl StateDir {
    /// The directory at `path`, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Makes it, for its owner only.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn create(&self) -> Result<(), StateError> {
        durable::make_directory(&self.0).map_err(|source| error("make", &self.0, source))
    }

    /// The dirty map of an image.
    pub fn map(&self, volume: &str, gfid: Uuid) -> PathBuf {
        self.0.join(format!("{volume}-{gfid}.map"))
    }

    fn document(&self, volume: &str, gfid: Uuid) -> PathBuf {
        self.0.join(format!("{volume}-{gfid}.json"))
    }

    /// Puts what `change` makes of an image's entry in its place; `None` leaves it as it
    /// is. Nobody else changes it in between, and it is durable on return.
    ///
    /// # Errors
    /// [`StateError`]; also when there is an entry and the disk does not give it.
    pub fn change(
        &self,
        volume: &str,
        gfid: Uuid,
        change: impl FnOnce(Option<Entry>) -> Option<Entry>,
    ) -> Result<(), StateError> {
        let path = self.document(volume, gfid);
        let failed = |what| {
            let path = path.clone();
            move |source| error(what, &path, source)
        };
        let _lock = self.lock(volume, gfid)?;
        let before = match read(&path) {
            Err(Unread::Damaged(why)) => {
                log::warn!("{} is replaced: {why}", path.display());
                None
            }
            Err(Unread::Disk(source)) => return Err(failed("read")(source)),
            Ok(before) => before,
        };
        let Some(entry) = change(before) else {
            return Ok(());
        };
        let text = serde_json::to_vec_pretty(&entry).map_err(|e| failed("write")(e.into()))?;
        durable::write(&path, 0o600, &text).map_err(failed("write"))
    }

    /// The right to change an image's entry, until the file is closed.
    fn lock(&self, volume: &str, gfid: Uuid) -> Result<File, StateError> {
        let path = self.lock_file(volume, gfid);
        let take = || -> io::Result<File> {
            loop {
                let mut private = File::options();
                private.write(true).create(true).truncate(false).mode(0o600);
                let file = private.custom_flags(libc::O_NOFOLLOW).open(&path)?;
                flock(&file, FlockOperation::LockExclusive)?;
                // Whoever had it may have forgotten the image, and this file with it.
                let named = std::fs::symlink_metadata(&path).map(|there| there.ino());
                if named.is_ok_and(|ino| file.metadata().is_ok_and(|ours| ours.ino() == ino)) {
                    return Ok(file);
                }
            }
        };
        take().map_err(|source| error("lock", &path, source))
    }

    fn lock_file(&self, volume: &str, gfid: Uuid) -> PathBuf {
        self.0.join(format!("{volume}-{gfid}.lock"))
    }

    fn write_through_file(&self, volume: &str, gfid: Uuid) -> PathBuf {
        self.0.join(format!("{volume}-{gfid}.write-through"))
    }

    /// Whether the image's guest has its disk in write-through mode, as far as is known.
    /// In doubt it has: then it never flushes.
    pub fn write_through(&self, volume: &str, gfid: Uuid) -> bool {
        match std::fs::symlink_metadata(self.write_through_file(volume, gfid)) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Keeps that the image's guest has its disk in write-through mode, or not any more.
    /// Durable on return.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn keep_write_through(
        &self,
        volume: &str,
        gfid: Uuid,
        through: bool,
    ) -> Result<(), StateError> {
        let path = self.write_through_file(volume, gfid);
        if !through {
            return remove(&path);
        }
        self.create()?;
        durable::write(&path, 0o600, b"").map_err(|source| error("write", &path, source))
    }

    /// The entry of an image, if there is one that can be read.
    pub fn entry(&self, volume: &str, gfid: Uuid) -> Option<Entry> {
        read_or_tell(&self.document(volume, gfid))
    }

    /// The entries of all images. What cannot be read is told and left out.
    ///
    /// # Errors
    /// [`StateError`] when the directory cannot be read; none when it is missing.
    pub fn entries(&self) -> Result<Vec<Entry>, StateError> {
        let told = |unread: String| log::warn!("{unread}");
        let read = self.read_all()?.into_iter();
        Ok(read.filter_map(|entry| entry.map_err(told).ok()).collect())
    }

    /// The entries of all images, by name; instead of one that cannot be read, which and why
    /// not.
    ///
    /// # Errors
    /// [`StateError`] when the directory cannot be read; none when it is missing.
    pub fn read_all(&self) -> Result<Vec<Result<Entry, String>>, StateError> {
        let failed = |source| error("read", &self.0, source);
        let files = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            files => files.map_err(failed)?,
        };
        let mut entries = Vec::new();
        for file in files {
            let path = file.map_err(failed)?.path();
            if path.extension().is_some_and(|end| end == "json") {
                entries.extend(read_or_say(&path).transpose());
            }
        }
        entries.sort_by_cached_key(|entry| match entry {
            Ok(entry) => (entry.volume.clone(), entry.image.clone()),
            Err(why) => (String::new(), why.clone()),
        });
        Ok(entries)
    }

    /// The image is another host's now: nobody here finishes it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn hand_over(&self, volume: &str, gfid: Uuid) -> Result<(), StateError> {
        self.change(volume, gfid, |entry| {
            Some(Entry {
                handed_over: true,
                ..entry?
            })
        })
    }

    /// All copies of an image are equal and no mark stands: its map is not needed.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn settle(&self, volume: &str, gfid: Uuid) -> Result<(), StateError> {
        self.change(volume, gfid, |entry| {
            Some(Entry {
                settled: true,
                ..entry?
            })
        })?;
        remove(&self.map(volume, gfid))
    }

    /// Removes everything that is kept of an image. Nobody serves or heals it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn forget(&self, volume: &str, gfid: Uuid) -> Result<(), StateError> {
        let _lock = self.lock(volume, gfid)?;
        remove(&self.map(volume, gfid))?;
        remove(&self.write_through_file(volume, gfid))?;
        // Last of what is known, so that a part can be forgotten again.
        remove(&self.document(volume, gfid))?;
        remove(&self.lock_file(volume, gfid))
    }
}

/// Also when there is none.
fn remove(path: &Path) -> Result<(), StateError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(error("remove", path, source))
        }
        _ => Ok(()),
    }
}

fn error(what: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Why a document could not be read.
enum Unread {
    /// The disk does not give it.
    Disk(io::Error),
    /// It is no document.
    Damaged(io::Error),
}

fn read(path: &Path) -> Result<Option<Entry>, Unread> {
    let damaged = |why: &str| Err(Unread::Damaged(io::Error::other(why.to_owned())));
    let found = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(Unread::Disk)?,
    };
    if !found.is_file() {
        return damaged("it is not a regular file");
    }
    if found.len() > MAX_ENTRY {
        return damaged("it is too long");
    }
    let text = std::fs::read(path).map_err(Unread::Disk)?;
    let entry = serde_json::from_slice(&text).map_err(|error| Unread::Damaged(error.into()))?;
    Ok(Some(entry))
}

fn read_or_tell(path: &Path) -> Option<Entry> {
    read_or_say(path).unwrap_or_else(|why| {
        log::warn!("{why}");
        None
    })
}

fn read_or_say(path: &Path) -> Result<Option<Entry>, String> {
    read(path).map_err(|(Unread::Disk(why) | Unread::Damaged(why))| {
        format!("{} is not used: {why}", path.display())
    })
}

#[cfg(test)]
impl Entry {
    /// Of an image that a session left unsettled.
    pub(crate) fn example(volume: &str, image: &str, gfid: Uuid) -> Self {
        Self {
            volume: volume.to_owned(),
            image: image.to_owned(),
            gfid,
            server: "localhost".to_owned(),
            port: 24007,
            brick: "a:/b".to_owned(),
            extent_size: None,
            settled: false,
            handed_over: false,
            promoted: None,
            verified: None,
        }
    }
}

#[cfg(test)]
mod tests;
