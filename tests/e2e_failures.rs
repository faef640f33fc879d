//! Bricks, links and daemons that fail while an image is served.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use bypass_harness::{Cluster, VolumeKind, wait_until};
use support::daemon::Daemon;
use support::front_end::{Failed, FrontEnd};
use support::locker::hold_session_lock;
use support::{IMAGE, PATIENCE, pattern, replica_3, volume_with_image};

/// Long enough to see that nothing comes.
const SHORT: Duration = Duration::from_millis(500);

#[test]
fn a_peer_brick_killed_and_returned_goes_unnoticed_and_is_locked_and_marked_again() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());

    // Away when the marks are stored.
    volume.kill_brick(2).unwrap();
    daemon.wait_log("lost");
    disk.write(0, &pattern(1, 0, 65536), PATIENCE).unwrap();
    let marks = volume.marks(IMAGE).unwrap();
    assert!(
        marks.accuses(0, 1) && marks.accuses(0, 2) && marks.accuses(1, 2),
        "{marks}"
    );
    assert!(!marks.accuses(2, 2), "{marks}");

    volume.start_force().unwrap();
    wait_until("the returned brick to be marked", PATIENCE, || {
        let marks = volume.marks(IMAGE).unwrap();
        if marks.accuses(2, 1) && marks.accuses(2, 2) {
            Ok(())
        } else {
            Err(marks.to_string())
        }
    })
    .unwrap();
    wait_until("the returned brick to be locked", PATIENCE, || {
        let status = daemon.status();
        if status["copies"][2]["reachable"] == true {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .unwrap();
    let refused = Daemon::try_serve(&volume, 2, &["--lock-timeout", "1s"])
        .err()
        .expect("locked");
    assert_eq!(refused.code, Some(40), "{}", refused.log);

    // The stock daemon is kept away for as long as the image is open.
    // Refused until the self-heal daemon has found the returned brick.
    wait_until("the heal to be asked for", PATIENCE, || {
        volume.trigger_heal().map_err(|error| error.to_string())
    })
    .unwrap();
    disk.write(1 << 20, &pattern(2, 1 << 20, 65536), PATIENCE)
        .unwrap();
    assert!(!volume.marks(IMAGE).unwrap().is_clean());
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

#[test]
fn the_local_brick_process_may_die_and_come_back_while_the_guest_reads_and_writes() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    volume.kill_brick(0).unwrap();
    daemon.wait_log("lost");
    let data = pattern(4, 0, 65536);
    disk.write(0, &data, PATIENCE).unwrap();
    assert!(
        disk.read(0, data.len(), PATIENCE).unwrap() == data,
        "not what was written"
    );
    let marks = volume.marks(IMAGE).unwrap();
    assert!(
        marks.accuses(1, 1) && marks.accuses(1, 2) && marks.accuses(2, 1),
        "{marks}"
    );
    volume.start_force().unwrap();
    wait_until("the local brick to be marked", PATIENCE, || {
        let marks = volume.marks(IMAGE).unwrap();
        if marks.accuses(0, 1) && marks.accuses(0, 2) {
            Ok(())
        } else {
            Err(marks.to_string())
        }
    })
    .unwrap();
    drop(disk);
    daemon.stop();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    assert!(
        std::fs::read(volume.brick_file(1, IMAGE)).unwrap()[..65536] == data,
        "not what was written"
    );
}

#[test]
fn what_was_written_while_the_local_brick_process_was_down_wins_the_heal_after_a_kill() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    volume.kill_brick(0).unwrap();
    daemon.wait_log("lost");
    let data = pattern(15, 0, 65536);
    disk.write(0, &data, PATIENCE).unwrap();
    disk.flush(PATIENCE).unwrap();
    daemon.kill();

    volume.start_force().unwrap();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    let copy = std::fs::read(volume.brick_file(2, IMAGE)).unwrap();
    assert!(copy[..65536] == data, "a stale copy was the heal's source");
}

#[test]
fn a_heal_that_runs_while_every_brick_restarts_loses_nothing() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &["--quorum-timeout", "10m"]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(0, &pattern(16, 0, 65536), PATIENCE).unwrap();
    (0..3).for_each(|brick| volume.kill_brick(brick).unwrap());
    daemon.wait_state("stalled");
    assert_eq!(
        disk.write(65536, &pattern(17, 65536, 4096), SHORT),
        Err(Failed::NoAnswer)
    );
    volume.start_force().unwrap();
    disk.finish(PATIENCE).unwrap();
    daemon.wait_state("dirty");
    let marks = volume.marks(IMAGE).unwrap();
    assert!(marks.accuses(0, 1) && marks.accuses(0, 2), "{marks}");
    drop(disk);
    daemon.kill();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    let copy = std::fs::read(volume.brick_file(1, IMAGE)).unwrap();
    assert!(
        copy[65536..69632] == pattern(17, 65536, 4096),
        "the late write is missing"
    );
}

