//! What an operator does to an image in shards: its daemon is replaced, it is made larger, and
//! its only copy that is left is made the one that counts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File};

use bypass_harness::{Cluster, Fill, Volume, VolumeKind, wait_until};
use rustix::fs::{FlockOperation, flock};
use support::daemon::{Daemon, UPGRADED, heal, promote};
use support::front_end::FrontEnd;
use support::shards::{self, FILES, SHARD, sharded};
use support::{PATIENCE, pattern};

/// Bytes that lie in two shards.
const ACROSS: u64 = 3 * SHARD - 64 * 1024;

/// The daemon has every shard of its brick, whichever process it is.
fn assert_claimed(volume: &Volume) {
    for number in 0..FILES {
        let shard = File::open(shards::on_brick(volume, 0, number)).unwrap();
        let theirs = flock(&shard, FlockOperation::NonBlockingLockExclusive);
        assert!(theirs.is_err(), "shard {number} is anybody's");
    }
}

/// Stock Gluster sees what it could heal, and that somebody keeps it from that.
fn wait_kept_from_heals(volume: &Volume, numbers: &[u64]) {
    wait_until("heals to be kept away", PATIENCE, || {
        let info = format!("{:?}", volume.heal_info(1).map_err(|e| e.to_string())?);
        let kept = |number: &u64| {
            let line = format!(
                "{} - Possibly undergoing heal",
                shards::file(volume, *number)
            );
            info.contains(&line)
        };
        numbers.iter().all(kept).then_some(()).ok_or(info)
    })
    .unwrap();
}

#[test]
fn a_daemon_is_replaced_and_heals_never_get_at_the_shards_that_are_marked() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Noise, &[]);
    let mut expected = shards::disk(&volume, 0);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let mut write = |disk: &mut FrontEnd, seed: u64, at: u64| {
        let data = pattern(seed, at, 128 * 1024);
        disk.write(at, &data, PATIENCE).unwrap();
        assert!(disk.read(at, data.len(), PATIENCE).unwrap() == data);
        expected[at as usize..][..data.len()].copy_from_slice(&data);
    };
    write(&mut disk, 1, ACROSS);
    for round in 1..=3 {
        daemon.upgrade();
        // In a shard that was marked before, and in one that is clean.
        write(&mut disk, round + 1, ACROSS);
        write(&mut disk, round + 1, (8 + round) * SHARD);
        assert_claimed(&volume);
    }
    daemon.upgrade();
    assert_eq!(shards::marked(&volume), [2, 3, 9, 10, 11]);
    wait_kept_from_heals(&volume, &[2, 3, 9, 10, 11]);

    // The next process could not open it, and does not find that out with the guest stopped.
    let (shard, aside) = (
        shards::on_brick(&volume, 0, 5),
        volume.brick_file(0, "/aside"),
    );
    fs::rename(&shard, &aside).unwrap();
    daemon.ask_to_upgrade();
    daemon.wait_log("not upgraded:");
    fs::rename(&aside, &shard).unwrap();
    write(&mut disk, 9, ACROSS);

    volume.kill_brick(1).unwrap();
    daemon.wait_log(" lost: ");
    daemon.upgrade();
    write(&mut disk, 10, 5 * SHARD);
    volume.start_force().unwrap();
    daemon.wait_log("is back and locked");
    assert_eq!((daemon.logged(" lost: "), daemon.logged(UPGRADED)), (1, 5));
    assert!(
        !daemon.log().contains("waiting for a lock"),
        "{}",
        daemon.log()
    );
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    shards::wait_healed(&volume);
    shards::assert_equal(&volume);
    assert!(shards::read_by_mount(&volume, 2) == expected);
}

#[test]
fn a_copy_in_shards_is_promoted_and_stock_gluster_heals_the_lost_one_from_it() {
    let cluster = Cluster::start(3).unwrap();
    // The bricks notice within seconds that a host is gone, and let its locks go.
    let soon = [
        ("server.tcp-user-timeout", "6"),
        ("server.keepalive-time", "3"),
        ("server.keepalive-interval", "1"),
        ("server.keepalive-count", "3"),
    ];
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Sparse, &soon);
    volume.set_self_heal_daemon(false).unwrap();
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let write = |disk: &mut FrontEnd, seed: u64, at: u64| {
        disk.write(at, &pattern(seed, at, 128 * 1024), PATIENCE)
            .unwrap();
    };
    write(&mut disk, 1, ACROSS);
    assert_eq!(heal(&volume, 0, &[]).0, Some(0));
    // Newer data is on the first host only, which is gone.
    write(&mut disk, 2, ACROSS);
    write(&mut disk, 2, 9 * SHARD);
    cluster.crash_node(0).unwrap();
    drop(disk);
    daemon.kill();

    let yes = ["--accept-loss", "--confirm", "gv0/vm1.img"];
    let stale = Daemon::try_serve(&volume, 1, &["--lock-timeout", "55s"]);
    let stale = stale.err().unwrap();
    assert!(stale.log.contains("shard 2: "), "{}", stale.log);
    let (code, said) = promote(&volume, 1, &yes);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("of the shards 2 3 9"), "{said}");
    let (code, said) = promote(&volume, 1, &yes);
    assert_eq!(code, Some(73), "it is not stale any more: {said}");

    let daemon = Daemon::serve(&volume, 1, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let old = disk.read(ACROSS, 128 * 1024, PATIENCE).unwrap();
    assert!(old == pattern(1, ACROSS, 128 * 1024));
    write(&mut disk, 3, 11 * SHARD);
    disk.flush(PATIENCE).unwrap();
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    let promoted = shards::disk(&volume, 1);
    cluster.boot_node(0).unwrap();
    volume.start_force().unwrap();
    volume.wait_bricks_up().unwrap();
    volume.set_self_heal_daemon(true).unwrap();
    shards::wait_healed(&volume);
    shards::assert_equal(&volume);
    assert!(shards::disk(&volume, 0) == promoted, "the lost copy won");
}
