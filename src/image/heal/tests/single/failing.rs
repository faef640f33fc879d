//! Peers that refuse, connections that break, healers that die.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::super::HealError;
use super::super::brick::{Call, Fault};
use super::super::world::{EXTENT, World};
use super::full_of;

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
