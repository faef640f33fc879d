//! One behaviour of the healer at a time.

use crate::image::scheduler::clock::Clock;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::image::dirty_map::{Begun, DirtyMap, MapError, Peers, Record};

use super::super::{Figures, HealError, Obstacle, PassEnd};
use super::CLIENT;
use super::brick::{Call, Fault};
use super::world::{EXTENT, SIZE, STAMP, World, the_peer};

/// No zero extent among them.
fn full_of(byte: u8) -> Vec<u8> {
    vec![byte; SIZE as usize]
}

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
fn nothing_is_copied_to_a_peer_that_does_not_carry_the_session_s_mark() {
    let world = World::healed(3);
    world.write(0, &full_of(1));
    let mut engine = world.engine();
    for counter in [0, STAMP + 1] {
        world.brick.state().own_mark = counter;
        let error = engine.run_pass().unwrap_err();
        assert!(matches!(error, HealError::Unexplained { counter: found, .. } if found == counter));
        assert_eq!(error.obstacle(), Obstacle::Mark);
        assert!(!world.brick.is_locked_by_healer());
    }
    assert!(world.brick.state().written.is_empty());
    world.brick.state().own_mark = STAMP;
    assert_eq!(engine.run_pass().unwrap().end, PassEnd::Complete);
    world.finish(engine);
}

#[test]
fn a_mark_that_goes_in_the_middle_of_a_pass_ends_it() {
    let world = World::healed(3);
    world.write(0, &full_of(1));
    let mut engine = world.engine();
    let brick = world.brick.clone();
    // Somebody else heals the peer after the first stretch.
    world.brick.meanwhile(move || {
        let mut state = brick.state();
        if !state.written.is_empty() && state.locks.is_empty() {
            state.own_mark = 0;
        }
    });
    let error = engine.run_pass().unwrap_err();
    assert!(matches!(error, HealError::Unexplained { .. }));
    let written = world.brick.state().written.clone();
    assert!(written.iter().all(|range| range.end <= 8 * EXTENT));
    assert!(world.map.dirty_extents(the_peer()) >= 32);
}

#[test]
fn a_healer_that_came_before_the_session_s_first_mark_knows_it_afterwards() {
    let world = World::healed(4);
    let map = Arc::new(DirtyMap::attach(world.map.path()).unwrap());
    let record = Record {
        stamp: STAMP + 1,
        previous: STAMP,
        ..Record::default()
    };
    world.map.set_record(record).unwrap();
    assert_eq!(map.record().stamp, STAMP);
    assert_eq!(map.read_record().unwrap(), record);
    assert_eq!(map.record(), record);
    std::fs::write(world.map.path(), [0; 4096]).unwrap();
    assert!(matches!(map.read_record(), Err(MapError::Untrusted { .. })));
}

#[test]
fn what_a_peer_accepted_before_it_refused_is_not_sent_again() {
    let world = World::healed(5);
    world.write(0, &full_of(1));
    let mut engine = world.engine();
    // In the third of the stretches, each of 8 extents and one write.
    world.brick.state().fault = Some((Call::Write, 2, Fault::Refuse));
    let error = engine.run_pass().unwrap_err();
    assert!(error.is_refusal() && engine.is_usable());
    assert_eq!(world.debt(), 40 - 16);
    assert_eq!(world.options.progress.figures().extents_cleared, 16);
    assert!(world.clean_means_equal());
    let sent = world.brick.state().written.len();
    engine.run_pass().unwrap();
    assert!(
        world.brick.state().written[sent..]
            .iter()
            .all(|range| range.start >= 16 * EXTENT)
    );
    world.finish(engine);
}

#[test]
fn what_a_failed_fsync_may_have_lost_is_not_cleared_by_the_next_one() {
    let world = World::healed(6);
    world.write(0, &full_of(1));
    let mut engine = world.engine();
    world.brick.state().fault = Some((Call::Fsync, 0, Fault::Refuse));
    assert!(engine.run_pass().unwrap_err().is_refusal());
    assert_eq!(world.debt(), 40);
    assert_eq!(world.brick.state().fsyncs, 0, "it was asked again");
    world.finish(engine);
}

