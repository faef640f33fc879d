//! What a healer meets: marks that somebody took away, marks that need not be, another healer
//! that ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::File;
use std::process::Stdio;

use bypass_harness::{Background, Cluster, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use support::daemon::{BINARY, Daemon, run_dir, run_on, state_dir};
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::locker::heal_waits;
use support::{IMAGE, PATIENCE, pattern, replica_3};

const MIB: usize = 1 << 20;

#[test]
fn a_peer_that_lost_its_mark_gets_it_again_before_anything_is_copied_to_it() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(0, &pattern(1, 0, MIB), PATIENCE).unwrap();
    let marks = volume.marks(IMAGE).unwrap();
    assert!(marks.accuses(1, 1), "{marks}");
    // As if it had been healed: it does not say any more that it misses data.
    let file = volume.brick_file(1, IMAGE);
    xattr::set(file, "trusted.afr.gv0-client-1", &[0; 12]).unwrap();

    let healer = Healer::start(volume.brick_node(0), &[]);
    // The healer at its next copy, or the session when it looks, whoever comes first.
    let noticed = || {
        let (session, healer) = (daemon.log(), healer.log());
        let noticed = session.contains("somebody removed marks of this session")
            || healer.contains("does not carry this session's mark");
        noticed.then_some(()).ok_or(session + &healer)
    };
    wait_until("the missing mark to be noticed", PATIENCE, noticed).unwrap();
    daemon.wait_state("clean");
    assert!(volume.marks(IMAGE).unwrap().is_clean());
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    drop((disk, healer, daemon));
}

#[test]
fn a_heal_in_the_foreground_goes_on_when_the_healer_that_was_at_work_ends() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    let healer = Healer::start(volume.brick_node(0), &["--bandwidth", "1M"]);
    for mebibyte in 0..32 {
        let at = mebibyte * MIB as u64;
        disk.write(at, &pattern(1, at, MIB), PATIENCE).unwrap();
    }
    wait_until("the healer to be at work", PATIENCE, || {
        let status = daemon.status();
        match status["heal"]["healer"]["pid"].as_u64() {
            Some(_) => Ok(()),
            None => Err(status.to_string()),
        }
    })
    .unwrap();
    let node = volume.brick_node(0);
    let said = node.place().dir().join("heal.log");
    let mut foreground = node.command(BINARY);
    foreground
        .args(["heal", &format!("{}{IMAGE}", volume.name()), "--wait"])
        .args(["--server", node.address(), "--run-dir"])
        .arg(run_dir(node))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&said).unwrap());
    let mut foreground = Background::start(&mut foreground).unwrap();
    // It says how far the other one is.
    wait_until("a line of progress", PATIENCE, || {
        let said = std::fs::read_to_string(&said).unwrap();
        said.contains("behind").then_some(()).ok_or(said)
    })
    .unwrap();
    healer.kill();
    assert_eq!(foreground.wait(PATIENCE).unwrap().code(), Some(0));
    assert!(volume.marks(IMAGE).unwrap().is_clean());
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    drop((disk, daemon));
}

#[test]
fn a_session_that_wrote_nothing_leaves_no_mark_though_a_brick_is_away() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    volume.kill_brick(2).unwrap();
    let daemon = Daemon::serve(&volume, 0, &[]);
    assert_eq!(daemon.status()["state"], "clean");
    assert_eq!(daemon.stop().code(), Some(0));
    let marks = volume.marks(IMAGE).unwrap();
    assert!(marks.is_clean(), "{marks}");
    // And one that wrote leaves those against the copy that misses it alone.
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(0, &pattern(1, 0, 4096), PATIENCE).unwrap();
    drop(disk);
    let healer = Healer::start(volume.brick_node(0), &[]);
    wait_until("brick 1 to be healed", PATIENCE, || {
        let marks = volume.marks(IMAGE).unwrap();
        let healed = !marks.accuses(0, 1) && !marks.accuses(1, 1);
        healed.then_some(()).ok_or(marks.to_string())
    })
    .unwrap();
    daemon.stop();
    drop(healer);
    let marks = volume.marks(IMAGE).unwrap();
    assert!(marks.accuses(0, 2) && marks.accuses(1, 2), "{marks}");
    assert!(!marks.accuses(0, 1) && !marks.accuses(1, 1), "{marks}");
}

/// Most bricks were lost for a moment, and a stock heal had them locked before the session
/// was back. It waits for the brick that the session still holds.
#[test]
fn a_stock_heal_that_waits_for_our_last_brick_does_not_keep_the_others() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 2, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(0, &pattern(1, 0, MIB), PATIENCE).unwrap();
    volume.kill_brick(0).unwrap();
    volume.kill_brick(1).unwrap();
    let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    volume.revive().unwrap();
    wait_until("a stock heal to wait", PATIENCE, || {
        volume.trigger_heal().map_err(|error| error.to_string())?;
        let waits = heal_waits(&volume, 2, IMAGE);
        waits.then_some(()).ok_or_else(String::new)
    })
    .unwrap();

    kill_process(pid, Signal::CONT).unwrap();
    disk.write(0, &pattern(2, 0, MIB), PATIENCE).unwrap();
    daemon.wait_log("turned away");
    let healer = Healer::start(volume.brick_node(2), &[]);
    daemon.wait_state("clean");
    assert!(volume.marks(IMAGE).unwrap().is_clean());
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    drop((disk, healer, daemon));
}

/// A healer that ends notes that nothing is left to do: of its own session, not of the one
/// that waited for its locks.
#[test]
fn a_daemon_that_waited_for_a_healer_is_not_taken_for_finished() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    // It would be at the image as soon as the daemon has ended.
    volume.set_self_heal_daemon(false).unwrap();
    let node = volume.brick_node(0);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    (0..8).for_each(|at| {
        let at = at * MIB as u64;
        disk.write(at, &pattern(1, at, MIB), PATIENCE).unwrap();
    });
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));

    // In a run directory of its own, where the daemon cannot ask it to give way.
    let (apart, state) = (node.place().dir().join("apart"), state_dir(node));
    let name = format!("{}{IMAGE}", volume.name());
    let brick = volume.brick_name(0);
    let mut args = vec![
        "heal",
        &name,
        "--wait",
        "--bandwidth",
        "2M",
        "--brick",
        &brick,
    ];
    args.extend(["--server", node.address()]);
    args.extend(["--run-dir", apart.to_str().unwrap()]);
    args.extend(["--state-dir", state.to_str().unwrap()]);
    std::thread::scope(|scope| {
        let heal = scope.spawn(|| run_on(node, &args));
        wait_until("the healer to open the image", PATIENCE, || {
            let sockets = std::fs::read_dir(&apart).map(Iterator::count);
            let open = sockets.is_ok_and(|count| count > 0);
            open.then_some(()).ok_or_else(String::new)
        })
        .unwrap();
        let daemon = Daemon::start(&volume, 0, IMAGE, &["--lock-timeout", "60s"]);
        daemon.wait_log("waiting for a lock");
        let (code, said) = heal.join().unwrap();
        assert_eq!(code, Some(0), "{said}");
        let daemon = daemon.wait_listening().unwrap();
        let kept = |end: &str| {
            let files = std::fs::read_dir(&state).unwrap().flatten();
            files
                .map(|file| file.path())
                .find(|path| path.extension().is_some_and(|found| found == end))
        };
        assert!(kept("map").is_some(), "the session's map was removed");
        let entry = std::fs::read_to_string(kept("json").unwrap()).unwrap();
        assert!(entry.contains("\"settled\": false"), "{entry}");
        assert_eq!(daemon.stop().code(), Some(0));
    });
}
