//! An image in several files: the same comes out as for one, whatever lies where.

use super::super::{CopyVerdict, VerifyError};
use super::Rng;
use super::world::{EXTENT, SIZE, World};
use crate::image::dirty_map::{Peer, Peers};
use crate::image::layout::FileIndex;

/// Bytes of an extent where there is no map.
const UNSERVED: u64 = 64 << 10;

/// In one file, and in several of random size.
fn both(world: impl Fn() -> World, rng: &mut Rng) -> [World; 2] {
    let piece = UNSERVED * (1 + rng.below(12));
    [world(), world().cut(piece)]
}

#[test]
fn the_same_differences_are_found_as_in_one_file() {
    for seed in 0..8 {
        let mut rng = Rng(seed);
        let holes = rng.chance(2);
        let damaged: Vec<_> = (0..rng.below(6))
            .map(|_| (1 + rng.below(2) as usize, rng.below(SIZE)))
            .collect();
        let dirty: Vec<_> = (0..rng.below(3))
            .map(|_| rng.below(SIZE / EXTENT))
            .collect();
        for served in [false, true] {
            let world = || match served {
                true => World::served(3, seed),
                false => World::unserved(3, seed),
            };
            let worlds = both(world, &mut rng);
            let reports = worlds.map(|world| {
                if holes {
                    for copy in &mut world.inner().copies {
                        copy.bytes[300 << 10..].fill(0);
                    }
                }
                damaged
                    .iter()
                    .for_each(|(child, at)| world.damage(*child, *at));
                let map = world.inner().map.clone();
                if let Some(map) = map {
                    let one = Peers::from(Peer::new(0).unwrap());
                    dirty
                        .iter()
                        .for_each(|at| map.mark_dirty(one, at * EXTENT, 1));
                }
                world.verify().copies
            });
            assert_eq!(reports[0], reports[1], "seed {seed}, served: {served}");
        }
    }
}

#[test]
fn a_mark_on_any_shard_makes_the_copy_stale_and_the_shard_is_named() {
    let world = World::unserved(3, 5).cut(UNSERVED);
    world.damage(0, 5);
    world.inner().copies[2].marks_on(FileIndex(7))[0] = 1;
    let report = world.verify();
    assert_eq!(report.reference, 1);
    let stale = &report.copies[0];
    assert_eq!((stale.state, stale.behind), (CopyVerdict::Stale, SIZE));
    assert_eq!(stale.why.as_deref(), Some("marked by b2 (on shard 7)"));
    assert!(!report.differs() && !report.is_complete());
}

#[test]
fn copies_that_accuse_each_other_on_different_shards_have_no_reference() {
    let world = World::unserved(2, 7).cut(UNSERVED);
    world.inner().copies[0].marks_on(FileIndex(3))[1] = 1;
    world.inner().copies[1].marks_on(FileIndex(4))[0] = 1;
    let refused = world.try_verify(None);
    let told = "b0 (on shard 3), b1 (on shard 4)";
    assert!(matches!(refused, Err(VerifyError::NoReference { accusers }) if accusers == told));
}

#[test]
fn a_difference_is_explained_by_a_mark_on_its_own_shard_alone() {
    for seed in 0..4 {
        let world = World::unserved(3, seed).cut(UNSERVED);
        {
            let mut inner = world.inner();
            inner.client = true;
            inner.fails_on = Some(2);
        }
        assert!(!world.verify().differs(), "seed {seed}");
        // By one that came after the beginning, on another.
        let world = World::unserved(3, seed).cut(UNSERVED);
        world.damage(2, 5);
        world.inner().late_mark = Some((3, 2, FileIndex(9)));
        let report = world.verify();
        assert_eq!(report.copies[2].differing.ranges, [0..UNSERVED]);
        world.inner().copies[0].pending_on.clear();
        world.inner().copies[1].pending_on.clear();
        world.inner().late_mark = Some((3, 2, FileIndex::BASE));
        assert_eq!(world.verify().copies[2].behind, UNSERVED);
    }
}

#[test]
fn beside_a_guest_a_healer_and_a_client_no_false_difference_is_found() {
    for seed in 0..8 {
        let world = World::served(3, seed).cut(EXTENT * 17);
        {
            let mut inner = world.inner();
            (inner.guest, inner.heals, inner.client) = (true, true, true);
        }
        assert!(!world.verify().differs(), "seed {seed}");
    }
}

#[test]
fn a_shard_of_any_size_is_cut_into_parts_of_its_own() {
    // No multiple of the usual part.
    let world = World::unserved(2, 3).cut(EXTENT * 17);
    world.damage(1, EXTENT * 17);
    let report = world.verify();
    assert_eq!(report.extent_size, EXTENT);
    let differing = EXTENT * 17..EXTENT * 18;
    assert_eq!(report.copies[1].differing.ranges, [differing]);
    assert_eq!(report.copies[1].verified, SIZE - EXTENT);
}

#[test]
fn a_map_whose_extents_lie_in_two_shards_is_not_compared_with() {
    let world = World::served(2, 3).cut(EXTENT + 512);
    let refused = world.try_verify(None);
    assert!(matches!(refused, Err(VerifyError::Extents { .. })));
}
