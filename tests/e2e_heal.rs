//! The healer on a real volume: the other copies follow, the marks go, and whatever is
//! killed when, the copies are equal in the end.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bypass_harness::{Cluster, Fill, Volume, wait_until};
use support::daemon::{Daemon, heal, run_dir, run_on, state_dir};
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::locker::hold_session_lock;
use support::{IMAGE, IMAGE_BYTES, PATIENCE, pattern, replica_3};

const MIB: u64 = 1 << 20;

/// No counter on any brick, nothing in the heal index, copies equal.
fn assert_clean(volume: &Volume) {
    let marks = volume.marks(IMAGE).unwrap();
    assert!(marks.is_clean(), "{marks}");
    assert_eq!(volume.heal_info(1).unwrap().entries(), 0);
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

fn wait_marks(volume: &Volume, what: &str, fits: impl Fn(&bypass_harness::Marks) -> bool) {
    wait_until(what, PATIENCE, || {
        let marks = volume.marks(IMAGE).unwrap();
        fits(&marks).then_some(()).ok_or(marks.to_string())
    })
    .unwrap();
}

fn wait_clean(volume: &Volume) {
    wait_marks(volume, "no mark to be left", |marks| marks.is_clean());
}

/// Writes a mebibyte at each of these, with the same seed.
fn write_at(disk: &mut FrontEnd, seed: u64, mebibytes: impl IntoIterator<Item = u64>) {
    for mebibyte in mebibytes {
        let data = pattern(seed, mebibyte * MIB, MIB as usize);
        disk.write(mebibyte * MIB, &data, PATIENCE).unwrap();
    }
}

/// What the healers sent to this copy, in bytes, and compared.
fn moved(daemon: &Daemon, peer: usize) -> (u64, u64) {
    let figures = &daemon.status()["heal"]["peers"][peer]["figures"];
    let bytes = |name: &str| figures[name].as_u64().unwrap();
    (bytes("bytes_sent"), bytes("bytes_compared"))
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
    let (sent, compared) = moved(&daemon, 0);
    assert_eq!(
        (sent, compared),
        (3 * (3 << 16), 0),
        "more than was written"
    );
    drop(disk);
    assert_eq!(healer.stop().code(), Some(0));
    assert_eq!(daemon.stop().code(), Some(0));
    assert_clean(&volume);
}

#[test]
fn a_peer_that_is_away_holds_up_no_other_and_is_healed_when_it_returns() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    volume.kill_brick(2).unwrap();
    daemon.wait_log("lost");
    write_at(&mut disk, 1, [3, 9]);

    wait_marks(&volume, "only the absent copy to be accused", |marks| {
        marks.accuses(0, 2) && marks.accuses(1, 2) && !marks.accuses(0, 1) && !marks.accuses(1, 1)
    });
    // The other one could be served from now on.
    let node = volume.brick_node(1);
    let name = format!("gv0{IMAGE}");
    let (_, seen) = run_on(node, &["status", &name, "--server", node.address()]);
    assert!(seen.contains("fresh"), "{seen}");

    volume.start_force().unwrap();
    daemon.wait_state("clean");
    assert_clean(&volume);
    drop((disk, healer, daemon));
}

#[test]
fn a_killed_healer_and_a_killed_daemon_leave_what_the_next_healer_finishes() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    volume.set_self_heal_daemon(false).unwrap();
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    // Slow enough to be killed on the way.
    let healer = Healer::start(volume.brick_node(0), &["--bandwidth", "4M"]);
    write_at(&mut disk, 1, 0..48);
    wait_until("the heal to be under way", PATIENCE, || {
        let status = daemon.status();
        let sent = status["heal"]["peers"][0]["figures"]["bytes_sent"].as_u64();
        sent.is_some_and(|sent| sent > 0)
            .then_some(())
            .ok_or(status.to_string())
    })
    .unwrap();
    healer.kill();
    drop(disk);
    daemon.kill();
    let marks = volume.marks(IMAGE).unwrap();
    assert!(marks.accuses(0, 1) && marks.accuses(0, 2), "{marks}");

    // Another opening is under way: that of a healer on a stale copy, say.
    let opening = hold_session_lock(&volume, 1, IMAGE);
    let healer = Healer::start(volume.brick_node(0), &[]);
    healer.wait_log("waiting for a lock");
    drop(opening);
    wait_clean(&volume);
    assert_clean(&volume);
    healer.wait_log("finishing");
    let given_up = healer.log().contains("is not finished yet");
    assert!(!given_up, "it has waited: {}", healer.log());
    assert_eq!(healer.stop().code(), Some(0));
    let mut documents = std::fs::read_dir(state_dir(volume.brick_node(0))).unwrap();
    let map = documents.find(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".map")
    });
    assert!(map.is_none(), "a map that is not needed is left: {map:?}");
}

#[test]
fn what_a_stopped_healer_leaves_stock_gluster_finishes_alone() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let healer = Healer::start(volume.brick_node(0), &["--bandwidth", "4M"]);
    write_at(&mut disk, 1, 0..32);
    healer.wait_log("following");
    assert_eq!(healer.stop().code(), Some(0));
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert_clean(&volume);
}

