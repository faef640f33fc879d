//! What others do to an image and its volume while it is served: mounts that keep pages
//! of it, a new name, bricks that are added and replaced.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bypass_harness::{Cluster, Fill, Mount, Volume, VolumeKind, wait_until};
use support::daemon::{Daemon, run_dir, run_on, state_dir};
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::{IMAGE, PATIENCE, pattern, replica_3, volume_with_image};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// A mebibyte of an image through a mount's page cache, by a new open.
fn read_through(mount: &Mount, image: &str, mebibyte: u64) -> Vec<u8> {
    read_mebibyte(&open_through(mount, image), mebibyte)
}

fn open_through(mount: &Mount, image: &str) -> File {
    File::open(mount.path().join(image.trim_start_matches('/'))).unwrap()
}

fn read_mebibyte(file: &File, mebibyte: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    file.read_exact_at(&mut bytes, mebibyte * MIB).unwrap();
    bytes
}

fn write_at(disk: &mut FrontEnd, seed: u64, mebibyte: u64) -> Vec<u8> {
    let data = pattern(seed, mebibyte * MIB, MIB as usize);
    disk.write(mebibyte * MIB, &data, PATIENCE).unwrap();
    disk.flush(PATIENCE).unwrap();
    data
}

#[test]
fn a_mount_that_has_pages_of_the_image_reads_what_the_guest_wrote_when_marks_go_and_at_the_end() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    volume.set_self_heal_daemon(false).unwrap();
    let mounts = [0, 1].map(|node| volume.mount(node).unwrap());
    let read_all = || mounts.each_ref().map(|mount| read_through(mount, IMAGE, 1));
    let wait_new = |new: &[u8]| {
        wait_until("the mounts to read what was written", PATIENCE, || {
            let old = read_all()
                .iter()
                .filter(|read| read.as_slice() != new)
                .count();
            if old == 0 {
                Ok(())
            } else {
                Err(format!("{old} read old pages"))
            }
        })
        .unwrap();
    };
    read_all();
    let daemon = Daemon::serve(&volume, 0, &[]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let healed = write_at(&mut disk, 1, 1);
    daemon.wait_state("clean");
    wait_new(&healed);
    let times = [0, 1, 2].map(|brick| {
        let file = volume.brick_file(brick, IMAGE);
        xattr::get(file, "trusted.glusterfs.mdata")
            .unwrap()
            .unwrap()
    });
    assert!(times.iter().all(|time| *time == times[0]), "{times:?}");

    healer.stop();
    let behind = write_at(&mut disk, 2, 1);
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!volume.marks(IMAGE).unwrap().is_clean());
    wait_new(&behind);
}

/// Clients that have an image open and look at it all the time learn late that a copy is
/// marked, and go on reading it meanwhile.
#[test]
fn who_reads_while_a_session_writes_and_ends_does_not_keep_old_pages() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    volume.set_self_heal_daemon(false).unwrap();
    let mounts = [0, 1, 2].map(|node| volume.mount(node).unwrap());
    // Which copy the clients read follows from the gfid.
    for image in ["/a.img", "/b.img"] {
        volume.create_image(image, 4 * MIB, Fill::Noise).unwrap();
        let ends = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            for mount in &mounts {
                scope.spawn(|| {
                    let file = open_through(mount, image);
                    while !ends.load(Ordering::Relaxed) {
                        file.metadata().unwrap();
                        read_mebibyte(&file, 1);
                    }
                });
            }
            let daemon = Daemon::start(&volume, 0, image, &[]).wait_listening();
            let daemon = daemon.unwrap();
            let mut disk = FrontEnd::connect(daemon.socket());
            let written = write_at(&mut disk, 1, 1);
            drop(disk);
            assert_eq!(daemon.stop().code(), Some(0));
            // Longer than clients believe what they know of a file: for trouble, not for
            // what is to be seen.
            std::thread::sleep(Duration::from_millis(1500));
            ends.store(true, Ordering::Relaxed);
            written
        });
        for mount in &mounts {
            wait_until("the mount to read what was written", PATIENCE, || {
                match read_through(mount, image, 1) == written {
                    true => Ok(()),
                    false => Err(format!("{image}: old pages")),
                }
            })
            .unwrap();
        }
    }
}

