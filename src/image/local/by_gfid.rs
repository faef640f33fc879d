//! A brick's files by their gfid: an image may get another name while it is open, and
//! before it is finished.
//!
//! Every brick has each file a second time, as a hard link that is named by the gfid
//! (`posix_handle_hard`, posix-handle.c), and on the file the names that it has
//! (`posix_set_gfid2path_xattr`, posix-gfid-path.c). Read here, never changed.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::GFID_XATTR;

/// Where a brick has its files by their gfids.
const HANDLES: &str = ".glusterfs";
/// What the name of an attribute begins with whose value is a name of the file: the gfid
/// of its folder, a slash, and its name there.
const NAME_XATTR: &str = "trusted.gfid2path.";

/// What an image is called on a brick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// What it was.
    Same,
    /// This path in the volume.
    Other(String),
    /// Nothing: the brick has no file of that gfid any more.
    Gone,
    /// The brick does not tell.
    Unknown,
}

/// The file of this gfid: at `path`, or, if another one is there or none, where the brick
/// has it by its gfid. `path` if it is nowhere.
pub fn file_of(path: &Path, gfid: Uuid) -> PathBuf {
    if is(path, gfid) {
        return path.to_owned();
    }
    let folders = path.ancestors().skip(1);
    let mut handles = folders.map(|folder| handle(folder, gfid));
    let found = handles.find(|handle| is(handle, gfid));
    found.unwrap_or_else(|| path.to_owned())
}

/// The name in the volume that the file of this gfid has in the brick at `brick`; `known`
/// is what it was, beginning with a slash.
pub fn name_of(brick: &Path, gfid: Uuid, known: &str) -> Name {
    if is(&brick.join(known.trim_start_matches('/')), gfid) {
        return Name::Same;
    }
    let file = handle(brick, gfid);
    match file.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A brick whose file system is not mounted knows of no file.
            return match brick.join(HANDLES).is_dir() {
                true => Name::Gone,
                false => Name::Unknown,
            };
        }
        _ => {}
    }
    let names = names(&file).unwrap_or_default();
    let path = names.iter().find_map(|name| path_of(brick, gfid, name));
    path.map_or(Name::Unknown, Name::Other)
}

fn handle(brick: &Path, gfid: Uuid) -> PathBuf {
    let name = gfid.to_string();
    let folders = [&name[..2], &name[2..4]];
    brick
        .join(HANDLES)
        .join(folders[0])
        .join(folders[1])
        .join(name)
}

fn is(file: &Path, gfid: Uuid) -> bool {
    let found = xattr::get(file, GFID_XATTR).ok().flatten();
    found.as_deref() == Some(gfid.as_bytes())
}

/// The values of the file's names.
fn names(file: &Path) -> io::Result<Vec<Vec<u8>>> {
    let attributes = xattr::list(file)?;
    let names = attributes.filter(|name| name.as_bytes().starts_with(NAME_XATTR.as_bytes()));
    let values = names.filter_map(|name| xattr::get(file, name).transpose());
    values.collect()
}

/// The path in the volume that a name stands for, if the file is there.
fn path_of(brick: &Path, gfid: Uuid, name: &[u8]) -> Option<String> {
    let slash = name.iter().position(|byte| *byte == b'/')?;
    let folder = Uuid::try_parse_ascii(&name[..slash]).ok()?;
    let name = Path::new(OsStr::from_bytes(name.get(slash + 1..)?));
    // A folder's handle is a link to where it is, by those of the folders above.
    let folder = handle(brick, folder).canonicalize().ok()?;
    let file = folder.join(name);
    let inside = file.strip_prefix(brick.canonicalize().ok()?).ok()?;
    let inside = inside.to_str().filter(|_| is(&file, gfid))?;
    Some(format!("/{inside}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const IMAGE: Uuid = Uuid::from_u128(0xabcd << 112 | 7);
    const ROOT: Uuid = Uuid::from_u128(1);
    const FOLDER: Uuid = Uuid::from_u128(0x1234 << 112 | 9);

    /// A brick with a folder and an image in it, as Gluster lays them out.
    fn brick(image: &str) -> tempfile::TempDir {
        let brick = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = brick.path();
        std::fs::create_dir(path.join("folder")).unwrap();
        for gfid in [IMAGE, ROOT, FOLDER] {
            std::fs::create_dir_all(handle(path, gfid).parent().unwrap()).unwrap();
        }
        symlink("../../..", handle(path, ROOT)).unwrap();
        symlink(format!("../../00/00/{ROOT}/folder"), handle(path, FOLDER)).unwrap();
        std::fs::write(path.join(image), "").unwrap();
        xattr::set(path.join(image), GFID_XATTR, IMAGE.as_bytes()).unwrap();
        std::fs::hard_link(path.join(image), handle(path, IMAGE)).unwrap();
        brick
    }

    fn call(brick: &Path, folder: Uuid, name: &str) {
        let value = format!("{folder}/{name}");
        let key = format!("{NAME_XATTR}0123456789abcdef");
        xattr::set(handle(brick, IMAGE), key, value.as_bytes()).unwrap();
    }

    #[test]
    fn an_image_is_found_under_its_new_name_in_another_folder() {
        let brick = brick("folder/new.img");
        call(brick.path(), FOLDER, "new.img");
        let name = |known| name_of(brick.path(), IMAGE, known);
        assert_eq!(name("/old.img"), Name::Other("/folder/new.img".to_owned()));
        assert_eq!(name("/folder/new.img"), Name::Same);
        call(brick.path(), ROOT, "gone.img");
        assert_eq!(name("/old.img"), Name::Unknown, "that name is not there");
        let old = brick.path().join("folder/old.img");
        assert_eq!(file_of(&old, IMAGE), handle(brick.path(), IMAGE));
        std::fs::write(&old, "another file").unwrap();
        assert_eq!(file_of(&old, IMAGE), handle(brick.path(), IMAGE));
        let new = brick.path().join("folder/new.img");
        assert_eq!(file_of(&new, IMAGE), new);
    }

    #[test]
    fn an_image_that_was_removed_is_gone_and_one_of_a_brick_that_is_not_there_is_not() {
        let brick = brick("image");
        std::fs::remove_file(brick.path().join("image")).unwrap();
        assert_eq!(name_of(brick.path(), IMAGE, "/image"), Name::Unknown);
        std::fs::remove_file(handle(brick.path(), IMAGE)).unwrap();
        assert_eq!(name_of(brick.path(), IMAGE, "/image"), Name::Gone);
        let path = brick.path().join("image");
        assert_eq!(file_of(&path, IMAGE), path);
        let empty = tempfile::tempdir_in("/var/tmp").unwrap();
        assert_eq!(name_of(empty.path(), IMAGE, "/image"), Name::Unknown);
    }
}
