//! A guest whose image's local disk is full: it waits, and its file system is whole after.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bypass_harness::{
    Cluster, Disk, Fill, Guest, GuestConfig, GuestImage, VolumeKind, run_command, wait_until,
};
use support::daemon::Daemon;
use support::{IMAGE, PATIENCE};

const MIB: u64 = 1 << 20;
/// The file system of the local brick.
const BRICK_BYTES: u64 = 256 * MIB;
const IMAGE_BYTES: u64 = 128 * MIB;
/// What is left there before the guest writes.
const ROOM: u64 = 24 * MIB;

/// An ext4 file system in a file, mounted; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        let file = at.with_extension("ext4");
        let disk = std::fs::File::create(&file).unwrap();
        disk.set_len(BRICK_BYTES).unwrap();
        run("mke2fs", &["-q", "-t", "ext4", file.to_str().unwrap()]);
        std::fs::create_dir_all(at).unwrap();
        let at_text = at.to_str().unwrap();
        run("mount", &["-o", "loop", file.to_str().unwrap(), at_text]);
        Self(at.to_owned())
    }

    fn fill_but(&self, room: u64) -> PathBuf {
        let left = rustix::fs::statvfs(&self.0).unwrap();
        let left = left.f_bavail * left.f_frsize;
        let filler = self.0.join("filler");
        let file = std::fs::File::create(&filler).unwrap();
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, flags, 0, left - room).unwrap();
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn run(program: &str, args: &[&str]) {
    run_command(Command::new(program).args(args), PATIENCE).unwrap();
}

#[test]
fn a_guest_waits_while_the_local_disk_is_full_and_its_file_system_is_whole_after() {
    let cluster = Cluster::start(3).unwrap();
    let small = SmallDisk::mount(&cluster.node(0).bricks_dir());
    let options = [("network.ping-timeout", "5")];
    let volume = cluster
        .create_volume("gv0", VolumeKind::Replica(3), &options)
        .unwrap();
    volume.start().unwrap();
    volume
        .create_image(IMAGE, IMAGE_BYTES, Fill::Sparse)
        .unwrap();
    let filler = small.fill_but(ROOM);

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
    std::fs::remove_file(filler).unwrap();
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
