use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;

/// Opens again with everything as it was.
fn reopen(path: &Path) -> (DirtyMap, Trust) {
    DirtyMap::open(path, &identity()).unwrap()
}

/// Everything counts as dirty, for this reason.
fn assert_distrusted(path: &Path, identity: &Identity, reason: Distrust) {
    let (map, trust) = DirtyMap::open(path, identity).unwrap();
    assert_eq!(trust, Trust::Distrusted(reason));
    for peer in both().iter() {
        assert_eq!(map.dirty_bytes(peer), identity.size);
    }
}

#[test]
fn a_fresh_map_has_everything_dirty_until_told_otherwise() {
    let (_directory, path) = place();
    let (map, trust) = reopen(&path);
    assert_eq!(trust, Trust::Fresh);
    assert_eq!(map.dirty_extents(peer(0)), EXTENTS);
    assert_eq!(map.dirty_extents(peer(1)), EXTENTS);
    assert_eq!(map.extents_in_flight(), 0);
}

#[test]
fn a_map_dropped_without_a_close_is_kept_in_the_same_boot() {
    let (_directory, map) = clean_map();
    let path = map.path().to_owned();
    assert_eq!(map.begin_write(4096, 1), Begun::Yes);
    let _ = map.end_write(4096, 1);
    drop(map);
    let (map, trust) = reopen(&path);
    assert_eq!(trust, Trust::Kept { interrupted: 0 });
    assert_eq!(dirty(&map, peer(0)), [1]);
    assert_eq!(map.header().epoch, 2);
}

#[test]
fn a_closed_map_survives_a_restart_of_the_host_and_an_open_one_does_not() {
    for clean in [true, false] {
        let (_directory, map) = clean_map();
        let path = map.path().to_owned();
        map.mark_dirty(both(), 0, 1);
        let mut header = map.header().clone();
        if clean {
            map.close_clean().unwrap();
            header.clean = true;
        }
        header.boot_id = Uuid::nil();
        map.file().write_all_at(&header.encode(), 0).unwrap();
        drop(map);
        if clean {
            let (map, trust) = reopen(&path);
            assert_eq!(trust, Trust::CleanClose);
            assert_eq!(dirty(&map, peer(0)), [0]);
            drop(map);
            let (_map, trust) = reopen(&path);
            assert_eq!(trust, Trust::Kept { interrupted: 0 }, "in use again");
        } else {
            assert!(matches!(
                DirtyMap::attach(&path),
                Err(MapError::Untrusted { .. })
            ));
            assert_distrusted(&path, &identity(), Distrust::HostRestarted);
        }
    }
}

#[test]
fn a_map_of_something_else_makes_everything_dirty() {
    type Change = fn(&mut Identity);
    let changes: [(Change, Distrust); 4] = [
        (
            |i| i.gfid = Uuid::nil(),
            Distrust::Gfid {
                found: Uuid::from_u128(7),
            },
        ),
        (|i| i.size += 512, Distrust::Size { found: 42 * KIB }),
        (|i| i.local = "z:/brick".into(), Distrust::Local),
        (|i| i.peers.reverse(), Distrust::Peers),
    ];
    for (change, reason) in changes {
        let (_directory, map) = clean_map();
        let path = map.path().to_owned();
        map.close_clean().unwrap();
        drop(map);
        let mut other = identity();
        change(&mut other);
        assert_distrusted(&path, &other, reason);
    }
}

