//! The state directory: what this host remembers of the images that it serves.
//!
//! Per image a dirty map and a small document beside it, which says where the image
//! is, so that a healer finds it again when its session is over, and what was done with
//! it. What is lost of these is made anew. And an empty file while the image's guest has
//! its disk in write-through mode, which a new daemon under that guest must know. (A file
//! of its own: other processes rewrite the document.)

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::dirty::ExtentSize;
use super::promote::Promotion;
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
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.0);
        made.map_err(|source| error("make", &self.0, source))
    }

    /// The dirty map of an image.
    pub fn map(&self, volume: &str, gfid: Uuid) -> PathBuf {
        self.0.join(format!("{volume}-{gfid}.map"))
    }

    fn document(&self, volume: &str, gfid: Uuid) -> PathBuf {
        self.0.join(format!("{volume}-{gfid}.json"))
    }

    /// Keeps an entry; it replaces an older one as a whole, or not at all.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn store(&self, entry: &Entry) -> Result<(), StateError> {
        let path = self.document(&entry.volume, entry.gfid);
        let failed = |source| error("write", &path, source);
        let text = serde_json::to_vec_pretty(entry).map_err(|e| failed(e.into()))?;
        let unique = format!("json.{}", std::process::id());
        let draft = path.with_extension(unique);
        let mut private = std::fs::File::options();
        private.write(true).create(true).truncate(true).mode(0o600);
        let written = private
            .open(&draft)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&draft, &path));
        written.map_err(|source| {
            // Only room is given back.
            let _ = std::fs::remove_file(&draft);
            failed(source)
        })
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
        let failed = |what| {
            let path = path.clone();
            move |source| error(what, &path, source)
        };
        if !through {
            return match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(failed("remove")(source))
                }
                _ => Ok(()),
            };
        }
        self.create()?;
        let mut private = std::fs::File::options();
        private.write(true).create(true).mode(0o600);
        private
            .open(&path)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::File::open(&self.0)?.sync_all())
            .map_err(failed("write"))
    }

    /// The entry of an image, if there is one that can be read.
    pub fn entry(&self, volume: &str, gfid: Uuid) -> Option<Entry> {
        read(&self.document(volume, gfid))
    }

    /// The entries of all images. What cannot be read is told and left out.
    ///
    /// # Errors
    /// [`StateError`] when the directory cannot be read; none when it is missing.
    pub fn entries(&self) -> Result<Vec<Entry>, StateError> {
        let failed = |source| error("read", &self.0, source);
        let files = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            files => files.map_err(failed)?,
        };
        let mut entries = Vec::new();
        for file in files {
            let path = file.map_err(failed)?.path();
            if path.extension().is_some_and(|end| end == "json") {
                entries.extend(read(&path));
            }
        }
        entries.sort_by(|a, b| (&a.volume, &a.image).cmp(&(&b.volume, &b.image)));
        Ok(entries)
    }

    /// The image is another host's now: nobody here finishes it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn hand_over(&self, volume: &str, gfid: Uuid) -> Result<(), StateError> {
        match self.entry(volume, gfid) {
            Some(entry) => self.store(&Entry {
                handed_over: true,
                ..entry
            }),
            None => Ok(()),
        }
    }

    /// All copies of an image are equal and no mark stands: its map is not needed.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn settle(&self, volume: &str, gfid: Uuid) -> Result<(), StateError> {
        if let Some(entry) = self.entry(volume, gfid) {
            self.store(&Entry {
                settled: true,
                ..entry
            })?;
        }
        let path = self.map(volume, gfid);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(error("remove", &path, source))
            }
            _ => Ok(()),
        }
    }
}

fn error(what: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError {
        what,
        path: path.to_owned(),
        source,
    }
}

fn read(path: &Path) -> Option<Entry> {
    let read = || -> io::Result<Entry> {
        let found = std::fs::metadata(path)?;
        if !found.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        if found.len() > MAX_ENTRY {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    };
    match read() {
        Ok(entry) => Some(entry),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            log::warn!("{} is not used: {error}", path.display());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(image: &str) -> Entry {
        Entry {
            volume: "gv0".to_owned(),
            image: image.to_owned(),
            gfid: Uuid::new_v4(),
            server: "localhost".to_owned(),
            port: 24007,
            brick: "a:/brick".to_owned(),
            extent_size: Some(65536),
            settled: false,
            handed_over: false,
            promoted: None,
            verified: None,
        }
    }

    #[test]
    fn what_is_kept_is_found_again_and_garbage_beside_it_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::new(&directory.path().join("deep/state"));
        assert_eq!(state.entries().unwrap(), []);
        state.create().unwrap();
        let entries = [entry("/a"), entry("/b")];
        entries.iter().rev().for_each(|e| state.store(e).unwrap());
        std::fs::write(state.document("gv0", Uuid::nil()), b"{ half").unwrap();
        let pipe = state.document("gv0", Uuid::from_u128(1));
        // Whoever reads one waits for a writer.
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        assert_eq!(state.entries().unwrap(), entries);
        assert_eq!(state.entry("gv0", entries[1].gfid).as_ref(), entries.get(1));
        let map = state.map("gv0", entries[0].gfid);
        std::fs::write(&map, b"words").unwrap();
        state.settle("gv0", entries[0].gfid).unwrap();
        assert!(!map.exists());
        assert!(state.entry("gv0", entries[0].gfid).unwrap().settled);
    }

    #[test]
    fn write_through_is_kept_until_it_ends_and_assumed_in_doubt() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/state");
        let state = StateDir::new(&path);
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        assert!(!state.write_through("gv0", one));
        for _ in 0..2 {
            state.keep_write_through("gv0", one, true).unwrap();
        }
        assert!(state.write_through("gv0", one) && !state.write_through("gv0", other));
        assert_eq!(state.entries().unwrap(), []);
        // What others write of the image does not touch it.
        let entry = Entry {
            gfid: one,
            ..entry("/a")
        };
        state.store(&entry).unwrap();
        state.settle("gv0", one).unwrap();
        assert!(state.write_through("gv0", one));
        for _ in 0..2 {
            state.keep_write_through("gv0", one, false).unwrap();
        }
        assert!(!state.write_through("gv0", one));
        // A file where the directory should be: nothing can be known.
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, b"").unwrap();
        assert!(state.write_through("gv0", one));
        assert!(state.keep_write_through("gv0", one, true).is_err());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let state = StateDir::new(&file.path().join("state"));
        assert!(
            state
                .create()
                .unwrap_err()
                .to_string()
                .contains("--state-dir")
        );
    }
}
