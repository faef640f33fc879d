//! Which files are taken for the local copy, and which are refused.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::FlockOperation;

use super::opening::FORMATS;
use super::*;
use crate::gluster::Pending;
use crate::image::layout::{FileIndex, Layout, Pieces};
use crate::image::replica::brick_set::BrickSet;

const GFID: Uuid = Uuid::from_u128(0x1234);
const RAW: LocalTerms = LocalTerms {
    read_only: false,
    force_raw: false,
};

/// A file on a disk (tmpfs takes no `trusted.*` attributes for everyone).
fn image(contents: &[u8], size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    file.as_file().write_all_at(contents, 0).unwrap();
    file.as_file().set_len(size).unwrap();
    xattr::set(file.path(), GFID_XATTR, GFID.as_bytes()).unwrap();
    file
}

#[test]
fn an_image_format_is_refused_unless_raw_is_forced() {
    for (magic, name) in FORMATS {
        let file = image(magic, 4096);
        match open(file.path(), GFID, RAW) {
            Err(LocalError::Formatted { format, .. }) => assert_eq!(format, name),
            other => panic!("{other:?}"),
        }
        let force_raw = LocalTerms {
            force_raw: true,
            ..RAW
        };
        assert_eq!(open(file.path(), GFID, force_raw).unwrap().size, 4096);
    }
}

#[test]
fn an_image_format_is_told_before_a_size_that_no_disk_has() {
    for size in [196_624, 4] {
        let qcow2 = open(image(b"QFI\xfb", size).path(), GFID, RAW);
        assert!(matches!(qcow2, Err(LocalError::Formatted { .. })), "{size}");
    }
    let force_raw = LocalTerms {
        force_raw: true,
        ..RAW
    };
    let odd = open(image(b"QFI\xfb", 196_624).path(), GFID, force_raw);
    assert!(matches!(odd, Err(LocalError::OddSize { .. })));
    let short = open(image(b"QFI", 3).path(), GFID, RAW);
    assert!(matches!(short, Err(LocalError::OddSize { size: 3, .. })));
}

#[test]
fn a_file_with_another_gfid_or_none_is_refused() {
    let file = image(b"", 4096);
    let other = Uuid::from_u128(9);
    assert!(matches!(
        open(file.path(), other, RAW),
        Err(LocalError::OtherFile { .. })
    ));
    xattr::remove(file.path(), GFID_XATTR).unwrap();
    assert!(matches!(
        open(file.path(), GFID, RAW),
        Err(LocalError::OtherFile { .. })
    ));
}

#[test]
fn empty_and_odd_sizes_and_directories_are_refused() {
    let empty = open(image(b"", 0).path(), GFID, RAW);
    assert!(matches!(empty, Err(LocalError::Empty { .. })));
    let odd = open(image(b"", 1000).path(), GFID, RAW);
    assert!(matches!(odd, Err(LocalError::OddSize { size: 1000, .. })));
    let folder = open(Path::new("/var/tmp"), GFID, RAW);
    assert!(matches!(folder, Err(LocalError::NotAFile { .. })));
}

#[test]
fn a_file_that_was_given_back_is_claimed_again_only_if_it_is_still_there() {
    let file = image(b"", 4096);
    let ours = look_at(file.path(), GFID, RAW).unwrap();
    let theirs = open(file.path(), GFID, RAW).unwrap();
    drop(theirs);
    let claimed = ours.claim_again().unwrap();
    let other = File::open(file.path()).unwrap();
    let try_lock = || rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
    assert!(try_lock().is_err(), "claimed");
    drop(claimed);
    assert!(try_lock().is_err(), "the other handle is still open");
    ours.give_back();
    try_lock().unwrap();
    drop(other);
    file.as_file().set_len(8192).unwrap();
    assert!(matches!(
        ours.claim_again(),
        Err(LocalError::Replaced { .. })
    ));
    file.as_file().set_len(4096).unwrap();
    let path = file.path().to_owned();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, [0; 4096]).unwrap();
    assert!(matches!(
        ours.claim_again(),
        Err(LocalError::Replaced { .. })
    ));
}

