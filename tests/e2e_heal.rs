//! The healer on a real volume: the other copies follow, the marks go, and whatever is
//! killed when, the copies are equal in the end.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bypass_harness::{Cluster, Volume};
use support::daemon::Daemon;
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::{IMAGE, PATIENCE, pattern, replica_3};

const MIB: u64 = 1 << 20;

/// No counter on any brick, nothing in the heal index, copies equal.
fn assert_clean(volume: &Volume) {
    let marks = volume.marks(IMAGE).unwrap();
    assert!(marks.is_clean(), "{marks}");
    assert_eq!(volume.heal_info(1).unwrap().entries(), 0);
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

#[test]
fn the_copies_follow_the_guest_and_the_image_is_clean_when_it_pauses() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    for round in 0..3 {
        let data = pattern(round, MIB, 3 << 16);
        disk.write(MIB + (round << 20), &data, PATIENCE).unwrap();
        disk.flush(PATIENCE).unwrap();
        daemon.wait_state("clean");
        assert_clean(&volume);
    }
    drop(disk);
    assert_eq!(healer.stop().code(), Some(0));
    assert_eq!(daemon.stop().code(), Some(0));
    assert_clean(&volume);
}
