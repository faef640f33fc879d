//! What an operator does to an image in shards: its daemon is replaced, it is made larger, its
//! volume gets bricks, and its only copy that is left is made the one that counts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File};
use std::time::Instant;

use bypass_harness::{Cluster, Fill, Volume, VolumeKind, wait_until};
use rustix::fs::{FlockOperation, flock};
use support::daemon::{Daemon, UPGRADED, heal, promote, resize, wait_promoted};
use support::front_end::FrontEnd;
use support::healer::Healer;
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
        let info = format!("{:?}", volume.heal_info(0).map_err(|e| e.to_string())?);
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
    let mut write =
        |disk: &mut FrontEnd, seed: u64, at: u64| write_noted(disk, &mut expected, seed, at);
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

/// A volume whose bricks notice within seconds that a host is gone, and let its locks go. Stock
/// Gluster does not heal.
fn watchful(cluster: &Cluster, kind: VolumeKind) -> Volume {
    let soon = [
        ("server.tcp-user-timeout", "6"),
        ("server.keepalive-time", "3"),
        ("server.keepalive-interval", "1"),
        ("server.keepalive-count", "3"),
    ];
    let volume = sharded(cluster, kind, Fill::Sparse, &soon);
    volume.set_self_heal_daemon(false).unwrap();
    volume
}

fn write(disk: &mut FrontEnd, seed: u64, at: u64) {
    disk.write(at, &pattern(seed, at, 128 * 1024), PATIENCE)
        .unwrap();
}

/// The same, read back at once, and noted in what the disk is to be.
fn write_noted(disk: &mut FrontEnd, expected: &mut [u8], seed: u64, at: u64) {
    write(disk, seed, at);
    let data = pattern(seed, at, 128 * 1024);
    assert!(disk.read(at, data.len(), PATIENCE).unwrap() == data);
    expected[at as usize..][..data.len()].copy_from_slice(&data);
}

/// Old data is healed everywhere, newer data only on the first copy, whose host is gone.
fn lose_the_first_host(cluster: &Cluster, volume: &Volume) {
    let daemon = Daemon::serve(volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, 1, ACROSS);
    assert_eq!(heal(volume, 0, &[]).0, Some(0));
    write(&mut disk, 2, ACROSS);
    write(&mut disk, 2, 9 * SHARD);
    cluster.crash_node(0).unwrap();
    drop(disk);
    daemon.kill();
}

const YES: [&str; 3] = ["--accept-loss", "--confirm", "gv0/vm1.img"];

#[test]
fn beside_an_arbiter_a_copy_in_shards_is_promoted_and_a_healer_finishes_it_when_the_lost_one_is_back()
 {
    let cluster = Cluster::start(3).unwrap();
    let volume = watchful(&cluster, VolumeKind::Arbiter);
    lose_the_first_host(&cluster, &volume);
    wait_promoted(&volume, 1, &YES);
    let daemon = Daemon::serve(&volume, 1, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, 3, 11 * SHARD);
    disk.flush(PATIENCE).unwrap();
    drop(disk);
    daemon.kill();
    let promoted = shards::disk(&volume, 1);
    let healer = Healer::start(volume.brick_node(1), &[]);
    cluster.boot_node(0).unwrap();
    volume.start_force().unwrap();
    wait_until("the healer to finish", PATIENCE, || {
        let marked = shards::marked(&volume);
        let done = marked.is_empty().then_some(());
        done.ok_or_else(|| format!("{marked:?}\n{}", healer.log()))
    })
    .unwrap();
    for brick in [0, 1] {
        assert!(shards::disk(&volume, brick) == promoted, "brick {brick}");
    }
}

#[test]
fn a_copy_in_shards_is_promoted_and_stock_gluster_heals_the_lost_one_from_it() {
    let cluster = Cluster::start(3).unwrap();
    let volume = watchful(&cluster, VolumeKind::Replica(3));
    lose_the_first_host(&cluster, &volume);
    let stale = Daemon::try_serve(&volume, 1, &["--lock-timeout", "55s"]);
    let stale = stale.err().unwrap();
    assert!(stale.log.contains("shard 2: "), "{}", stale.log);
    let (code, said) = promote(&volume, 1, &YES);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("of the shards 2 3 9"), "{said}");
    let (code, said) = promote(&volume, 1, &YES);
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

const MIB: u64 = 1 << 20;
/// How many moments of a growth the daemon is killed at.
const MOMENTS: u32 = 6;

