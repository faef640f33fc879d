//! What is kept of images, by several at one time, and what garbage does to it.

use super::*;

fn entry(image: &str) -> Entry {
    Entry {
        extent_size: Some(65536),
        ..Entry::example("gv0", image, Uuid::new_v4())
    }
}

fn store(state: &StateDir, entry: &Entry) {
    let entry = entry.clone();
    let (volume, gfid) = (entry.volume.clone(), entry.gfid);
    state.change(&volume, gfid, |_| Some(entry)).unwrap();
}

#[test]
fn what_is_kept_is_found_again_and_garbage_beside_it_is_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::new(&directory.path().join("deep/state"));
    assert_eq!(state.entries().unwrap(), []);
    state.create().unwrap();
    let entries = [entry("/a"), entry("/b")];
    entries.iter().rev().for_each(|e| store(&state, e));
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
fn what_several_change_at_one_time_has_all_of_their_changes() {
    const TIMES: i32 = 20;
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::new(directory.path());
    let first = entry("/a");
    store(&state, &first);
    let (volume, gfid) = (first.volume.as_str(), first.gfid);
    let add = |stamp: i32| {
        state.change(volume, gfid, |entry| {
            let mut entry = entry?;
            let promoted = entry.promoted.get_or_insert(Promotion {
                at: 0,
                lost: Vec::new(),
                stamps: Vec::new(),
            });
            promoted.stamps.push(stamp);
            Some(entry)
        })
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || (0..TIMES).for_each(|n| add(thread * TIMES + n).unwrap()));
        }
        // Others look meanwhile, and never find half of it.
        scope.spawn(|| {
            for _ in 0..TIMES {
                assert!(state.entry(volume, gfid).is_some());
            }
        });
    });
    let mut stamps = state.entry(volume, gfid).unwrap().promoted.unwrap().stamps;
    stamps.sort_unstable();
    assert_eq!(stamps, (0..4 * TIMES).collect::<Vec<_>>());
}

#[test]
fn of_an_image_that_is_forgotten_nothing_is_left_and_of_others_everything() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::new(directory.path());
    let (gone, stays) = (entry("/a"), entry("/b"));
    for one in [&gone, &stays] {
        store(&state, one);
        state.keep_write_through("gv0", one.gfid, true).unwrap();
        std::fs::write(state.map("gv0", one.gfid), b"words").unwrap();
    }
    let files = || std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(files(), 8);
    state.forget("gv0", gone.gfid).unwrap();
    assert_eq!(files(), 4);
    assert_eq!(state.entries().unwrap(), [stays]);
    state.forget("gv0", gone.gfid).unwrap();
    // It may be known again.
    store(&state, &gone);
    assert_eq!(state.entry("gv0", gone.gfid), Some(gone));
}

#[test]
fn what_cannot_be_read_is_not_replaced_by_what_forgets_it() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::new(directory.path());
    let one = entry("/a");
    // A name that leads to nothing readable: ELOOP.
    let path = state.document("gv0", one.gfid);
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let changed = state.change("gv0", one.gfid, |_| Some(one.clone()));
    assert!(changed.unwrap_err().to_string().contains("cannot read"));
    assert!(path.is_symlink());
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
    store(&state, &entry);
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
