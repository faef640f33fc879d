//! What the state directory says after a power cut of its disk: what it was told must be
//! there when the call has returned.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bypass_blk::image::dirty_map::{DirtyMap, Distrust, ExtentSize, Identity, Record, Trust};
use bypass_blk::image::replica::promotion::Promotion;
use bypass_blk::image::state_dir::{Entry, StateDir};
use support::power::Disk;
use uuid::Uuid;

const GFID: Uuid = Uuid::from_u128(7);

fn promoted(entry: Option<Entry>) -> Option<Entry> {
    Some(Entry {
        promoted: Some(Promotion {
            at: 1,
            lost: vec![0],
            stamps: vec![77],
        }),
        ..entry?
    })
}

fn served() -> Entry {
    Entry {
        volume: "gv0".to_owned(),
        image: "/a.img".to_owned(),
        gfid: GFID,
        server: "localhost".to_owned(),
        port: 24007,
        brick: "a:/brick".to_owned(),
        extent_size: None,
        settled: false,
        handed_over: false,
        promoted: None,
        verified: None,
    }
}

#[test]
fn what_the_state_directory_was_told_survives_a_power_cut_right_after() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::make(directory.path());
    let state = StateDir::new(&disk.path().join("lib/state"));
    state.create().unwrap();
    state.change("gv0", GFID, |_| Some(served())).unwrap();
    disk.cut();
    assert_eq!(state.entry("gv0", GFID), Some(served()));
    state.change("gv0", GFID, promoted).unwrap();
    disk.cut();
    assert_eq!(state.entry("gv0", GFID), promoted(Some(served())));
}

/// The map at `path`, with what it says of the marks.
fn open(path: &std::path::Path, size: u64) -> (DirtyMap, Trust) {
    let identity = Identity {
        gfid: GFID,
        size,
        extent_size: ExtentSize::new(4096).unwrap(),
        local: "a:/brick".to_owned(),
        peers: vec!["b:/brick".to_owned()],
    };
    DirtyMap::open(path, &identity).unwrap()
}

#[test]
fn a_map_in_the_place_of_one_that_is_not_trusted_survives_a_power_cut_with_what_it_knows() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::make(directory.path());
    let path = disk.path().join("image.map");
    let (map, trust) = open(&path, 1 << 20);
    assert_eq!(trust, Trust::Fresh);
    let unguarded = Record {
        unguarded: true,
        ..map.record()
    };
    map.set_record(unguarded).unwrap();
    drop(map);
    let (map, trust) = open(&path, 2 << 20);
    assert_eq!(trust, Trust::Distrusted(Distrust::Size { found: 1 << 20 }));
    drop(map);
    disk.cut();
    let (map, trust) = open(&path, 2 << 20);
    assert_eq!(trust, Trust::Kept { interrupted: 0 });
    assert!(map.record().unguarded);
    drop(map);
}