#[test]
fn a_damaged_or_short_file_makes_everything_dirty() {
    type Damage = fn(&fs::File);
    let damage: [(Damage, Distrust); 4] = [
        (|f| f.write_all_at(&[9], 40).unwrap(), Distrust::Checksum),
        (|f| f.write_all_at(b"ELF", 0).unwrap(), Distrust::Magic),
        (|f| f.set_len(0).unwrap(), Distrust::Truncated),
        (|f| f.set_len(4096 + 8).unwrap(), Distrust::Truncated),
    ];
    for (damage, reason) in damage {
        let (_directory, map) = clean_map();
        let path = map.path().to_owned();
        drop(map);
        damage(&fs::File::options().write(true).open(&path).unwrap());
        assert!(matches!(
            DirtyMap::attach(&path),
            Err(MapError::Untrusted { reason: found, .. }) if found == reason
        ));
        assert_distrusted(&path, &identity(), reason);
    }
}

#[test]
fn five_peers_are_refused() {
    let (_directory, path) = place();
    let mut many = identity();
    many.peers = vec!["p".into(); 5];
    assert!(matches!(
        DirtyMap::open(&path, &many),
        Err(MapError::TooManyPeers { peers: 5 })
    ));
}

#[test]
fn a_missing_directory_and_a_missing_map_are_refused_with_the_reason() {
    let (_directory, path) = place();
    assert!(matches!(
        DirtyMap::attach(&path),
        Err(MapError::Missing { .. })
    ));
    let nowhere = path.join("below");
    assert!(matches!(
        DirtyMap::open(&nowhere, &identity()),
        Err(MapError::Unwritable { .. })
    ));
}

#[test]
fn an_image_too_large_for_the_state_directory_is_refused_and_leaves_nothing() {
    let (_directory, path) = place();
    let mut huge = identity();
    // A map of 8 TiB; refused before its blocks are reserved.
    huge.size = 1 << 54;
    let refused = DirtyMap::open(&path, &huge);
    assert!(matches!(refused, Err(MapError::NoSpace { .. })));
    assert!(!path.exists());
}

#[test]
fn a_map_that_is_not_trusted_stands_until_the_one_in_its_place_is_whole() {
    let (_directory, map) = clean_map();
    let path = map.path().to_owned();
    let unguarded = Record {
        unguarded: true,
        ..map.record()
    };
    map.set_record(unguarded).unwrap();
    drop(map);
    let mut larger = identity();
    larger.size = 1 << 54;
    let refused = DirtyMap::open(&path, &larger);
    assert!(matches!(refused, Err(MapError::NoSpace { .. })));
    larger.size = 1 << 20;
    // A process that died over it left a part of one.
    fs::write(path.with_extension("map.new"), [7; 1 << 16]).unwrap();
    let (map, trust) = DirtyMap::open(&path, &larger).unwrap();
    let reason = Distrust::Size { found: 42 * KIB };
    assert_eq!(trust, Trust::Distrusted(reason));
    assert!(map.record().unguarded, "what it said of the marks is lost");
    assert_eq!(map.dirty_bytes(peer(1)), larger.size);
    assert!(!path.with_extension("map.new").exists());
}

#[test]
fn every_block_of_the_file_is_allocated() {
    use std::os::unix::fs::MetadataExt;
    let (_directory, map) = clean_map();
    let file = fs::metadata(map.path()).unwrap();
    assert!(file.blocks() * 512 >= file.len());
}

#[test]
fn one_session_and_one_healer_at_a_time() {
    let (_directory, map) = clean_map();
    let path = map.path().to_owned();
    let second = DirtyMap::open(&path, &identity());
    assert!(matches!(second, Err(MapError::InUse { .. })));
    let map = Arc::new(map);
    let healer = Healer::claim(map.clone()).unwrap();
    let attached = Arc::new(DirtyMap::attach(&path).unwrap());
    assert!(matches!(
        Healer::claim(attached.clone()),
        Err(MapError::InUse { .. })
    ));
    drop(healer);
    assert!(Healer::claim(attached).is_ok());
}