fn assert_grown((code, said): (Option<i32>, String), to: u64) {
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("to {to} bytes")), "{said}");
}

fn write_end(daemon: &Daemon, seed: u64, size: u64) {
    let mut disk = FrontEnd::connect(daemon.socket());
    let at = size - MIB / 2;
    let data = pattern(seed, at, MIB as usize / 2);
    disk.write(at, &data, PATIENCE).unwrap();
    assert!(disk.read(at, data.len(), PATIENCE).unwrap() == data);
    disk.flush(PATIENCE).unwrap();
}

/// Stock Gluster has nothing left to do, and every file of an image of that size is the same on
/// all bricks.
fn wait_one_size(volume: &Volume, size: u64) {
    for number in 0..size.div_ceil(SHARD) {
        volume
            .wait_healed(&shards::file(volume, number), PATIENCE)
            .unwrap();
    }
    wait_until("nothing is left to heal", PATIENCE, || {
        let info = volume.heal_info(0).map_err(|error| error.to_string())?;
        let sizes = shards::sizes(volume);
        let done = info.entries() == 0 && sizes == [size; 3];
        done.then_some(()).ok_or(format!("{sizes:?} {info:?}"))
    })
    .unwrap();
    for number in 0..size.div_ceil(SHARD) {
        let copies = volume.copies_equal(&shards::file(volume, number)).unwrap();
        assert!(copies.are_equal(), "shard {number}: {copies:?}");
    }
}

#[test]
fn an_image_in_shards_grows_within_a_shard_and_over_borders_with_and_without_a_guest() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Sparse, &[]);
    let mut size = FILES * SHARD;
    let daemon = Daemon::serve(&volume, 1, &[]);
    // To the next shard, within it, and over a border from a size that is no multiple.
    for more in [1, 1, 8] {
        size += more * MIB;
        assert_grown(resize(&volume, 1, &[&format!("+{more}M")]), size);
        assert_eq!(shards::sizes(&volume), [size; 3]);
        assert_eq!(daemon.status()["size"], size);
        write_end(&daemon, more, size);
    }
    let (code, said) = resize(&volume, 1, &["1M"]);
    assert_eq!(code, Some(75), "{said}");
    daemon.upgrade();
    write_end(&daemon, 7, size);
    assert_eq!(daemon.stop().code(), Some(0));
    // What `du` on a mount shows.
    let used = shards::blocks_used(&volume, 1, size.div_ceil(SHARD));
    assert!(used >= 3 * (MIB / 2) / 512, "{used}");
    assert_eq!(shards::blocks(&volume), [used; 3]);
    size += 5 * MIB;
    assert_grown(resize(&volume, 1, &["+5M"]), size);
    wait_one_size(&volume, size);
    let read = shards::read_by_mount(&volume, 2);
    assert_eq!(read.len() as u64, size);
    let at = size - 5 * MIB - MIB / 2;
    assert!(read[at as usize..][..MIB as usize / 2] == pattern(7, at, MIB as usize / 2));

    // A copy that is away keeps its old size, and is not believed when it is back.
    volume.set("cluster.self-heal-daemon", "off").unwrap();
    volume.kill_brick(0).unwrap();
    let (code, said) = resize(&volume, 1, &["+5M"]);
    assert_eq!(code, Some(75), "{said}");
    size += 5 * MIB;
    assert_grown(resize(&volume, 1, &["+5M", "--force"]), size);
    volume.start_force().unwrap();
    assert_eq!(shards::sizes(&volume), [size - 5 * MIB, size, size]);
    let daemon = Daemon::serve(&volume, 1, &[]);
    assert_eq!(daemon.status()["size"], size);
    write_end(&daemon, 8, size);
    assert_eq!(daemon.stop().code(), Some(0));
    volume.set("cluster.self-heal-daemon", "on").unwrap();
    volume.start_force().unwrap();
    wait_one_size(&volume, size);
}

