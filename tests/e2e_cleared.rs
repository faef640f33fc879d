//! Locks that an administrator takes away from a session (`gluster volume clear-locks`,
//! what guides tell for an image that hangs), while its guest writes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bypass_harness::{Cluster, Volume, wait_until};
use support::daemon::Daemon;
use support::front_end::FrontEnd;
use support::{IMAGE, PATIENCE, pattern, replica_3};

const BLOCK: usize = 65536;

/// Every copy is marked, and every brick locked, as often as all were cleared: the stock daemon
/// leaves the image alone. (While a session has not got all of them back it does not notice that
/// they are cleared again.)
fn wait_guarded(daemon: &Daemon, volume: &Volume, cleared: usize) {
    wait_until("marks and locks to be back", PATIENCE, || {
        let marks = volume.marks(IMAGE).unwrap();
        let status = daemon.status();
        let copies = status["copies"].as_array().unwrap();
        let log = daemon.log();
        let [gone, back] =
            ["looking failed on brick", "is back and locked"].map(|said| log.matches(said).count());
        let held = gone >= 3 * cleared
            && back >= gone
            && copies.iter().all(|copy| copy["reachable"] == true);
        let marked = (0..3).all(|by| marks.accuses(by, 1) && marks.accuses(by, 2));
        match held && marked {
            true => Ok(()),
            false => Err(format!("{marks} {status} {log}")),
        }
    })
    .unwrap();
}

#[test]
fn a_heal_underneath_a_session_whose_locks_were_cleared_leaves_no_copy_different_and_unmarked() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let mut written = Vec::new();
    let mut write = |disk: &mut FrontEnd, number: u64| {
        let data = pattern(number, 0, BLOCK);
        disk.write(number * BLOCK as u64, &data, PATIENCE).unwrap();
        written.push((number, data));
    };
    write(&mut disk, 0);
    assert!(!volume.marks(IMAGE).unwrap().is_clean());

    // The stock daemon is asked to heal as soon as nothing keeps it away. Sometimes it
    // is faster than the session's next look, which is seen in the daemon's log.
    for round in 1..=3 {
        volume.clear_locks(IMAGE, "inode").unwrap();
        let _ = volume.trigger_heal();
        for number in 0..8 {
            write(&mut disk, round * 8 + number);
        }
        daemon.wait_logged("locks of this session were taken away", round as usize);
        wait_guarded(&daemon, &volume, round as usize);
    }
    // Just before the end: there is no look any more but the last one.
    volume.clear_locks(IMAGE, "inode").unwrap();
    write(&mut disk, 40);
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    let marks = volume.marks(IMAGE).unwrap();
    assert!(
        marks.accuses(0, 1) && marks.accuses(0, 2),
        "the peers miss something: {marks}"
    );

    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    let copy = std::fs::read(volume.brick_file(1, IMAGE)).unwrap();
    for (number, data) in written {
        let at = number as usize * BLOCK;
        assert!(copy[at..at + BLOCK] == data, "block {number} is lost");
    }
}

#[test]
fn a_session_s_record_that_was_cleared_is_published_again() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(0, &pattern(1, 0, BLOCK), PATIENCE).unwrap();
    volume.clear_locks(IMAGE, "posix").unwrap();
    daemon.wait_logged("locks of this session were taken away", 1);
    wait_guarded(&daemon, &volume, 1);
    let refused = Daemon::try_serve(&volume, 1, &["--lock-timeout", "1s"])
        .err()
        .expect("locked");
    assert_eq!(refused.code, Some(40), "{}", refused.log);
    assert!(
        refused.log.contains(&daemon.pid().to_string()),
        "{}",
        refused.log
    );
    disk.write(0, &pattern(2, 0, BLOCK), PATIENCE).unwrap();
}