#[test]
fn a_slow_pass_clears_what_it_sent_about_once_a_second() {
    let world = World::healed(7);
    world.write(0, &full_of(1));
    // 40 extents in 10 seconds.
    world.options.throttle.set_rate(4 * EXTENT);
    let mut engine = world.engine();
    let (map, brick) = (world.map.clone(), world.brick.clone());
    let most = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seen = most.clone();
    world.brick.meanwhile(move || {
        let sent = brick.state().written.len() as u64;
        let cleared = 40 - map.dirty_extents(the_peer());
        seen.fetch_max(sent.saturating_sub(cleared), Ordering::Relaxed);
    });
    engine.run_pass().unwrap();
    let most = most.load(Ordering::Relaxed);
    assert!(
        (1..=8).contains(&most),
        "{most} extents were sent and not cleared"
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
fn an_extent_with_a_write_in_flight_is_tried_again_before_the_pass_ends() {
    let world = World::healed(15);
    world.write(9 * EXTENT, &[1; 512]);
    assert_eq!(world.map.begin_write(3 * EXTENT, 512), Begun::Yes);
    let mut engine = world.engine();
    let map = world.map.clone();
    let (brick, mut ended) = (world.brick.clone(), false);
    world.brick.meanwhile(move || {
        // The other extent is on its way: the map was looked through once.
        if !ended && !brick.state().written.is_empty() {
            let _ = map.end_write(3 * EXTENT, 512);
            ended = true;
        }
    });
    let pass = engine.run_pass().unwrap();
    assert_eq!((pass.cleared, pass.in_flight), (2, 0));
    assert!(pass.covered);
    world.finish(engine);
}

#[test]
fn what_has_writes_in_flight_all_the_time_is_sent_and_stays_dirty() {
    let world = World::healed(16);
    world.write(3 * EXTENT, &[7; 1024]);
    assert_eq!(world.map.begin_write(3 * EXTENT, 512), Begun::Yes);
    let mut engine = world.engine();
    let pass = engine.run_pass().unwrap();
    assert_eq!((pass.cleared, pass.in_flight), (0, 1));
    assert!(pass.covered);
    assert_eq!(world.debt(), 1);
    let at = 3 * EXTENT as usize;
    assert_eq!(world.brick.state().disk[at..at + 1024], [7; 1024]);
    let _ = world.map.end_write(3 * EXTENT, 512);
    world.finish(engine);
}

#[test]
fn a_pass_that_ends_early_covers_nothing() {
    let world = World::new(17);
    assert!(world.brick.lock(CLIENT, &(0..512)));
    assert!(!world.engine().run_pass().unwrap().covered);
    world.brick.unlock(CLIENT, &(0..512));
    world.options.stop.store(true, Ordering::Relaxed);
    assert!(!world.engine().run_pass().unwrap().covered);
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
fn a_healer_killed_before_the_fsync_leaves_everything_dirty() {
    let world = World::new(6);
    let mut engine = world.engine();
    world.brick.state().fault = Some((Call::Fsync, 0, Fault::HealerDies));
    assert!(catch_unwind(AssertUnwindSafe(|| engine.run_pass())).is_err());
    drop(engine);
    world.brick.state().power_cut();
    let engine = world.engine();
    assert_eq!(world.debt(), 40);
    world.finish(engine);
}

#[test]
fn a_connection_that_broke_is_not_used_again() {
    let world = World::new(7);
    let mut engine = world.engine();
    world.brick.state().fault = Some((Call::Write, 3, Fault::LostLink));
    assert!(engine.run_pass().unwrap_err().lost_peer());
    assert_eq!(world.debt(), 40);
    assert!(matches!(engine.run_pass(), Err(HealError::Broken { .. })));
    assert!(!engine.is_usable());
    drop(engine);
    world.finish(world.engine());
}

#[test]
fn a_refusal_leaves_dirty_what_it_hit_and_nothing_on_its_way() {
    for (call, nth) in [(Call::Write, 3), (Call::Fsync, 0)] {
        let world = World::new(8);
        let mut engine = world.engine();
        world.brick.state().fault = Some((call, nth, Fault::Refuse));
        let error = engine.run_pass().unwrap_err();
        assert!(!error.lost_peer());
        assert_eq!(world.debt(), 40);
        let brick = world.brick.state();
        assert!(brick.is_idle() && brick.locks.is_empty());
        drop(brick);
        world.finish(engine);
    }
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
fn a_lock_that_another_client_keeps_ends_the_pass() {
    let world = World::new(11);
    let mut engine = world.engine();
    engine.run_pass().unwrap();
    world.write(0, &[1; 512]);
    assert!(world.brick.lock(CLIENT, &(0..512)));
    let before = world.brick.state().written.len();
    assert_eq!(engine.run_pass().unwrap().end, PassEnd::Locked);
    assert_eq!(world.brick.state().written.len(), before);
    assert_eq!(world.debt(), 1);
    // The request in the brick's queue goes with the connection.
    assert!(!engine.is_usable());
    drop(engine);
    world.brick.unlock(CLIENT, &(0..512));
    world.finish(world.engine());
}

#[test]
fn a_client_that_takes_its_lock_anew_at_once_starves_nobody() {
    let world = World::new(18);
    let mut engine = world.engine();
    let (brick, mut held) = (world.brick.clone(), world.brick.lock(CLIENT, &(0..SIZE)));
    assert!(held);
    world.brick.meanwhile(move || {
        if held {
            brick.unlock(CLIENT, &(0..SIZE));
        }
        held = brick.lock(CLIENT, &(0..SIZE));
    });
    let pass = engine.run_pass().unwrap();
    assert_eq!((pass.end, world.debt()), (PassEnd::Complete, 0));
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
fn a_stopped_pass_keeps_what_it_has_done() {
    let world = World::new(12);
    let mut engine = world.engine();
    let (stop, mut calls) = (world.options.stop.clone(), 0);
    world.brick.meanwhile(move || {
        calls += 1;
        stop.store(calls > 20, Ordering::Relaxed);
    });
    let pass = engine.run_pass().unwrap();
    assert_eq!(pass.end, PassEnd::Stopped);
    assert!(pass.cleared > 0 && world.debt() == 40 - pass.cleared);
    assert!(world.clean_means_equal());
}

#[test]
fn a_new_connection_is_left_alone_for_the_quiet_time() {
    let mut world = World::new(13);
    world.options.quiet = Duration::from_secs(3);
    let mut engine = world.engine();
    let clock = world.clock.clone();
    world
        .brick
        .meanwhile(move || assert!(clock.now() >= Duration::from_secs(3)));
    engine.run_pass().unwrap();
    engine.run_pass().unwrap();
    assert!(world.clock.now() < Duration::from_secs(4), "once only");
}

#[test]
fn the_bandwidth_limit_holds_and_no_lock_is_held_while_waiting() {
    let world = World::healed(14);
    world.write(0, &full_of(1));
    let rate = 8 * EXTENT;
    world.options.throttle.set_rate(rate);
    let mut engine = world.engine();
    engine.run_pass().unwrap();
    let took = world.clock.now().as_secs_f64();
    // The last stretch is paid for by whoever comes next.
    let least = (SIZE as f64 - rate as f64) / rate as f64;
    assert!(took >= least && took <= least + 1.5, "{took} s");
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
