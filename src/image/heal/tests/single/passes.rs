//! A pass as a whole: what it waits for, what ends it, and what it has covered then.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::super::PassEnd;
use super::super::CLIENT;
use super::super::world::{EXTENT, SIZE, World, the_peer};
use super::full_of;
use crate::image::dirty_map::Begun;
use crate::image::scheduler::clock::Clock;

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
