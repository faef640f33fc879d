//! An image in several files: each is locked, marked and made durable by itself.

use std::sync::Arc;

use super::super::{HealError, PassEnd};
use super::world::{EXTENT, STAMP, World, the_peer};
use crate::image::dirty_map::Peers;
use crate::image::layout::FileIndex;

/// The same bytes are to be healed in one file and in several.
fn both(seed: u64) -> [World; 2] {
    [World::new(seed), World::cut(seed)]
}

fn dirty(world: &World) -> Vec<u64> {
    let is_dirty = |extent: &u64| world.map.state(*extent).unwrap().is_dirty(the_peer());
    let extents = 0..world.map.geometry().extents();
    extents.filter(is_dirty).collect()
}

#[test]
fn an_image_in_files_of_any_length_is_healed_to_the_same_bytes_as_a_whole_one() {
    for seed in 0..16 {
        for compare in [false, true] {
            let [whole, cut] = both(seed);
            let mut healed = Vec::new();
            for mut world in [whole, cut] {
                world.options.compare_first = Arc::new(compare.into());
                world.finish(world.engine());
                healed.push(world.brick.state().disk.clone());
            }
            assert!(healed[0] == healed[1], "seed {seed}");
        }
    }
}

#[test]
fn nothing_is_sent_of_equal_files_and_a_peer_s_longer_one_becomes_zeros() {
    let mut world = World::cut(5).made_equal();
    world.options.compare_first = Arc::new(true.into());
    let longer = world.disk.layout().range(FileIndex(1));
    world.disk.file(1).set_len(0).unwrap();
    world.brick.state().write(longer.start, &[7; 512]);
    world.map.mark_dirty(Peers::first(1), 0, longer.end);
    world.finish(world.engine());
    assert!(world.brick.state().written.is_empty());
}

#[test]
fn a_file_without_the_session_s_mark_holds_up_no_other() {
    let world = World::cut(11);
    world.map.mark_all_dirty(Peers::first(1));
    let layout = world.disk.layout().clone();
    let unmarked = FileIndex(1);
    world.brick.state().own_marks.insert(unmarked, 0);
    let mut engine = world.engine();
    let error = engine.run_pass().unwrap_err();
    let told = matches!(error, HealError::Unexplained { file, counter: 0, .. } if file == unmarked);
    assert!(told, "{error}");
    assert!(error.to_string().contains("on shard 1"), "{error}");
    let range = layout.range(unmarked);
    let left = range.start / EXTENT..range.end.div_ceil(EXTENT);
    assert_eq!(dirty(&world), left.collect::<Vec<_>>());
    assert!(world.clean_means_equal() && !world.brick.is_locked_by_healer());
    world.brick.state().own_marks.clear();
    assert_eq!(engine.run_pass().unwrap().end, PassEnd::Complete);
    world.finish(engine);
}

#[test]
fn what_a_file_got_before_it_lost_its_mark_counts_for_nothing() {
    let mut world = World::cut_by(3, 10 * EXTENT);
    world.options.window = 2 * EXTENT;
    world.map.mark_all_dirty(Peers::first(1));
    let lost = world.disk.layout().range(FileIndex(1));
    let (brick, within) = (world.brick.clone(), lost.clone());
    // Somebody else heals it after its first stretch, and writes there.
    world.brick.meanwhile(move || {
        let mut state = brick.state();
        let mut written = state.written.iter().chain(&state.zeroed);
        let got = written.any(|range| within.contains(&range.start));
        if got && state.locks.is_empty() && state.own_marks.is_empty() {
            state.own_marks.insert(FileIndex(1), STAMP + 1);
            state.write(within.start, &[9; 512]);
        }
    });
    let mut engine = world.engine();
    assert!(matches!(
        engine.run_pass(),
        Err(HealError::Unexplained { .. })
    ));
    assert_eq!(dirty(&world), (10..20).collect::<Vec<_>>());
    world.brick.state().own_marks.clear();
    world.brick.meanwhile(|| {});
    world.finish(engine);
}

#[test]
fn only_files_that_were_copied_to_are_made_durable() {
    let world = World::cut_by(8, 4 * EXTENT).made_equal();
    let mut engine = world.engine();
    engine.run_pass().unwrap();
    world.write(5 * EXTENT, &[1; 512]);
    world.write(9 * EXTENT, &[2; 512]);
    engine.run_pass().unwrap();
    let synced = world.brick.state().synced.clone();
    assert_eq!(synced, [FileIndex::BASE, FileIndex(1), FileIndex(2)]);
    world.finish(engine);
}
