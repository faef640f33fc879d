//! An image in shards: served, marked and healed file by file, on real volumes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use bypass_harness::{Cluster, Fill, Volume, VolumeKind, wait_until};
use support::daemon::Daemon;
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::shards::{self, FILES, SHARD, sharded};
use support::{PATIENCE, pattern};

/// Bytes that lie in two shards.
const ACROSS: u64 = 3 * SHARD - 64 * 1024;

#[test]
fn a_write_marks_the_shards_that_it_is_in_and_stock_gluster_heals_them() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Noise, &[]);
    let mut expected = shards::disk(&volume, 0);
    an_image_that_is_being_removed_is_refused(&volume);
    let daemon = Daemon::serve(&volume, 0, &[]);
    assert_eq!(daemon.status()["state"], "clean");
    assert!(shards::marked(&volume).is_empty(), "nothing is written yet");

    let mut disk = FrontEnd::connect(daemon.socket());
    let data = pattern(1, ACROSS, 128 * 1024);
    disk.write(ACROSS, &data, PATIENCE).unwrap();
    disk.flush(PATIENCE).unwrap();
    expected[ACROSS as usize..][..data.len()].copy_from_slice(&data);
    assert_eq!(disk.read(ACROSS, data.len(), PATIENCE).unwrap(), data);
    assert_eq!(shards::marked(&volume), [2, 3]);
    for number in [2, 3] {
        let marks = shards::marks(&volume, number);
        for (on, about) in (0..3).flat_map(|on| (0..3).map(move |about| (on, about))) {
            assert_eq!(marks.accuses(on, about), about != 0, "{marks}");
        }
    }
    for mebibyte in [0, 20, 40, FILES * SHARD / (1 << 20) - 1] {
        let offset = mebibyte << 20;
        let data = pattern(2, offset, 8192);
        disk.write(offset, &data, PATIENCE).unwrap();
        expected[offset as usize..][..8192].copy_from_slice(&data);
    }
    assert_eq!(daemon.status()["state"], "dirty");
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(shards::disk(&volume, 0) == expected, "the local copy");
    shards::wait_healed(&volume);
    shards::assert_equal(&volume);
    assert!(
        shards::read_by_mount(&volume, 1) == expected,
        "through a mount"
    );
}

/// A client died between the two steps of a removal: the image is to be removed, and still there.
fn an_image_that_is_being_removed_is_refused(volume: &Volume) {
    let mount = volume.mount(0).unwrap();
    let other = mount.path().join("other.img");
    fs::write(&other, vec![1; 2 * SHARD as usize]).unwrap();
    fs::remove_file(&other).unwrap();
    drop(mount);
    let (name, identity) = (shards::gfid(volume).to_string(), uuid::Uuid::new_v4());
    let brick = volume.brick_dir(2);
    let marker = brick.join(".shard/.remove_me").join(name);
    fs::write(&marker, "").unwrap();
    xattr::set(&marker, "trusted.gfid", identity.as_bytes()).unwrap();
    let identity = identity.to_string();
    let handles = brick
        .join(".glusterfs")
        .join(&identity[..2])
        .join(&identity[2..4]);
    fs::create_dir_all(&handles).unwrap();
    fs::hard_link(&marker, handles.join(&identity)).unwrap();
    let refused = Daemon::try_serve(volume, 0, &[]).err().expect("refused");
    assert_eq!(refused.code, Some(14), "{}", refused.log);
    assert!(refused.log.contains("is being removed"), "{}", refused.log);
    fs::remove_file(handles.join(identity)).unwrap();
    fs::remove_file(marker).unwrap();
}

#[test]
fn shards_that_no_brick_has_are_made_when_the_image_is_opened() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Arbiter, Fill::Sparse, &[]);
    assert!(!shards::on_brick(&volume, 0, 5).exists());
    let daemon = Daemon::serve(&volume, 0, &[]);
    for brick in 0..3 {
        for number in 0..FILES {
            assert!(shards::on_brick(&volume, brick, number).exists());
        }
    }
    let mut disk = FrontEnd::connect(daemon.socket());
    assert!(disk.read(ACROSS, 1 << 20, PATIENCE).unwrap() == vec![0; 1 << 20]);
    let data = pattern(1, ACROSS, 128 * 1024);
    disk.write(ACROSS, &data, PATIENCE).unwrap();
    disk.flush(PATIENCE).unwrap();
    assert!(disk.read(ACROSS, data.len(), PATIENCE).unwrap() == data);
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    shards::wait_healed(&volume);
    assert!(shards::disk(&volume, 0) == shards::disk(&volume, 1));
    let read = shards::read_by_mount(&volume, 2);
    assert!(read[ACROSS as usize..][..data.len()] == data);
}

#[test]
fn a_killed_daemon_s_marked_shards_are_compared_or_sent_and_no_others() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Noise, &[]);
    volume.set("cluster.self-heal-daemon", "off").unwrap();
    let daemon = Daemon::serve(&volume, 1, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let data = pattern(1, ACROSS, 128 * 1024);
    disk.write(ACROSS, &data, PATIENCE).unwrap();
    disk.flush(PATIENCE).unwrap();
    drop(disk);
    daemon.kill();
    assert_eq!(shards::marked(&volume), [2, 3]);

    let daemon = Daemon::serve(&volume, 1, &[]);
    assert_eq!(daemon.status()["state"], "dirty");
    let behind = |copy: usize| daemon.status()["copies"][copy]["behind"]["bytes"].as_u64();
    assert_eq!(behind(0), Some(data.len() as u64), "as the map says");
    let mut disk = FrontEnd::connect(daemon.socket());
    assert!(disk.read(ACROSS, data.len(), PATIENCE).unwrap() == data);
    let other = 10 * SHARD;
    disk.write(other, &pattern(3, other, 4096), PATIENCE)
        .unwrap();
    assert_eq!(shards::marked(&volume), [2, 3, 10]);
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    volume.set("cluster.self-heal-daemon", "on").unwrap();
    shards::wait_healed(&volume);
    shards::assert_equal(&volume);
}

