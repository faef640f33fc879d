//! Files that are replaced as a whole or not at all, also when the power fails.
//!
//! The one place where a draft takes another file's name: the draft is on the disk before
//! it has the name, and the name is before the caller goes on. Used for the documents of
//! the state directory, for dirty maps and for the file of metrics. It knows nothing of
//! what is in them, and locks nothing: two that replace one file agree beforehand.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where what becomes `path` is until then. With none of the ends that others look for
/// (`.json`, `.map`, `.prom`).
pub fn draft_of(path: &Path, whose: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".");
    name.push(whose);
    PathBuf::from(name)
}

/// Replaces the file at `path` by one with these bytes and permissions.
///
/// # Errors
/// The system's; `path` is then as it was, or has the new bytes and may lose them to a
/// power cut.
pub fn write(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let draft = draft_of(path, &std::process::id().to_string());
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(mode);
    let written = options
        .custom_flags(libc::O_NOFOLLOW)
        .open(&draft)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            match put(&file, &draft, path)? {
                Put::Durable => Ok(()),
                Put::Fleeting(error) => Err(error),
            }
        });
    if written.is_err() {
        // Only room is given back.
        let _ = std::fs::remove_file(&draft);
    }
    written
}

/// A file has its new name.
#[derive(Debug)]
#[must_use]
pub enum Put {
    /// Also after a power cut.
    Durable,
    /// A power cut may give the name back to what had it before, for this reason.
    Fleeting(io::Error),
}

/// Gives `file`, which is at `draft`, the name `path`; what had it is gone.
///
/// # Errors
/// The system's; `path` is as it was then.
pub fn put(file: &File, draft: &Path, path: &Path) -> io::Result<Put> {
    file.sync_all()?;
    std::fs::rename(draft, path)?;
    Ok(match sync_name(path) {
        Ok(()) => Put::Durable,
        Err(error) => Put::Fleeting(error),
    })
}

/// Makes it durable that there is, or is not, something at `path`.
///
/// # Errors
/// The system's.
pub fn sync_name(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Makes a directory for its owner only, with those above it that are missing.
///
/// # Errors
/// The system's.
pub fn make_directory(path: &Path) -> io::Result<()> {
    let missing: Vec<_> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)?;
    missing.into_iter().try_for_each(sync_name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_permissions_and_no_draft_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/file.json");
        make_directory(path.parent().unwrap()).unwrap();
        // What a dead process of the same number left.
        let draft = draft_of(&path, &std::process::id().to_string());
        std::fs::write(draft, b"half of something longer").unwrap();
        for text in [&b"one"[..], b"two"] {
            write(&path, 0o600, text).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
        write(&path, 0o600, b"anew").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let names = std::fs::read_dir(path.parent().unwrap()).unwrap();
        assert_eq!(names.count(), 1);
    }

    #[test]
    fn what_cannot_be_replaced_stays_and_the_draft_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        // Only an empty directory would give way, and not to a file.
        std::fs::create_dir(&path).unwrap();
        assert!(write(&path, 0o600, b"new").is_err());
        let names = std::fs::read_dir(directory.path()).unwrap();
        assert!(path.is_dir() && names.count() == 1);
    }
}