#[test]
fn whoever_goes_on_has_the_first_file_as_it_was_and_claims_those_behind_it_anew() {
    let (file, folder) = (image(b"", 4096), tempfile::tempdir_in("/var/tmp").unwrap());
    let base = open(file.path(), GFID, RAW).unwrap();
    let second = Uuid::from_u128(0x5678);
    let gfids = vec![second];
    let place = LocalPlace {
        path: file.path().to_owned(),
        shards: folder.path().to_owned(),
        layout: Layout::new(GFID, 6144, Some(&Pieces { size: 4096, gfids })),
    };
    let kept = || base.file.try_clone().unwrap();
    assert!(matches!(
        go_on(kept(), &place, RAW),
        Err(LocalError::Io { .. })
    ));
    let path = place.file(FileIndex(1));
    std::fs::write(&path, b"").unwrap();
    xattr::set(&path, GFID_XATTR, second.as_bytes()).unwrap();
    let local = go_on(kept(), &place, RAW).unwrap();
    assert_eq!((local.size, local.pieces.len()), (6144, 1));
    let note = |size: u64| {
        let value = [size.to_be_bytes().as_slice(), &[0; 24]].concat();
        xattr::set(file.path(), crate::image::layout::shards::FILE_SIZE, &value).unwrap();
    };
    note(8192);
    assert!(matches!(
        local.check_places(),
        Err(LocalError::Replaced { .. })
    ));
    note(6144);
    for path in [file.path(), &path] {
        let other = File::open(path).unwrap();
        let theirs = rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
        assert!(theirs.is_err(), "{} is claimed", path.display());
    }
    local.check_places().unwrap();
    std::fs::rename(&path, folder.path().join("aside")).unwrap();
    std::fs::write(&path, b"").unwrap();
    let replaced = local.check_places();
    assert!(matches!(replaced, Err(LocalError::Replaced { .. })));
}

#[test]
fn a_shard_s_name_is_not_enough_its_file_must_be_the_one_that_gluster_means() {
    let (file, folder) = (image(b"", 4096), tempfile::tempdir_in("/var/tmp").unwrap());
    let [second, other] = [0x5678, 0x9abc].map(Uuid::from_u128);
    let gfids = vec![second];
    let place = LocalPlace {
        path: file.path().to_owned(),
        shards: folder.path().to_owned(),
        layout: Layout::new(GFID, 8192, Some(&Pieces { size: 4096, gfids })),
    };
    let path = place.file(FileIndex(1));
    std::fs::write(&path, b"").unwrap();
    xattr::set(&path, GFID_XATTR, other.as_bytes()).unwrap();
    let refused = open_image(&place, RAW);
    assert!(matches!(refused, Err(LocalError::OtherFile { .. })));
    xattr::set(&path, GFID_XATTR, second.as_bytes()).unwrap();
    assert_eq!(open_image(&place, RAW).unwrap().pieces.len(), 1);
}

#[test]
fn marks_are_stored_on_the_file_once_and_keep_the_other_counters() {
    let file = image(b"", 4096);
    let names = ["trusted.afr.v-client-0", "trusted.afr.v-client-1"];
    let metadata = Pending {
        metadata: 7,
        ..Pending::default()
    };
    xattr::set(file.path(), names[1], &metadata.to_bytes()).unwrap();
    let local = open(file.path(), GFID, RAW).unwrap();
    let watch =
        LocalWatch::begin(&local.file, &local.path, names.map(str::to_owned).into()).unwrap();
    for _ in 0..2 {
        watch.mark(BrickSet::only(1), 5).unwrap();
    }
    let stored = xattr::get(file.path(), names[1]).unwrap().unwrap();
    let marked = Pending {
        data: 5,
        ..metadata
    };
    assert_eq!(Pending::from_bytes(&stored), Ok(marked));
    assert_eq!(xattr::get(file.path(), names[0]).unwrap(), None);
}

#[test]
fn a_fingerprint_changes_with_a_write() {
    let file = image(b"", 4096);
    let before = Fingerprint::of(file.as_file()).unwrap();
    file.as_file()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    assert_ne!(before, Fingerprint::of(file.as_file()).unwrap());
}