#[test]
fn a_daemon_killed_at_any_moment_of_a_growth_leaves_shards_that_heal_to_one_size() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Sparse, &[]);
    let mut size = FILES * SHARD;
    let mut daemon = Daemon::serve(&volume, 0, &[]);
    let begin = Instant::now();
    assert_grown(resize(&volume, 0, &["+3M"]), size + 3 * MIB);
    // Some are killed when it is over.
    let took = begin.elapsed() * 5 / 4;
    size += 3 * MIB;
    let mut outcomes = Vec::new();
    for moment in 0..MOMENTS {
        write_end(&daemon, moment.into(), size);
        std::thread::scope(|scope| {
            scope.spawn(|| println!("{:?}", resize(&volume, 0, &["+3M"])));
            // Not to wait for anything: the moment is what is tried.
            std::thread::sleep(took * moment / MOMENTS);
            daemon.kill();
        });
        outcomes.push(shards::sizes(&volume));
        daemon = Daemon::serve(&volume, 0, &["--lock-timeout", "30s"]);
        let now = daemon.status()["size"].as_u64().unwrap();
        // With nobody there the command goes on by itself.
        let grown = [size, size + 3 * MIB];
        assert!(grown.contains(&now), "{now} of {grown:?}");
        size = now;
        write_end(&daemon, 100 + u64::from(moment), size);
    }
    println!("sizes that the deaths left, of a growth of {took:?}: {outcomes:?}");
    assert_eq!(daemon.stop().code(), Some(0));
    wait_one_size(&volume, size);
}

#[test]
fn a_replica_set_that_is_added_gets_no_shard_of_an_image_that_is_served() {
    // All bricks on one host: see `a_copy_that_is_added_while_an_image_is_served`.
    let cluster = Cluster::start(1).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Noise, &[]);
    let mut expected = shards::disk(&volume, 0);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let mut write =
        |disk: &mut FrontEnd, seed: u64, at: u64| write_noted(disk, &mut expected, seed, at);
    write(&mut disk, 1, ACROSS);
    let grown = volume.add_set(3, 0).unwrap();
    grown.start_rebalance().unwrap();
    daemon.wait_log("has 2 replica sets now");
    // It waits for what it cannot lock; so a shard that it may have, of another image, tells nothing.
    wait_until("the rebalance to want a shard", PATIENCE, || {
        let log = daemon.log();
        let wanted = log.contains("dht.file.migrate");
        wanted
            .then_some(())
            .ok_or(format!("{:?}\n{log}", grown.rebalance_status()))
    })
    .unwrap();
    // In a shard that was marked before, and in those that were not.
    for shard in [2, 5, 6, 9, 13] {
        write(&mut disk, shard, shard * SHARD);
    }
    disk.flush(PATIENCE).unwrap();
    assert_eq!(daemon.status()["warnings"].as_array().unwrap().len(), 1);
    daemon.upgrade();
    assert_eq!(daemon.status()["warnings"].as_array().unwrap().len(), 1);
    for (at, bytes) in (0..).step_by(1 << 20).zip(expected.chunks(1 << 20)) {
        let read = disk.read(at, bytes.len(), PATIENCE).unwrap();
        assert!(read == bytes, "every shard is here: {at}");
    }
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    let refused = Daemon::try_serve(&volume, 0, &[]).err().unwrap();
    assert_eq!(refused.code, Some(14), "{}", refused.log);
    // Gluster moves shards now, and heals them, wherever they are.
    wait_until("a mount to read what was written", PATIENCE, || {
        let mount = grown.mount(0).map_err(|error| error.to_string())?;
        let read = fs::read(mount.path().join("vm1.img")).map_err(|error| error.to_string())?;
        let old = "old or missing bytes".to_owned();
        (read == expected).then_some(()).ok_or(old)
    })
    .unwrap();
}

#[test]
fn a_copy_that_is_added_stays_accused_in_all_shards_and_stock_gluster_fills_it_afterwards() {
    let cluster = Cluster::start(1).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(2), Fill::Noise, &[]);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, 1, ACROSS);
    let grown = volume.add_brick(0).unwrap();
    daemon.wait_log(&format!("{} came.", grown.brick_name(2)));
    wait_until("shards to be made on the new brick", PATIENCE, || {
        let healing = grown.trigger_heal();
        let made = (0..FILES).filter(|&n| shards::on_brick(&grown, 2, n).exists());
        let made = made.count() as u64;
        (made == FILES)
            .then_some(())
            .ok_or_else(|| format!("{made} are there, {healing:?}"))
    })
    .unwrap();
    // Marked, or not: what stock Gluster wants to fill it cannot.
    wait_kept_from_heals(&grown, &[2, 3, 5, 13]);
    daemon.upgrade();
    wait_kept_from_heals(&grown, &[2, 3, 5, 13]);
    for shard in [2, 5, 13] {
        write(&mut disk, shard, shard * SHARD);
    }
    for shard in 0..FILES {
        let marks = shards::marks(&grown, shard);
        assert!(marks.accuses(0, 2), "shard {shard}: {marks}");
    }
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    shards::wait_healed(&grown);
    shards::assert_equal(&grown);
}