#[test]
fn a_clean_image_without_quorum_stalls_the_first_write_until_quorum_is_back() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &["--quorum-timeout", "10m"]);
    let mut disk = FrontEnd::connect(daemon.socket());
    cluster.cut(0).unwrap();
    wait_until("both peers to be noticed as lost", PATIENCE, || {
        let lost = daemon.log().matches("lost:").count();
        if lost >= 2 { Ok(()) } else { Err(daemon.log()) }
    })
    .unwrap();
    let data = pattern(5, 0, 4096);
    assert_eq!(disk.write(0, &data, SHORT), Err(Failed::NoAnswer));
    assert_eq!(daemon.status()["state"], "stalled");
    daemon.wait_log("no quorum");
    assert!(
        std::fs::read(volume.brick_file(0, IMAGE)).unwrap()[..4096] != data,
        "written without marks"
    );

    cluster.restore(0).unwrap();
    disk.finish(PATIENCE).unwrap();
    let marks = volume.marks(IMAGE).unwrap();
    assert!(marks.accuses(0, 1) && marks.accuses(0, 2), "{marks}");
    assert!(
        disk.read(0, data.len(), PATIENCE).unwrap() == data,
        "not what was written"
    );
}

#[test]
fn a_stalled_write_fails_after_the_quorum_timeout_and_writes_work_again_with_quorum() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &["--quorum-timeout", "1s"]);
    let mut disk = FrontEnd::connect(daemon.socket());
    volume.kill_brick(1).unwrap();
    volume.kill_brick(2).unwrap();
    wait_until("both peers to be noticed as lost", PATIENCE, || {
        let lost = daemon.log().matches("lost:").count();
        if lost >= 2 { Ok(()) } else { Err(daemon.log()) }
    })
    .unwrap();
    let data = pattern(6, 0, 4096);
    assert!(matches!(
        disk.write(0, &data, PATIENCE),
        Err(Failed::Error(_))
    ));
    assert_eq!(daemon.status()["state"], "failed");
    disk.read(0, 4096, PATIENCE).unwrap();
    assert!(volume.marks(IMAGE).unwrap().is_clean());
    volume.start_force().unwrap();
    wait_until("writes to work again", PATIENCE, || {
        match disk.write(0, &data, PATIENCE) {
            Ok(()) => Ok(()),
            Err(error) => Err(format!("{error:?}: {}", daemon.log())),
        }
    })
    .unwrap();
}

#[test]
fn a_dirty_image_is_written_on_while_cut_off_and_its_stale_copies_are_refused_elsewhere() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(0, &pattern(8, 0, 4096), PATIENCE).unwrap();
    cluster.cut(0).unwrap();
    let late = pattern(9, 4096, 4096);
    disk.write(4096, &late, PATIENCE).unwrap();

    let refused = Daemon::start(&volume, 1, IMAGE, &["--lock-timeout", "90s"]);
    let refused = refused.wait_listening().err().expect("stale");
    assert_eq!(refused.code, Some(42), "{}", refused.log);
    assert!(
        refused.log.contains(&volume.brick_name(0)),
        "{}",
        refused.log
    );
    // A mount in the majority is refused as well: it would see old data.
    let mount = volume.mount(1).unwrap();
    let error = std::fs::read(mount.path().join("vm1.img")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(107), "{error}");
    drop(mount);

    cluster.restore(0).unwrap();
    wait_until(
        "the cut-off session to lock its peers again",
        PATIENCE,
        || {
            let status = daemon.status();
            let back = (0..3).all(|copy| status["copies"][copy]["reachable"] == true);
            if back { Ok(()) } else { Err(daemon.log()) }
        },
    )
    .unwrap();
    assert!(
        disk.read(4096, late.len(), PATIENCE).unwrap() == late,
        "not what was written"
    );
    disk.write(8192, &late, PATIENCE).unwrap();
    drop(disk);
    daemon.stop();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

#[test]
fn a_peer_that_was_away_for_the_marks_does_not_become_fresh_when_the_writer_s_host_is_lost() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    cluster.crash_node(2).unwrap();
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let data = pattern(10, 0, 4096);
    disk.write(0, &data, PATIENCE).unwrap();
    disk.flush(PATIENCE).unwrap();
    daemon.kill();
    cluster.crash_node(0).unwrap();
    cluster.boot_node(2).unwrap();

    // Brick 1 accuses itself and brick 2; brick 2 carries no mark at all.
    for brick in [1, 2] {
        wait_until(
            "the copy to be refused as stale",
            PATIENCE,
            || match Daemon::try_serve(&volume, brick, &["--lock-timeout", "1s"]) {
                Ok(_) => panic!("a stale copy was served"),
                Err(refused) if refused.code == Some(42) => Ok(()),
                Err(refused) => Err(refused.log),
            },
        )
        .unwrap();
    }
    let mount = volume.mount(1).unwrap();
    std::fs::read(mount.path().join("vm1.img")).unwrap_err();
    drop(mount);

    cluster.boot_node(0).unwrap();
    volume.wait_bricks_up().unwrap();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    assert!(
        std::fs::read(volume.brick_file(2, IMAGE)).unwrap()[..4096] == data,
        "not what was written"
    );
}