#[test]
fn a_renamed_image_is_served_on_healed_and_found_by_its_new_name() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let node = volume.brick_node(0);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write_at(&mut disk, 1, 1);
    let mount = volume.mount(0).unwrap();
    fs::create_dir(mount.path().join("folder")).unwrap();
    let new = "/folder/new.img";
    let at = |name: &str| mount.path().join(name.trim_start_matches('/'));
    fs::rename(at(IMAGE), at(new)).unwrap();

    // Both peers' bricks restart, and the healer has not been there before.
    for brick in [1, 2] {
        volume.kill_brick(brick).unwrap();
    }
    daemon.wait_logged("lost", 2);
    volume.start_force().unwrap();
    daemon.wait_logged("is back and locked", 2);
    assert_eq!(daemon.status()["image"], new);
    daemon.wait_log("was renamed: it is gv0/folder/new.img now");
    let data = write_at(&mut disk, 2, 2);
    let (code, text) = run_on(
        node,
        &[
            "heal",
            &format!("gv0{new}"),
            "--wait",
            "--server",
            node.address(),
            "--run-dir",
            run_dir(node).to_str().unwrap(),
            "--state-dir",
            state_dir(node).to_str().unwrap(),
        ],
    );
    assert_eq!(code, Some(0), "{text}");
    assert!(volume.marks(new).unwrap().is_clean());
    assert!(volume.copies_equal(new).unwrap().are_equal());
    assert_eq!(disk.read(2 * MIB, MIB as usize, PATIENCE).unwrap(), data);

    // It is finished under a name that it gets when its session has ended.
    write_at(&mut disk, 3, 3);
    drop(disk);
    daemon.stop();
    let last = "/last.img";
    fs::rename(at(new), at(last)).unwrap();
    volume.set_self_heal_daemon(false).unwrap();
    let healer = Healer::start(node, &[]);
    wait_until("the image to be finished", PATIENCE, || {
        let marks = volume.marks(last).unwrap();
        let clean = marks.is_clean().then_some(());
        clean.ok_or_else(|| format!("{marks}\n{}", healer.log()))
    })
    .unwrap();
    assert!(volume.copies_equal(last).unwrap().are_equal());
}

/// Is the image in the index of files to heal of each of these bricks?
fn indexed(volume: &Volume, bricks: &[usize]) -> Vec<bool> {
    let in_index = |brick: &usize| {
        let gfid = xattr::get(volume.brick_file(*brick, IMAGE), "trusted.gfid");
        let gfid = Uuid::from_slice(&gfid.unwrap().unwrap()).unwrap();
        let index = volume.brick_dir(*brick).join(".glusterfs/indices/xattrop");
        index.join(gfid.to_string()).exists()
    };
    bricks.iter().map(in_index).collect()
}

#[test]
fn a_copy_that_is_added_while_an_image_is_served_is_filled_by_stock_gluster_afterwards() {
    // Each glusterd but the first carries it out at the same time, and writes the same file,
    // /tmp/gv0.tcp-fuse.vol (`generate_dummy_client_volfiles`): on one machine two are enough.
    let cluster = Cluster::start(2).unwrap();
    let volume = volume_with_image(&cluster, VolumeKind::Replica(2), &[]);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write_at(&mut disk, 1, 1);
    let volume = volume.add_brick(1).unwrap();
    let added = volume.brick_file(2, IMAGE);
    wait_until("the image to be made on the new brick", PATIENCE, || {
        let healing = volume.trigger_heal();
        let marks = volume.marks(IMAGE).unwrap();
        let made = added.exists() && marks.accuses(0, 2) && marks.accuses(1, 2);
        made.then_some(())
            .ok_or_else(|| format!("{healing:?}: {marks}"))
    })
    .unwrap();
    let healer = Healer::start(volume.brick_node(0), &[]);
    write_at(&mut disk, 2, 2);
    daemon.wait_state("clean");
    let marks = volume.marks(IMAGE).unwrap();
    assert!(!marks.accuses(0, 1) && marks.accuses(0, 2), "{marks}");
    assert_eq!(indexed(&volume, &[0, 1]), [true, true]);
    let warned = || {
        let warnings = daemon.status()["warnings"].to_string();
        let named = warnings.contains(&format!("{} came", volume.brick_name(2)));
        named.then_some(()).ok_or(warnings)
    };
    wait_until("the daemon to warn", PATIENCE, warned).unwrap();
    healer.stop();
    drop(disk);
    daemon.stop();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

#[test]
fn the_other_peer_is_healed_when_one_was_replaced_and_all_are_by_the_next_daemon() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write_at(&mut disk, 1, 1);
    let old = volume.brick_name(1);
    let volume = volume.replace_brick(1, 1).unwrap();
    let healer = Healer::start(volume.brick_node(0), &[]);
    write_at(&mut disk, 2, 2);
    wait_until("the peer that stayed to be healed", PATIENCE, || {
        let status = daemon.status();
        let stale = &status["copies"][2]["behind"]["bytes"];
        let warned = status["warnings"]
            .to_string()
            .contains(&format!("{old} went"));
        let healed = *stale == 0 && warned;
        healed
            .then_some(())
            .ok_or_else(|| format!("{status}\n{}", healer.log()))
    })
    .unwrap();
    drop(disk);
    let daemon = daemon.restart().wait_listening().unwrap();
    let mut disk = FrontEnd::connect(daemon.socket());
    write_at(&mut disk, 3, 3);
    drop(disk);
    assert_eq!(daemon.status()["warnings"].as_array().unwrap().len(), 0);
    healer.stop();
    daemon.stop();
    // Marks against the brick that went stay on the file, and are nobody's.
    wait_until("stock Gluster to finish", PATIENCE, || {
        let healing = volume.trigger_heal();
        let info = volume.heal_info(0).unwrap();
        let copies = volume.copies_equal(IMAGE);
        let equal = copies.is_ok_and(|copies| copies.are_equal());
        let finished = info.all_connected() && info.entries() == 0 && equal;
        finished
            .then_some(())
            .ok_or_else(|| format!("{healing:?} {info:?}"))
    })
    .unwrap();
}
