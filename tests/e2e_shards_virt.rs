//! Images in shards on the volumes that guides for VM images make: the whole `virt` group, with
//! its server quorum, and two copies.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use bypass_harness::{Cluster, Fill, Volume, VolumeKind, run_command, wait_until};
use support::daemon::Daemon;
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::shards::{self, FILES, SHARD, sharded};
use support::{IMAGE, IMAGE_BYTES, PATIENCE, pattern};

/// Copies a raw image, as whoever moves a VM to or from the volume does.
fn qemu_img_convert(from: &Path, to: &Path) {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "raw"]);
    run_command(command.arg(from).arg(to), PATIENCE).unwrap();
}

fn write(disk: &mut FrontEnd, expected: &mut [u8], seed: u64, at: u64) {
    let data = pattern(seed, at, 128 * 1024);
    disk.write(at, &data, PATIENCE).unwrap();
    expected[at as usize..][..data.len()].copy_from_slice(&data);
}

fn brick_is(volume: &Volume, brick: usize, up: bool) {
    wait_until("the brick to go or come", PATIENCE, || {
        match volume.brick_pid(brick).unwrap().is_some() == up {
            true => Ok(()),
            false => Err(format!("brick {brick}, wanted up: {up}")),
        }
    })
    .unwrap();
}

#[test]
fn with_the_virt_group_the_guest_goes_on_while_its_brick_is_killed_for_want_of_server_quorum() {
    let cluster = Cluster::start(3).unwrap();
    let kind = VolumeKind::Replica(3);
    let volume = cluster.create_volume("gv0", kind, &[]).unwrap();
    volume.set_group("virt").unwrap();
    volume.set("features.shard-block-size", "4MB").unwrap();
    volume.start().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let [original, copy] = ["original", "copy"].map(|name| outside.path().join(name));
    let mut expected = pattern(1, 0, IMAGE_BYTES as usize);
    fs::write(&original, &expected).unwrap();
    let mount = volume.mount(0).unwrap();
    let image = IMAGE.trim_start_matches('/');
    qemu_img_convert(&original, &mount.path().join(image));
    drop(mount);
    shards::wait_healed(&volume);

    let daemon = Daemon::serve(&volume, 0, &[]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, &mut expected, 2, 3 * SHARD - 64 * 1024);
    // The local glusterd finds itself alone and kills its bricks, the other two live on.
    (1..3).for_each(|node| cluster.kill_glusterd(node).unwrap());
    brick_is(&volume, 0, false);
    write(&mut disk, &mut expected, 3, 3 * SHARD);
    let clean = 9 * SHARD;
    write(&mut disk, &mut expected, 3, clean);
    disk.flush(PATIENCE).unwrap();
    let read = disk.read(clean, 4096, PATIENCE).unwrap();
    assert!(read == expected[clean as usize..][..4096]);
    assert_eq!(daemon.status()["state"], "dirty");
    (1..3).for_each(|node| cluster.restart_glusterd(node).unwrap());
    brick_is(&volume, 0, true);
    write(&mut disk, &mut expected, 4, 12 * SHARD);
    daemon.wait_state("clean");
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    drop(healer);
    assert!(shards::marked(&volume).is_empty());
    shards::assert_equal(&volume);
    let mount = volume.mount(2).unwrap();
    qemu_img_convert(&mount.path().join(image), &copy);
    assert!(fs::read(&copy).unwrap() == expected);
}

#[test]
fn two_copies_in_shards_follow_afr_s_quorum_rule_with_the_first_brick() {
    let cluster = Cluster::start(2).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(2), Fill::Noise, &[]);
    let mut expected = shards::disk(&volume, 0);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    volume.kill_brick(1).unwrap();
    for number in [0, FILES - 1] {
        write(&mut disk, &mut expected, 14, number * SHARD);
    }
    disk.flush(PATIENCE).unwrap();
    drop(disk);
    daemon.stop();
    volume.start_force().unwrap();
    shards::wait_healed(&volume);
    shards::assert_equal(&volume);
    assert!(shards::read_by_mount(&volume, 1) == expected);
    volume.kill_brick(0).unwrap();
    let second = Daemon::try_serve(&volume, 1, &["--lock-timeout", "1s"]);
    let second = second.err().expect("no quorum");
    assert_eq!(second.code, Some(44), "{}", second.log);
}