#[test]
fn a_daemon_takes_its_image_over_from_a_healer_that_finishes_it() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    volume.set_self_heal_daemon(false).unwrap();
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write_at(&mut disk, 1, 0..40);
    drop(disk);
    daemon.kill();
    let healer = Healer::start(volume.brick_node(0), &["--bandwidth", "1M"]);
    healer.wait_log("finishing");
    let daemon = Daemon::serve(&volume, 0, &["--lock-timeout", "0s"]);
    let status = daemon.status();
    assert_eq!(status["state"], "dirty");
    let (code, said) = run_on(
        volume.brick_node(0),
        &[
            "bandwidth",
            "unlimited",
            "--run-dir",
            run_dir(volume.brick_node(0)).to_str().unwrap(),
        ],
    );
    assert_eq!(code, Some(0), "{said}");
    daemon.wait_state("clean");
    assert_clean(&volume);
    drop((healer, daemon));
}

#[test]
fn an_image_is_healed_in_the_foreground_whether_it_is_served_or_not() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    volume.set_self_heal_daemon(false).unwrap();
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write_at(&mut disk, 1, [1, 2, 3]);
    let (code, said) = heal(&volume, 0, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("clean") && said.contains("6.00 MiB"),
        "{said}"
    );
    assert_clean(&volume);

    write_at(&mut disk, 2, [5]);
    drop(disk);
    daemon.kill();
    let (code, said) = heal(&volume, 0, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("2.00 MiB"),
        "sends more than was written: {said}"
    );
    assert_clean(&volume);
    let (code, said) = heal(&volume, 0, &[]);
    assert_eq!(code, Some(0), "nothing to do: {said}");

    // Not clean, and why.
    volume.kill_brick(1).unwrap();
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write_at(&mut disk, 3, [7]);
    let (code, said) = heal(&volume, 0, &[]);
    assert_eq!(code, Some(70), "{said}");
    assert!(
        said.contains(&volume.brick_name(1)) && said.contains("away"),
        "{said}"
    );
}

#[test]
fn what_a_map_does_not_explain_is_compared_and_little_is_sent() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    volume.set_self_heal_daemon(false).unwrap();
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write_at(&mut disk, 1, [4]);
    drop(disk);
    daemon.kill();
    // A lost state directory: nobody knows what the peers miss.
    std::fs::remove_dir_all(state_dir(volume.brick_node(0))).unwrap();
    let (code, said) = heal(&volume, 0, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("Sent 2.00 MiB"), "{said}");
    let compared = 2 * IMAGE_BYTES / MIB;
    assert!(
        said.contains(&format!("compared {compared}.00 MiB")),
        "{said}"
    );
    assert_clean(&volume);
}

#[test]
fn a_write_through_a_mount_that_missed_a_peer_is_not_forgotten_by_an_older_map() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    volume.set_self_heal_daemon(false).unwrap();
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    volume.kill_brick(2).unwrap();
    daemon.wait_log("lost");
    write_at(&mut disk, 1, [1]);
    let (code, said) = heal(&volume, 0, &[]);
    assert_eq!(code, Some(70), "{said}");
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));

    // An ordinary client writes elsewhere in the image while that brick is still away.
    let mount = volume.mount(0).unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(mount.path().join(IMAGE.trim_start_matches('/')))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &pattern(9, 0, 65536), 20 * MIB).unwrap();
    file.sync_all().unwrap();
    drop((file, mount));
    volume.start_force().unwrap();
    volume.wait_bricks_up().unwrap();

    let (code, said) = heal(&volume, 0, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert_clean(&volume);
}

#[test]
fn a_replaced_disk_with_an_empty_copy_is_filled_again() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write_at(&mut disk, 1, [2]);
    daemon.wait_state("clean");

    volume.kill_brick(2).unwrap();
    daemon.wait_log("lost");
    let brick = volume.brick_name(2);
    cluster
        .gluster(0, &["volume", "reset-brick", "gv0", &brick, "start"])
        .unwrap();
    std::fs::remove_dir_all(volume.brick_dir(2)).unwrap();
    let again = [
        "volume",
        "reset-brick",
        "gv0",
        &brick,
        &brick,
        "commit",
        "force",
    ];
    cluster.gluster(0, &again).unwrap();
    volume.wait_bricks_up().unwrap();
    // The names are stock Gluster's to heal, the data ours.
    wait_until("the copy to be whole again", PATIENCE, || {
        let _ = volume.trigger_heal();
        match volume.copies_equal(IMAGE) {
            Ok(copies) if copies.are_equal() => Ok(()),
            other => Err(format!("{other:?}\n{:#}", daemon.status())),
        }
    })
    .unwrap();
    daemon.wait_state("clean");
    wait_clean(&volume);
    drop((disk, healer, daemon));
}

#[test]
fn holes_stay_holes_at_the_peers() {
    let cluster = Cluster::start(3).unwrap();
    let volume = cluster
        .create_volume("gv0", bypass_harness::VolumeKind::Replica(3), &[])
        .unwrap();
    volume.start().unwrap();
    volume
        .create_image(IMAGE, IMAGE_BYTES, Fill::Sparse)
        .unwrap();
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write_at(&mut disk, 1, [1]);
    let zeros = vec![0; MIB as usize];
    for at in 8..40 {
        disk.write(at * MIB, &zeros, PATIENCE).unwrap();
    }
    let (code, said) = heal(&volume, 0, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("Sent 2.00 MiB, zeroed 64.00 MiB"), "{said}");
    assert_clean(&volume);
    let blocks = |brick| {
        let meta = std::fs::metadata(volume.brick_file(brick, IMAGE)).unwrap();
        std::os::unix::fs::MetadataExt::blocks(&meta) * 512
    };
    assert!(blocks(0) > 32 * MIB, "the guest's zeros take room");
    assert!(
        blocks(1) < 4 * MIB && blocks(2) < 4 * MIB,
        "{} {}",
        blocks(1),
        blocks(2)
    );
}
