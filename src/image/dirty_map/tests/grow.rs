use super::*;

/// The map of the same image with so many bytes, in extents of this size.
fn grown(map: &DirtyMap, size: u64, extent_size: u32, lacking: Peers) -> DirtyMap {
    let extent_size = ExtentSize::new(extent_size).unwrap();
    let draft = map.draft(size, extent_size).unwrap();
    draft.finish(map, lacking).unwrap()
}

/// Of the same image, larger.
fn larger(size: u64, extent_size: u32) -> Identity {
    Identity {
        size,
        extent_size: ExtentSize::new(extent_size).unwrap(),
        ..identity()
    }
}

#[test]
fn a_larger_map_knows_the_debt_of_the_smaller_and_finds_the_rest_clean() {
    let (_directory, map) = clean_map();
    map.mark_dirty(peer(0).into(), 0, 1);
    map.mark_dirty(both(), 40 * KIB, 1);
    let record = Record {
        stamp: 5,
        suspect: peer(1).into(),
        ..map.record()
    };
    map.set_record(record).unwrap();
    let new = grown(&map, 80 * KIB, 4096, Peers::NONE);
    assert_eq!(new.geometry().size(), 80 * KIB);
    assert_eq!(dirty(&new, peer(0)), [0, 10]);
    assert_eq!(dirty(&new, peer(1)), [10]);
    assert_eq!(new.record(), record);
    // It is the one that the next session finds.
    let path = map.path().to_owned();
    assert!(map.is_replaced().unwrap() && !new.is_replaced().unwrap());
    drop((map, new));
    let (again, trust) = DirtyMap::open(&path, &larger(80 * KIB, 4096)).unwrap();
    assert_eq!(trust, Trust::Kept { interrupted: 0 });
    assert_eq!(dirty(&again, peer(0)), [0, 10]);
}

#[test]
fn what_lies_behind_the_last_extent_of_a_map_is_no_debt_of_a_larger_one() {
    // A new map is dirty in all lanes of its last word, whether they count or not.
    let (_directory, path) = place();
    let (map, _) = DirtyMap::open(&path, &identity()).unwrap();
    map.declare_clean(both());
    let new = grown(&map, 64 * KIB, 4096, Peers::NONE);
    assert!(dirty(&new, peer(0)).is_empty());
}

#[test]
fn a_peer_that_was_not_grown_misses_the_new_area_from_the_old_end_on() {
    let (_directory, map) = clean_map();
    let new = grown(&map, 50 * KIB, 4096, peer(1).into());
    assert!(dirty(&new, peer(0)).is_empty());
    assert_eq!(dirty(&new, peer(1)), [10, 11, 12]);
}

#[test]
fn coarser_extents_hold_what_the_finer_ones_held() {
    let (_directory, map) = clean_map();
    map.mark_dirty(peer(0).into(), 9 * KIB, 1);
    map.mark_dirty(peer(1).into(), 41 * KIB, 1);
    let new = grown(&map, 100 * KIB, 8192, Peers::NONE);
    assert_eq!(dirty(&new, peer(0)), [1]);
    assert_eq!(dirty(&new, peer(1)), [5]);
}

#[test]
fn a_write_in_flight_or_a_draft_left_alone_leaves_the_old_map_in_force() {
    let (_directory, map) = clean_map();
    let extent_size = ExtentSize::new(4096).unwrap();
    let draft = map.draft(80 * KIB, extent_size).unwrap();
    assert_eq!(map.begin_write(0, 1), Begun::Yes);
    let refused = draft.finish(&map, Peers::NONE);
    assert!(matches!(
        refused,
        Err(MapError::InFlight { extents: 1, .. })
    ));
    let _ = map.end_write(0, 1);
    drop(map.draft(80 * KIB, extent_size).unwrap());
    assert!(!map.is_replaced().unwrap());
    let path = map.path().to_owned();
    drop(map);
    let (map, trust) = DirtyMap::open(&path, &identity()).unwrap();
    assert_eq!(trust, Trust::Kept { interrupted: 0 });
    assert_eq!(dirty(&map, peer(0)), [0]);
    // The next one is not in the way of what is left.
    grown(&map, 80 * KIB, 4096, Peers::NONE);
}

#[test]
fn no_healer_begins_on_a_map_that_is_about_to_be_replaced() {
    let (_directory, map) = clean_map();
    let alone = map.keep_healers_out().unwrap();
    let attached = std::sync::Arc::new(DirtyMap::attach(map.path()).unwrap());
    let refused = Healer::claim(attached.clone());
    assert!(matches!(refused, Err(MapError::InUse { .. })));
    let _new = grown(&map, 80 * KIB, 4096, Peers::NONE);
    drop(alone);
    let refused = Healer::claim(attached);
    assert!(matches!(refused, Err(MapError::Replaced { .. })));
}
