//! The mark on the peer that a healer needs.

use std::sync::Arc;

use super::super::super::{HealError, Obstacle, PassEnd};
use super::super::world::{EXTENT, STAMP, World, the_peer};
use super::full_of;
use crate::image::dirty_map::{DirtyMap, MapError, Record};

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
