//! Serving an image of a real volume: what is written, marked, healed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bypass_harness::Cluster;
use support::daemon::Daemon;
use support::front_end::FrontEnd;
use support::{IMAGE, PATIENCE, pattern, replica_3};

#[test]
fn a_write_is_on_the_local_copy_marked_everywhere_and_healed_by_stock_gluster() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    assert_eq!(daemon.status()["state"], "clean");
    assert!(
        volume.marks(IMAGE).unwrap().is_clean(),
        "nothing is written yet"
    );

    let mut disk = FrontEnd::connect(daemon.socket());
    let data = pattern(1, 1 << 20, 65536);
    disk.write(1 << 20, &data, PATIENCE).unwrap();
    disk.flush(PATIENCE).unwrap();
    assert!(
        disk.read(1 << 20, data.len(), PATIENCE).unwrap() == data,
        "not what was written"
    );

    let marks = volume.marks(IMAGE).unwrap();
    for on in 0..3 {
        for about in 0..3 {
            assert_eq!(marks.accuses(on, about), about != 0, "{marks}");
        }
    }
    assert_eq!(daemon.status()["state"], "dirty");
    assert!(volume.heal_info(1).unwrap().lists(IMAGE));
    assert!(!volume.copies_equal(IMAGE).unwrap().are_equal());

    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}