#[test]
fn a_clean_session_that_was_cut_off_stops_when_somebody_wrote_elsewhere_meanwhile() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let cut_off = Daemon::serve(&volume, 0, &["--quorum-timeout", "10m"]);
    let mut old_disk = FrontEnd::connect(cut_off.socket());
    old_disk.read(0, 512, PATIENCE).unwrap();
    cluster.cut(0).unwrap();
    // The bricks notice the dead connection in their own time.
    let other = Daemon::start(&volume, 1, IMAGE, &["--lock-timeout", "2m"])
        .wait_listening()
        .unwrap();
    let mut disk = FrontEnd::connect(other.socket());
    disk.write(0, &pattern(11, 0, 4096), PATIENCE).unwrap();
    cluster.restore(0).unwrap();
    cut_off.wait_state("stopped");
    assert!(matches!(
        old_disk.write(0, &[0; 512], PATIENCE),
        Err(Failed::Error(_))
    ));
    assert!(matches!(
        old_disk.read(0, 512, PATIENCE),
        Err(Failed::Error(_))
    ));
    drop(old_disk);
    let (status, log) = cut_off.wait_end(PATIENCE);
    assert_eq!(status.code(), Some(60), "{log}");
    // The other one goes on.
    disk.write(4096, &pattern(12, 4096, 4096), PATIENCE)
        .unwrap();
    assert_eq!(other.status()["state"], "dirty");
}

/// A brick keeps the locks of a daemon that was killed behind a broken link until it gives
/// up the connection. The session that followed must not take them for a rival's.
#[test]
fn a_dirty_session_outlasts_a_dead_one_s_lock_on_the_first_brick_that_is_back() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(0, &pattern(16, 0, 4096), PATIENCE).unwrap();
    volume.kill_brick(1).unwrap();
    volume.kill_brick(2).unwrap();
    wait_until("both losses to be noticed", PATIENCE, || {
        let status = daemon.status();
        match [1, 2].map(|brick| &status["copies"][brick]["reachable"] == false) {
            [true, true] => Ok(()),
            _ => Err(status["copies"].to_string()),
        }
    })
    .unwrap();
    // Brick 2 is back, but locked before the daemon can reach it.
    cluster.part(0, 2).unwrap();
    cluster.kill_glusterd(2).unwrap();
    cluster.restart_glusterd(2).unwrap();
    let dead = hold_session_lock(&volume, 2, IMAGE);
    cluster.rejoin(0, 2).unwrap();
    daemon.wait_log("locked by another session: host dead");
    let data = pattern(17, 4096, 4096);
    disk.write(4096, &data, PATIENCE).unwrap();
    assert_eq!(daemon.status()["state"], "dirty");

    drop(dead);
    daemon.wait_log("is back and locked");
    disk.write(8192, &data, PATIENCE).unwrap();
    drop(disk);
    daemon.stop();
    volume.revive().unwrap();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    let copy = std::fs::read(volume.brick_file(2, IMAGE)).unwrap();
    assert!(copy[4096..8192] == data, "not what was written");
}

#[test]
fn an_arbiter_carries_marks_but_is_never_marked_itself() {
    let cluster = Cluster::start(3).unwrap();
    let volume = volume_with_image(&cluster, VolumeKind::Arbiter, &[]);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(0, &pattern(13, 0, 4096), PATIENCE).unwrap();
    let marks = volume.marks(IMAGE).unwrap();
    for on in 0..3 {
        assert!(marks.accuses(on, 1) && !marks.accuses(on, 2), "{marks}");
    }
    drop(disk);
    daemon.stop();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

#[test]
fn two_copies_follow_afr_s_quorum_rule_with_the_first_brick() {
    let cluster = Cluster::start(2).unwrap();
    let volume = volume_with_image(&cluster, VolumeKind::Replica(2), &[]);
    volume.kill_brick(1).unwrap();
    let first = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(first.socket());
    disk.write(0, &pattern(14, 0, 4096), PATIENCE).unwrap();
    drop(disk);
    first.stop();
    volume.start_force().unwrap();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    volume.kill_brick(0).unwrap();
    let second = Daemon::try_serve(&volume, 1, &["--lock-timeout", "1s"])
        .err()
        .expect("no quorum");
    assert_eq!(second.code, Some(44), "{}", second.log);
}
