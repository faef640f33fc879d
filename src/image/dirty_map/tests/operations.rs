use std::sync::Arc;

use proptest::prelude::*;

use super::*;

#[test]
fn a_write_makes_every_extent_it_touches_dirty_for_every_peer() {
    let (_directory, map) = clean_map();
    assert_eq!(map.begin_write(4095, 4098), Begun::Yes);
    assert_eq!(map.extents_in_flight(), 3);
    assert_eq!(map.end_write(4095, 4098), Ended::Quietly);
    assert_eq!(map.extents_in_flight(), 0);
    for peer in both().iter() {
        assert_eq!(dirty(&map, peer), [0, 1, 2]);
        assert_eq!(map.dirty_bytes(peer), 3 * 4096);
    }
}

#[test]
fn the_last_extent_counts_only_the_bytes_the_image_has() {
    let (_directory, map) = clean_map();
    map.mark_dirty(peer(1).into(), 41 * KIB, u64::MAX);
    assert_eq!(dirty(&map, peer(1)), [10]);
    assert_eq!(map.dirty_bytes(peer(1)), 2 * KIB);
    assert_eq!(map.dirty_bytes(peer(0)), 0);
    map.mark_all_dirty(both());
    assert_eq!(map.dirty_bytes(peer(0)), 42 * KIB);
    assert_eq!(map.dirty_extents(peer(0)), EXTENTS);
}

#[test]
fn a_write_behind_the_image_begins_nothing() {
    let (_directory, map) = clean_map();
    assert_eq!(map.begin_write(42 * KIB, 1), Begun::Outside);
    assert_eq!(map.begin_write(u64::MAX, u64::MAX), Begun::Outside);
    assert_eq!(map.end_write(u64::MAX, u64::MAX), Ended::Quietly);
    assert_eq!(map.begin_write(0, 0), Begun::Yes);
    assert_eq!(map.extents_in_flight(), 0);
    assert_eq!(map.dirty_extents(peer(0)), 0);
}

#[test]
fn a_full_extent_refuses_the_whole_write_and_says_when_to_ask_again() {
    let (_directory, map) = clean_map();
    for _ in 0..255 {
        assert_eq!(map.begin_write(2 * 4096, 1), Begun::Yes);
    }
    assert_eq!(map.begin_write(0, 4 * 4096), Begun::Full);
    assert_eq!(
        map.extents_in_flight(),
        1,
        "rolled back before the full one"
    );
    assert_eq!(map.end_write(2 * 4096, 1), Ended::RoomAgain);
    assert_eq!(map.end_write(2 * 4096, 1), Ended::Quietly);
    assert_eq!(map.begin_write(0, 4 * 4096), Begun::Yes);
    assert_eq!(map.extents_in_flight(), 4);
}

#[test]
fn an_end_that_was_never_begun_takes_nothing_from_the_neighbours() {
    let (_directory, map) = clean_map();
    assert_eq!(map.begin_write(0, 1), Begun::Yes);
    let _ = map.end_write(4096, 1);
    assert_eq!(map.state(0).unwrap().in_flight(), 1);
    assert_eq!(map.state(1).unwrap().in_flight(), 0);
    assert!(map.state(1).unwrap().is_dirty(peer(0)), "dirty is safe");
}

#[test]
fn a_copy_counts_only_without_a_write_since_it_began() {
    let (_directory, map) = clean_map();
    let healer = Healer::claim(Arc::new(map)).unwrap();
    let map = healer.map();
    assert!(!healer.begin_copy(peer(0), 3), "nothing to copy");
    assert_eq!(map.begin_write(3 * 4096, 1), Begun::Yes);
    assert!(!healer.begin_copy(peer(0), 3), "a write is in flight");
    let _ = map.end_write(3 * 4096, 1);
    assert!(healer.begin_copy(peer(0), 3));
    assert!(!healer.begin_copy(peer(0), 3), "being copied already");
    assert_eq!(map.begin_write(3 * 4096, 1), Begun::Yes);
    let _ = map.end_write(3 * 4096, 1);
    assert_eq!(healer.end_copy(peer(0), 3), Copied::Again);
    assert!(healer.begin_copy(peer(0), 3));
    assert_eq!(healer.end_copy(peer(0), 3), Copied::Cleared);
    assert_eq!(dirty(map, peer(0)), [0; 0]);
    assert_eq!(dirty(map, peer(1)), [3], "the other peer still misses it");
}

#[test]
fn an_abandoned_copy_or_a_new_mark_leaves_the_extent_dirty() {
    let (_directory, map) = clean_map();
    let healer = Healer::claim(Arc::new(map)).unwrap();
    healer.map().mark_dirty(both(), 0, 1);
    assert!(healer.begin_copy(peer(0), 0));
    healer.abandon_copy(peer(0), 0);
    assert_eq!(healer.end_copy(peer(0), 0), Copied::Again);
    assert!(healer.begin_copy(peer(0), 0));
    healer.map().mark_dirty(both(), 0, 1);
    assert_eq!(healer.end_copy(peer(0), 0), Copied::Again);
    assert_eq!(dirty(healer.map(), peer(0)), [0]);
}

#[test]
fn declaring_a_peer_clean_spares_writes_in_flight_and_other_peers() {
    let (_directory, map) = clean_map();
    map.mark_all_dirty(both());
    assert_eq!(map.begin_write(5 * 4096, 1), Begun::Yes);
    map.declare_clean(peer(0).into());
    assert_eq!(dirty(&map, peer(0)), [5]);
    assert_eq!(map.dirty_extents(peer(1)), EXTENTS);
}

