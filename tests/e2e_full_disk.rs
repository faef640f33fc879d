//! Disks that are full. The local one: the guest waits, and its file system is whole after.
//! A peer's: it keeps its marks, and nobody else does.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Command;
use std::time::Duration;

use bypass_harness::{
    Cluster, Disk, Fill, Guest, GuestConfig, GuestImage, Volume, VolumeKind, run_command,
    wait_until,
};
use support::daemon::Daemon;
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::small_disk::SmallDisk;
use support::{IMAGE, PATIENCE, pattern};

const MIB: u64 = 1 << 20;
const IMAGE_BYTES: u64 = 128 * MIB;
/// What is left there before the guest writes.
const ROOM: u64 = 24 * MIB;

fn run(program: &str, args: &[&str]) {
    run_command(Command::new(program).args(args), PATIENCE).unwrap();
}

/// A replica volume of three with [`IMAGE`], of which one copy's disk is small.
fn volume_with(cluster: &Cluster) -> Volume {
    let options = [("network.ping-timeout", "5")];
    let kind = VolumeKind::Replica(3);
    let volume = cluster.create_volume("gv0", kind, &options).unwrap();
    volume.start().unwrap();
    volume
        .create_image(IMAGE, IMAGE_BYTES, Fill::Sparse)
        .unwrap();
    volume
}

#[test]
fn a_peer_whose_disk_is_full_alone_stays_marked_and_is_healed_when_it_has_room() {
    let cluster = Cluster::start(3).unwrap();
    let small = SmallDisk::mount(&cluster.node(2).bricks_dir());
    let volume = volume_with(&cluster);
    small.fill_but(ROOM);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let data = pattern(1, 0, MIB as usize);
    for mebibyte in 0..2 * ROOM / MIB {
        disk.write(mebibyte * MIB, &data, PATIENCE).unwrap();
    }
    disk.flush(PATIENCE).unwrap();

    wait_until("the other peer to be unmarked", PATIENCE, || {
        let marks = volume.marks(IMAGE).unwrap();
        let only_full = !marks.accuses(0, 1) && marks.accuses(0, 2) && marks.accuses(1, 2);
        only_full.then_some(()).ok_or(marks.to_string())
    })
    .unwrap();
    let equal = |brick: usize| volume.brick_file(brick, IMAGE);
    run(
        "cmp",
        &[equal(0), equal(1)]
            .each_ref()
            .map(|file| file.to_str().unwrap()),
    );
    wait_until("the status to say why", PATIENCE, || {
        let status = daemon.status().to_string();
        let said = status.contains("No space left");
        said.then_some(()).ok_or(status)
    })
    .unwrap();
    // It is asked less and less often, and the log says it once.
    assert_eq!(healer.log().matches("No space left").count(), 1);
    small.make_room();
    daemon.wait_state("clean");
    assert!(volume.marks(IMAGE).unwrap().is_clean());
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    drop((disk, healer, daemon));
    volume.stop().unwrap();
}

#[test]
fn a_guest_waits_while_the_local_disk_is_full_and_its_file_system_is_whole_after() {
    let cluster = Cluster::start(3).unwrap();
    let small = SmallDisk::mount(&cluster.node(0).bricks_dir());
    let volume = volume_with(&cluster);
    small.fill_but(ROOM);

    let daemon = Daemon::serve(&volume, 0, &["--num-queues", "2"]);
    let disk = Disk::VhostUser {
        socket: daemon.socket().to_owned(),
        queues: 2,
        reconnect: false,
    };
    let image = GuestImage::prepare().unwrap();
    let place = cluster.node(0).place();
    let guest = Guest::boot(&image, place, &GuestConfig::new(vec![disk])).unwrap();
    let script = "mke2fs /dev/vda >/dev/null && mkdir -p /mnt && mount -t ext4 /dev/vda /mnt && \
                  dd if=/dev/urandom of=/mnt/data bs=1M count=64 2>/dev/null && sync && \
                  umount /mnt && mount -t ext4 /dev/vda /mnt && md5sum /mnt/data && umount /mnt";
    let job = guest.start(script).unwrap();
    wait_until("the disk to be full", Duration::from_secs(120), || {
        let status = daemon.status();
        match status["serving"]["full"]["waiting"].as_u64() {
            Some(waiting) if waiting > 0 => Ok(()),
            _ => Err(status.to_string()),
        }
    })
    .unwrap();
    daemon.wait_logged("the local disk is full: no room for", 1);
    small.make_room();
    let written = job.wait(Duration::from_secs(120)).unwrap();
    assert_eq!(written.status, 0, "{written:?}");
    let status = daemon.status();
    assert!(status["serving"]["full"].is_null(), "{status}");
    assert_eq!(status["serving"]["queues"][0]["errors"], 0, "{status}");
    guest.power_off().unwrap();
    assert_eq!(daemon.stop().code(), Some(0));
    let local = volume.brick_file(0, IMAGE);
    run("e2fsck", &["-fn", local.to_str().unwrap()]);
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    volume.stop().unwrap();
}