#[test]
fn a_brick_that_is_away_misses_what_is_written_and_gets_it_from_stock_gluster() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Sparse, &[]);
    // So that there is a folder for shards.
    Daemon::serve(&volume, 0, &[]).stop();
    for away_from_the_beginning in [true, false] {
        let seed = u64::from(away_from_the_beginning) + 1;
        if away_from_the_beginning {
            volume.kill_brick(2).unwrap();
        }
        let daemon = Daemon::serve(&volume, 0, &[]);
        let mut disk = FrontEnd::connect(daemon.socket());
        disk.write(0, &pattern(seed, 0, 4096), PATIENCE).unwrap();
        if !away_from_the_beginning {
            volume.kill_brick(2).unwrap();
        }
        let data = pattern(seed, ACROSS, 128 * 1024);
        disk.write(ACROSS, &data, PATIENCE).unwrap();
        disk.flush(PATIENCE).unwrap();
        volume.start_force().unwrap();
        let other = 12 * SHARD;
        disk.write(other, &pattern(seed, other, 4096), PATIENCE)
            .unwrap();
        disk.flush(PATIENCE).unwrap();
        drop(disk);
        assert_eq!(daemon.stop().code(), Some(0));
        volume.start_force().unwrap();
        shards::wait_healed(&volume);
        shards::assert_equal(&volume);
        let read = shards::read_by_mount(&volume, 2);
        assert!(read[ACROSS as usize..][..data.len()] == data);
    }
}

#[test]
fn shards_made_while_a_brick_is_away_are_made_there_by_stock_gluster() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Sparse, &[]);
    Daemon::serve(&volume, 0, &[]).stop();
    let mount = volume.mount(0).unwrap();
    let other = std::fs::File::create(mount.path().join("vm2.img")).unwrap();
    other.set_len(support::IMAGE_BYTES).unwrap();
    drop((other, mount));
    volume.kill_brick(1).unwrap();
    let daemon = Daemon::start(&volume, 0, "/vm2.img", &[]);
    let daemon = daemon.wait_listening().unwrap();
    let mut disk = FrontEnd::connect(daemon.socket());
    let data = pattern(5, ACROSS, 128 * 1024);
    disk.write(ACROSS, &data, PATIENCE).unwrap();
    disk.flush(PATIENCE).unwrap();
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    volume.start_force().unwrap();
    let found = xattr::get(volume.brick_file(0, "/vm2.img"), "trusted.gfid").unwrap();
    let gfid = uuid::Uuid::from_slice(&found.unwrap()).unwrap();
    for number in 1..FILES {
        let shard = format!("/.shard/{gfid}.{number}");
        volume.wait_healed(&shard, PATIENCE).unwrap();
        assert!(volume.brick_file(1, &shard).exists(), "{shard}");
        let copies = volume.copies_equal(&shard).unwrap();
        assert!(copies.are_equal(), "{shard}: {copies:?}");
    }
    wait_until("nothing is left to heal", PATIENCE, || {
        let info = volume.heal_info(0).map_err(|error| error.to_string())?;
        match info.entries() {
            0 => Ok(()),
            left => Err(format!("{left} entries: {info:?}")),
        }
    })
    .unwrap();
    an_image_that_grew_while_a_brick_was_away_has_its_new_size(&volume);
}

/// The brick that was away is asked first, and its attributes are not healed yet.
fn an_image_that_grew_while_a_brick_was_away_has_its_new_size(volume: &Volume) {
    volume.set_self_heal_daemon(false).unwrap();
    volume.kill_brick(0).unwrap();
    let mount = volume.mount(1).unwrap();
    let path = mount.path().join(support::IMAGE.trim_start_matches('/'));
    let image = fs::File::options().write(true).open(path).unwrap();
    let size = support::IMAGE_BYTES + SHARD / 2;
    image.set_len(size).unwrap();
    image.sync_all().unwrap();
    drop((image, mount));
    volume.start_force().unwrap();
    let daemon = Daemon::serve(volume, 1, &[]);
    assert_eq!(daemon.status()["size"], size);
}

#[test]
fn a_quiet_shard_loses_its_marks_while_the_guest_writes_to_another() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Noise, &[]);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let _healer = Healer::start(volume.brick_node(0), &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let first = pattern(1, ACROSS, 128 * 1024);
    disk.write(ACROSS, &first, PATIENCE).unwrap();
    assert_eq!(shards::marked(&volume), [2, 3]);
    let busy = 9 * SHARD;
    let mut seed = 2;
    wait_until("only the busy shard is marked", PATIENCE, || {
        seed += 1;
        disk.write(busy, &pattern(seed, busy, 4096), PATIENCE)
            .unwrap();
        match shards::marked(&volume).as_slice() {
            [9] | [] => Ok(()),
            marked => Err(format!("{marked:?}")),
        }
    })
    .unwrap();
    for number in [2, 3] {
        let copies = volume.copies_equal(&shards::file(&volume, number)).unwrap();
        assert!(copies.are_equal(), "{copies:?}");
    }
    let again = pattern(3, ACROSS, 4096);
    disk.write(ACROSS, &again, PATIENCE).unwrap();
    assert!(shards::marked(&volume).contains(&2), "marked once more");
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
}