#[test]
fn a_map_is_not_replaced_under_a_healer_nor_healed_once_replaced() {
    let (_directory, map) = clean_map();
    let path = map.path().to_owned();
    drop(map);
    let attached = Arc::new(DirtyMap::attach(&path).unwrap());
    let healer = Healer::claim(attached.clone()).unwrap();
    let mut other = identity();
    other.size += 512;
    assert!(matches!(
        DirtyMap::open(&path, &other),
        Err(MapError::InUse { .. })
    ));
    drop(healer);
    DirtyMap::open(&path, &other).unwrap();
    assert!(matches!(
        Healer::claim(attached),
        Err(MapError::Replaced { .. })
    ));
}

#[test]
fn an_attached_map_sees_and_shares_every_change() {
    let (_directory, map) = clean_map();
    let attached = Arc::new(DirtyMap::attach(map.path()).unwrap());
    assert_eq!(attached.check(&identity()), Ok(()));
    assert_eq!(map.begin_write(0, 1), Begun::Yes);
    assert_eq!(attached.extents_in_flight(), 1, "an attach resets nothing");
    let healer = Healer::claim(attached.clone()).unwrap();
    assert!(!healer.begin_copy(peer(0), 0));
    let _ = map.end_write(0, 1);
    assert!(healer.begin_copy(peer(0), 0));
    assert_eq!(map.begin_write(0, 1), Begun::Yes);
    assert_eq!(healer.end_copy(peer(0), 0), Copied::Again);
    assert!(matches!(
        attached.close_clean(),
        Err(MapError::NotOwner { .. })
    ));
    assert!(matches!(
        map.close_clean(),
        Err(MapError::InFlight { extents: 1, .. })
    ));
    assert_eq!(attached.settle_abandoned().unwrap(), None);
    drop(map);
    assert_eq!(attached.settle_abandoned().unwrap(), Some(1));
    assert!(healer.begin_copy(peer(0), 0));
}

#[test]
fn a_new_healer_forgets_the_copies_of_a_dead_one() {
    let (_directory, map) = clean_map();
    let map = Arc::new(map);
    map.mark_dirty(both(), 0, 1);
    let healer = Healer::claim(map.clone()).unwrap();
    assert!(healer.begin_copy(peer(0), 0));
    drop(healer);
    let healer = Healer::claim(map).unwrap();
    assert_eq!(healer.end_copy(peer(0), 0), Copied::Again);
    assert!(healer.begin_copy(peer(0), 0));
}

const CHILD: &str = "BYPASS_DIRTY_CHILD";

/// Not a test by itself: the daemon that the next test kills.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let (map, _) = reopen(Path::new(&path));
    assert_eq!(map.begin_write(0, 1), Begun::Yes);
    let _ = map.end_write(0, 1);
    assert_eq!(map.begin_write(7 * 4096, 8192), Begun::Yes);
    println!("\nwriting");
    std::thread::park();
}

/// Kills and reaps when the test ends in any way.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn kill_9_loses_no_mark_and_a_healer_works_across_it() {
    let (_directory, map) = clean_map();
    let path = map.path().to_owned();
    drop(map);
    let name = "image::dirty_map::tests::life::child_that_writes_until_it_is_killed";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn();
    let mut child = Killed(child.unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "writing"));

    let attached = Arc::new(DirtyMap::attach(&path).unwrap());
    let healer = Healer::claim(attached).unwrap();
    assert!(healer.begin_copy(peer(0), 0));
    assert_eq!(healer.end_copy(peer(0), 0), Copied::Cleared);
    assert!(!healer.begin_copy(peer(0), 7), "in flight in the child");
    assert!(matches!(
        DirtyMap::open(&path, &identity()),
        Err(MapError::InUse { .. })
    ));
    drop(child);

    let (map, trust) = reopen(&path);
    assert_eq!(trust, Trust::Kept { interrupted: 2 });
    assert_eq!(dirty(&map, peer(0)), [7, 8]);
    assert_eq!(dirty(&map, peer(1)), [0, 7, 8]);
    assert!(
        healer.begin_copy(peer(0), 7),
        "nothing is in flight any more"
    );
}
