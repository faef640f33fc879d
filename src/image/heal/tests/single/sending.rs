//! What is sent and what is not: written extents, holes, zeros, equal bytes, copies of another size.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::super::{Figures, HealError, PassEnd};
use super::super::world::{EXTENT, SIZE, World};
use super::full_of;
use crate::image::dirty_map::{Begun, Peers};

#[test]
fn sends_the_extents_that_were_written_and_no_others() {
    let world = World::healed(1);
    let mut engine = world.engine();
    world.write(5 * EXTENT + 512, &[1; 512]);
    world.write(9 * EXTENT - 512, &[2; 1024]);
    world.write(39 * EXTENT, &[3; 512]);
    let pass = engine.run_pass().unwrap();
    assert_eq!((pass.end, pass.cleared), (PassEnd::Complete, 4));
    assert_eq!(
        world.brick.state().written,
        [
            5 * EXTENT..6 * EXTENT,
            8 * EXTENT..10 * EXTENT,
            39 * EXTENT..SIZE
        ]
    );
    assert_eq!(
        world.options.progress.figures(),
        Figures {
            bytes_read: 3 * EXTENT + 512,
            bytes_sent: 3 * EXTENT + 512,
            extents_cleared: 4,
            ..Figures::default()
        }
    );
    world.finish(engine);
}

#[test]
fn what_is_a_hole_on_both_sides_is_neither_read_nor_compared() {
    for compare in [true, false] {
        let world = World::new(8);
        world
            .options
            .compare_first
            .store(compare, Ordering::Relaxed);
        // Data in one stretch, and nothing behind.
        let data = vec![7; 8 * EXTENT as usize];
        world.file().set_len(0).unwrap();
        world.file().set_len(SIZE).unwrap();
        world.write(0, &data);
        world.map.mark_all_dirty(Peers::first(1));
        {
            let mut brick = world.brick.state();
            brick.cache.fill(0);
            brick.cache[..data.len()].copy_from_slice(&data);
            brick.disk = brick.cache.clone();
        }
        let mut engine = world.engine();
        engine.run_pass().unwrap();
        assert_eq!(world.debt(), 0);
        let read = world.options.progress.figures().bytes_read;
        assert_eq!(read, 8 * EXTENT);
        let brick = world.brick.state();
        assert!(brick.zeroed.is_empty() && brick.compared <= 8 * EXTENT);
        assert_eq!(brick.disk, world.local());
    }
}

#[test]
fn a_write_into_a_hole_while_it_is_looked_at_is_sent() {
    let world = World::new(9);
    world.file().set_len(0).unwrap();
    world.file().set_len(SIZE).unwrap();
    world.brick.state().cache.fill(0);
    let (map, file, brick) = (world.map.clone(), world.file(), world.brick.clone());
    let mut written = false;
    // As soon as the healer has the lock, and again when it lets it go.
    world.brick.meanwhile(move || {
        if !written && !brick.state().locks.is_empty() {
            written = true;
            assert_eq!(map.begin_write(9 * EXTENT, 512), Begun::Yes);
            std::os::unix::fs::FileExt::write_all_at(&file, &[5; 512], 9 * EXTENT).unwrap();
            let _ = map.end_write(9 * EXTENT, 512);
        }
    });
    world.finish(world.engine());
}

#[test]
fn zeros_become_holes_and_are_not_sent() {
    let world = World::healed(2);
    world.write(0, &full_of(1));
    world.write(3 * EXTENT, &[0; 2 * EXTENT as usize]);
    let mut engine = world.engine();
    engine.run_pass().unwrap();
    let zeroed = world.brick.state().zeroed.clone();
    assert_eq!((zeroed.len(), &zeroed[0]), (1, &(3 * EXTENT..5 * EXTENT)));
    assert_eq!(world.options.progress.figures().bytes_zeroed, 2 * EXTENT);
    assert_eq!(
        world.options.progress.figures().bytes_sent,
        SIZE - 2 * EXTENT
    );
    world.finish(engine);
}

#[test]
fn comparing_first_sends_only_what_differs() {
    let mut world = World::healed(3);
    world.map.mark_all_dirty(Peers::first(1));
    world.write(7 * EXTENT, &[7; 512]);
    world.options.compare_first = Arc::new(true.into());
    let mut engine = world.engine();
    engine.run_pass().unwrap();
    let figures = world.options.progress.figures();
    assert_eq!(figures.bytes_sent + figures.bytes_zeroed, EXTENT);
    assert_eq!(figures.bytes_compared, SIZE);
    assert_eq!(figures.extents_cleared, 40);
    world.finish(engine);
}

#[test]
fn a_window_limits_what_is_on_its_way() {
    let world = World::new(4);
    let mut engine = world.engine();
    engine.run_pass().unwrap();
    let most = world.brick.state().most_unanswered;
    assert!(most <= world.options.window, "{most}");
    assert!(most > EXTENT, "no pipelining");
}

#[test]
fn a_copy_of_another_size_is_made_equal() {
    for size in [0, 10 * EXTENT, 2 * SIZE] {
        let world = World::healed(9);
        {
            let mut brick = world.brick.state();
            brick.cache.resize(size as usize, 5);
            brick.disk.resize(size as usize, 5);
        }
        world.finish(world.engine());
    }
}

#[test]
fn a_local_copy_of_another_size_than_the_map_s_is_not_copied() {
    let world = World::new(10);
    world.file().set_len(SIZE + 512).unwrap();
    let error = world.engine().run_pass().unwrap_err();
    assert!(matches!(error, HealError::Size { .. }));
    assert!(world.brick.state().written.is_empty());
}

#[test]
fn scattered_extents_are_sent_together() {
    let mut world = World::healed(19);
    world.options.window = SIZE;
    (0..40)
        .step_by(2)
        .for_each(|extent| world.write(extent * EXTENT, &[1; 512]));
    let mut engine = world.engine();
    let calls = world.brick.state().calls;
    engine.run_pass().unwrap();
    let (brick, written) = (world.brick.state(), 20);
    assert_eq!((brick.written.len(), brick.batches), (written, 1));
    // Each write and its answer; beside them lock, mark, unlock and FSYNC, twice for
    // the look at the size.
    let others = brick.calls - calls - 2 * written as u64;
    assert!(others <= 9, "{others} calls besides the writes");
    drop(brick);
    world.finish(engine);
}

#[test]
fn a_copy_that_becomes_suspect_gets_the_right_size_over_the_same_connection() {
    let world = World::healed(5);
    let mut engine = world.engine();
    world.write(0, &[1; 512]);
    engine.run_pass().unwrap();
    world.brick.state().cache.extend([9; 512]);
    world.map.mark_all_dirty(Peers::first(1));
    world.options.compare_first.store(true, Ordering::Relaxed);
    engine.run_pass().unwrap();
    assert_eq!(world.brick.state().cache.len() as u64, SIZE);
    world.finish(engine);
}