#[derive(Clone, Debug)]
enum Op {
    Begin(u64, u64),
    /// Ends one of the writes in flight.
    End(prop::sample::Index),
    BeginCopy(usize, u64),
    EndCopy(usize, u64),
    Abandon(usize, u64),
    Mark(usize, u64, u64),
    DeclareClean(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let range = (0..44 * KIB, 0..10 * KIB);
    // Large enough for whole words of extents.
    let large = (0..44 * KIB, 0..44 * KIB);
    let copy = (0..2usize, 0..EXTENTS + 1);
    prop_oneof![
        4 => range.prop_map(|(at, len)| Op::Begin(at, len)),
        4 => any::<prop::sample::Index>().prop_map(Op::End),
        3 => copy.clone().prop_map(|(p, e)| Op::BeginCopy(p, e)),
        3 => copy.clone().prop_map(|(p, e)| Op::EndCopy(p, e)),
        1 => copy.prop_map(|(p, e)| Op::Abandon(p, e)),
        1 => (0..2usize, large).prop_map(|(p, (at, len))| Op::Mark(p, at, len)),
        1 => (0..2usize).prop_map(Op::DeclareClean),
    ]
}

/// What the map should say, an extent and peer at a time.
#[derive(Clone, Default)]
struct Model {
    in_flight: u32,
    dirty: [bool; 2],
    copying: [bool; 2],
}

/// The extents that a range has bytes in, as far as the image reaches.
fn touched(at: u64, len: u64) -> impl Iterator<Item = usize> {
    let (first, end) = (at, (at + len).min(42 * KIB));
    (0..EXTENTS)
        .filter(move |e| first < end && e * 4096 < end && first < (e + 1) * 4096)
        .map(|e| e as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_order_of_operations_leaves_what_a_simple_model_says(
        ops in proptest::collection::vec(op(), 0..120),
    ) {
        let (_directory, map) = clean_map();
        let healer = Healer::claim(Arc::new(map)).unwrap();
        let map = healer.map();
        let mut model = vec![Model::default(); EXTENTS as usize];
        let mut writes = Vec::new();
        for op in ops {
            match op {
                Op::Begin(at, len) if at + len > 42 * KIB => {
                    prop_assert_eq!(map.begin_write(at, len), Begun::Outside);
                }
                Op::Begin(at, len) => {
                    prop_assert_eq!(map.begin_write(at, len), Begun::Yes);
                    writes.push((at, len));
                    for e in touched(at, len) {
                        model[e].in_flight += 1;
                        model[e].dirty = [true; 2];
                        model[e].copying = [false; 2];
                    }
                }
                Op::End(_) if writes.is_empty() => {}
                Op::End(index) => {
                    let (at, len) = writes.swap_remove(index.index(writes.len()));
                    prop_assert_eq!(map.end_write(at, len), Ended::Quietly);
                    touched(at, len).for_each(|e| model[e].in_flight -= 1);
                }
                Op::BeginCopy(p, e) => {
                    let may = model.get_mut(e as usize).is_some_and(|m| {
                        let may = m.in_flight == 0 && m.dirty[p] && !m.copying[p];
                        m.copying[p] |= may;
                        may
                    });
                    prop_assert_eq!(healer.begin_copy(peer(p), e), may);
                }
                Op::EndCopy(p, e) => {
                    let cleared = model.get_mut(e as usize).is_some_and(|m| {
                        let cleared = std::mem::take(&mut m.copying[p]);
                        m.dirty[p] &= !cleared;
                        cleared
                    });
                    let is_cleared = healer.end_copy(peer(p), e) == Copied::Cleared;
                    prop_assert_eq!(is_cleared, cleared);
                }
                Op::Abandon(p, e) => {
                    healer.abandon_copy(peer(p), e);
                    model.get_mut(e as usize).into_iter().for_each(|m| m.copying[p] = false);
                }
                Op::Mark(p, at, len) => {
                    map.mark_dirty(peer(p).into(), at, len);
                    for e in touched(at, len) {
                        model[e].dirty[p] = true;
                        model[e].copying[p] = false;
                    }
                }
                Op::DeclareClean(p) => {
                    map.declare_clean(peer(p).into());
                    for m in model.iter_mut().filter(|m| m.in_flight == 0) {
                        m.dirty[p] = false;
                        m.copying[p] = false;
                    }
                }
            }
            for (e, m) in model.iter().enumerate() {
                let state = map.state(e as u64).unwrap();
                prop_assert_eq!(u32::from(state.in_flight()), m.in_flight);
                prop_assert!(m.in_flight == 0 || m.dirty == [true; 2]);
                for p in 0..2 {
                    prop_assert_eq!(state.is_dirty(peer(p)), m.dirty[p]);
                    prop_assert_eq!(state.is_copying(peer(p)), m.copying[p]);
                }
            }
            for p in 0..2 {
                let expected = (0..EXTENTS).filter(|&e| model[e as usize].dirty[p]);
                prop_assert_eq!(dirty(map, peer(p)), expected.collect::<Vec<_>>());
                prop_assert_eq!(map.dirty_extents(peer(p)), dirty(map, peer(p)).len() as u64);
                let behind = model.iter().any(|m| m.dirty[p]);
                prop_assert_eq!(map.behind().contains(peer(p)), behind);
            }
        }
    }
}
