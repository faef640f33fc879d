//! What an older map is adopted for, after each way that a session can end.

use super::*;
use crate::image::dirty_map::{ExtentSize, Identity};
use crate::image::replica::brick_set::SetChange;
use crate::image::replica::names::Names;
use crate::image::session::map_place::{MapPlace, prepare_map};

const SHAPE: Shape = Shape {
    bricks: 2,
    local: 0,
    arbiter: None,
    since: SetChange::NONE,
};

fn layout() -> Layout {
    Layout::new(Uuid::from_u128(1), 8192, None)
}

fn identity() -> Identity {
    Identity {
        gfid: Uuid::from_u128(1),
        size: 8192,
        extent_size: ExtentSize::new(4096).unwrap(),
        local: "a:/b".into(),
        peers: vec!["b:/b".into()],
    }
}

/// Neither brick has a mark.
fn adopt(path: &std::path::Path) -> MissedWrites {
    adopt_marked(path, 0)
}

/// Both bricks have this mark against the peer.
fn adopt_marked(path: &std::path::Path, mark: i32) -> MissedWrites {
    adopt_over(path, mark, Arc::default())
}

fn adopt_over(path: &std::path::Path, mark: i32, durability: Arc<Durability>) -> MissedWrites {
    let (map, trust) = DirtyMap::open(path, &identity()).unwrap();
    let copy = CopyState {
        gfid: Uuid::from_u128(1),
        size: 8192,
        pending: vec![0, mark],
        dirty: 0,
        fenced: false,
    };
    let copies = [vec![Some(copy.clone()), Some(copy)]];
    let map = Arc::new(map);
    let session = Uuid::new_v4();
    MissedWrites::adopt(SHAPE, layout(), map, trust, &copies, session, durability).unwrap()
}

/// Its session ends as it should.
fn close(path: &std::path::Path) {
    let (map, _) = DirtyMap::open(path, &identity()).unwrap();
    map.close_clean().unwrap();
}

fn written(path: &std::path::Path, unguarded: bool) {
    let mut debt = adopt(path);
    debt.set_unguarded(unguarded).unwrap();
    assert_eq!(
        debt.map().begin_write(0, 512),
        crate::image::dirty_map::Begun::Yes
    );
    let _ = debt.map().end_write(0, 512);
}

#[test]
fn what_landed_while_every_brick_was_lost_stays_dirty_though_nobody_is_marked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("map");
    written(&path, false);
    close(&path);
    assert!(adopt(&path).behind().is_empty(), "healed by somebody");
    written(&path, true);
    close(&path);
    let mut debt = adopt(&path);
    let peer = Peer::new(0).unwrap();
    assert_eq!(debt.map().dirty_extents(peer), 1);
    assert!(!debt.map().record().suspect.contains(peer));
    debt.set_unguarded(false).unwrap();
    drop(debt);
    close(&path);
    assert!(adopt(&path).behind().is_empty());
}

#[test]
fn what_a_killed_daemon_s_map_calls_dirty_stays_so_though_nobody_is_marked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("map");
    written(&path, false);
    let debt = adopt(&path);
    let peer = Peer::new(0).unwrap();
    assert_eq!(debt.map().dirty_extents(peer), 1, "its locks may be gone");
    assert!(!debt.map().record().suspect.contains(peer));
}

#[test]
fn what_was_in_flight_in_a_killed_daemon_stays_dirty_though_nobody_is_marked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("map");
    let killed = adopt(&path);
    let begun = killed.map().begin_write(4096, 512);
    assert_eq!(begun, crate::image::dirty_map::Begun::Yes);
    drop(killed);
    let peer = Peer::new(0).unwrap();
    let next = adopt(&path);
    assert_eq!(next.map().dirty_extents(peer), 1);
    // It ends before it marks anything: refused, or killed as well.
    next.map().close_clean().unwrap();
    drop(next);
    let mut last = adopt(&path);
    assert_eq!(last.map().dirty_extents(peer), 1);
    last.set_unguarded(false).unwrap();
    last.map().close_clean().unwrap();
    drop(last);
    assert!(adopt(&path).behind().is_empty(), "marks stood meanwhile");
}

#[test]
fn a_map_that_was_made_before_its_session_says_nothing_that_the_marks_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let names = Names {
        volume: "v".into(),
        bricks: vec!["a:/b".into(), "b:/b".into()],
    };
    for (name, mark) in [("clean", 0), ("marked", 7)] {
        let place = MapPlace {
            path: directory.path().join(name),
            extent_size: Some(ExtentSize::new(4096).unwrap()),
        };
        // The second time there is one.
        for _ in 0..2 {
            prepare_map(&place, &SHAPE, &names, &layout()).unwrap();
        }
        let prepared = adopt_marked(&place.path, mark);
        let fresh = adopt_marked(&directory.path().join(format!("{name}-fresh")), mark);
        let seen = [prepared, fresh].map(|debt| {
            let dirty = debt.map().dirty_extents(Peer::new(0).unwrap());
            (dirty, debt.map().record())
        });
        assert_eq!(seen[0], seen[1]);
        assert_eq!(seen[0].0, if mark == 0 { 0 } else { 2 });
    }
    let kept = directory.path().join("written");
    written(&kept, false);
    let place = MapPlace {
        path: kept.clone(),
        extent_size: None,
    };
    prepare_map(&place, &SHAPE, &names, &layout()).unwrap();
    let (map, _) = DirtyMap::open(&kept, &identity()).unwrap();
    assert_eq!(map.dirty_extents(Peer::new(0).unwrap()), 1, "left as it is");
}

#[test]
fn after_a_sync_that_failed_all_of_it_is_compared_whatever_the_marks_say() {
    for killed in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("map");
        let durability = Arc::<Durability>::default();
        let debt = adopt_over(&path, 0, durability.clone());
        durability.fail_with("the guest's flush", libc::EIO);
        match killed {
            true => debt.note_sync_failed().unwrap(),
            false => debt.close().unwrap(),
        }
        drop(debt);
        // Until marks stand: this one is killed before.
        for _ in 0..2 {
            let debt = adopt(&path);
            let peer = Peer::new(0).unwrap();
            assert_eq!(debt.map().dirty_extents(peer), 2);
        }
        let mut debt = adopt(&path);
        debt.set_unguarded(false).unwrap();
        debt.close().unwrap();
        assert!(adopt(&path).behind().is_empty(), "believed again");
    }
}

#[test]
fn after_a_restart_of_the_host_all_of_it_is_compared() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("map");
    written(&path, true);
    let (map, _) = DirtyMap::open(&path, &identity()).unwrap();
    let mut header = map.header().clone();
    (header.boot_id, header.record) = (Uuid::nil(), map.record());
    drop(map);
    let mut bytes = std::fs::read(&path).unwrap();
    let header = header.encode();
    bytes[..header.len()].copy_from_slice(&header);
    std::fs::write(&path, bytes).unwrap();
    let debt = adopt(&path);
    let peer = Peer::new(0).unwrap();
    assert_eq!(debt.map().dirty_extents(peer), 2);
    assert!(debt.map().record().suspect.contains(peer));
}
