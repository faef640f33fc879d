//! A host with the newest data that is gone: its peers' copies are promoted on purpose
//! only, and it never wins when it comes back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bypass_harness::{Cluster, Volume, VolumeKind};
use support::daemon::{Daemon, heal, promote, wait_promoted};
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::{IMAGE, PATIENCE, pattern, volume_with_image};

const MIB: u64 = 1 << 20;

/// Whose bricks notice within seconds that a host is gone, and let its locks go.
fn watchful(cluster: &Cluster) -> Volume {
    let soon = [
        ("server.tcp-user-timeout", "6"),
        ("server.keepalive-time", "3"),
        ("server.keepalive-interval", "1"),
        ("server.keepalive-count", "3"),
    ];
    volume_with_image(cluster, VolumeKind::Replica(3), &soon)
}

/// Old data is healed everywhere, newer data only on the first copy, whose host is gone.
fn lose_the_first_host(cluster: &Cluster, volume: &Volume) {
    let daemon = Daemon::serve(volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(0, &pattern(1, 0, 1 << 20), PATIENCE).unwrap();
    assert_eq!(heal(volume, 0, &[]).0, Some(0));
    disk.write(4 * MIB, &pattern(2, 4 * MIB, 1 << 20), PATIENCE)
        .unwrap();
    cluster.crash_node(0).unwrap();
    drop(disk);
    daemon.kill();
}

const YES: [&str; 3] = ["--accept-loss", "--confirm", "gv0/vm1.img"];

#[test]
fn a_promoted_copy_serves_and_the_lost_one_is_healed_from_it_when_it_returns() {
    let cluster = Cluster::start(3).unwrap();
    let volume = watchful(&cluster);
    volume.set_self_heal_daemon(false).unwrap();
    lose_the_first_host(&cluster, &volume);

    let stale = Daemon::try_serve(&volume, 1, &["--lock-timeout", "55s"])
        .err()
        .unwrap();
    assert_eq!(stale.code, Some(42), "{}", stale.log);
    let (code, said) = promote(&volume, 1, &["--accept-loss", "--confirm", "gv0/other.img"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = promote(&volume, 1, &["--confirm", "gv0/vm1.img"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = promote(&volume, 1, &YES);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains(&volume.brick_name(0)) && said.contains("lost"),
        "{said}"
    );

    let daemon = Daemon::serve(&volume, 1, &[]);
    let healer = Healer::start(volume.brick_node(1), &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    assert!(disk.read(0, 1 << 20, PATIENCE).unwrap() == pattern(1, 0, 1 << 20));
    disk.write(8 * MIB, &pattern(3, 8 * MIB, 1 << 20), PATIENCE)
        .unwrap();

    cluster.boot_node(0).unwrap();
    volume.start_force().unwrap();
    volume.wait_bricks_up().unwrap();
    daemon.wait_state("clean");
    assert!(volume.marks(IMAGE).unwrap().is_clean());
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    assert!(disk.read(8 * MIB, 1 << 20, PATIENCE).unwrap() == pattern(3, 8 * MIB, 1 << 20));
    drop((disk, healer, daemon));
}

#[test]
fn stock_gluster_alone_heals_the_lost_copy_from_the_promoted_one() {
    let cluster = Cluster::start(3).unwrap();
    let volume = watchful(&cluster);
    lose_the_first_host(&cluster, &volume);
    wait_promoted(&volume, 1, &YES);
    let before = std::fs::read(volume.brick_file(1, IMAGE)).unwrap();

    cluster.boot_node(0).unwrap();
    volume.start_force().unwrap();
    volume.wait_bricks_up().unwrap();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    let after = std::fs::read(volume.brick_file(1, IMAGE)).unwrap();
    assert!(before == after, "the lost copy won");
}

/// Each stale copy accuses itself now, and AFR's heal believes none of them.
#[test]
fn stock_gluster_alone_heals_all_from_a_promoted_copy_that_was_served_and_whose_daemon_was_killed()
{
    let cluster = Cluster::start(3).unwrap();
    let volume = watchful(&cluster);
    volume.set_self_heal_daemon(false).unwrap();
    lose_the_first_host(&cluster, &volume);
    wait_promoted(&volume, 1, &YES);
    let daemon = Daemon::serve(&volume, 1, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(8 * MIB, &pattern(3, 8 * MIB, 1 << 20), PATIENCE)
        .unwrap();
    disk.flush(PATIENCE).unwrap();
    drop(disk);
    daemon.kill();
    let promoted = std::fs::read(volume.brick_file(1, IMAGE)).unwrap();

    cluster.boot_node(0).unwrap();
    volume.start_force().unwrap();
    volume.wait_bricks_up().unwrap();
    volume.set_self_heal_daemon(true).unwrap();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    for brick in 0..3 {
        let copy = std::fs::read(volume.brick_file(brick, IMAGE)).unwrap();
        assert!(copy == promoted, "brick {brick}");
    }
}

#[test]
fn nothing_is_promoted_while_a_fresh_copy_is_reached() {
    let cluster = Cluster::start(3).unwrap();
    let volume = watchful(&cluster);
    volume.set_self_heal_daemon(false).unwrap();
    let (code, said) = promote(&volume, 1, &YES);
    assert_eq!(code, Some(73), "not stale: {said}");
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(0, &pattern(1, 0, 4096), PATIENCE).unwrap();
    let (code, said) = promote(&volume, 1, &YES);
    assert_eq!(code, Some(40), "served: {said}");
    drop(disk);
    daemon.kill();
    let (code, said) = promote(&volume, 1, &YES);
    assert_eq!(code, Some(73), "the fresh copy is there: {said}");
    let fresh = format!("on {}", volume.brick_name(0));
    assert!(said.contains(&fresh), "{said}");
    assert_eq!(said.matches("is reached").count(), 1, "{said}");
}
