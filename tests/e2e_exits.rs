//! Whatever ends a `serve`, and whatever does not: what it leaves behind, stray signals,
//! a second daemon, no more file descriptors.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bypass_harness::{Cluster, Volume, VolumeKind};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use support::daemon::{Daemon, run_dir, run_on, state_dir};
use support::front_end::{FrontEnd, assert_reads, write};
use support::healer::Healer;
use support::{IMAGE, replica_3, volume_with_image};

const FENCE: &str = "trusted.glusterfs.enforce-mandatory-lock";
const FENCING: [(&str, &str); 2] = [
    ("locks.mandatory-locking", "optimal"),
    ("features.enforce-mandatory-lock", "on"),
];

/// No fence on any copy; no lock and no record, so that another host has the image at once;
/// and a map that was closed.
fn assert_nothing_is_left(volume: &Volume, after: &str) {
    for brick in 0..3 {
        let file = volume.brick_file(brick, IMAGE);
        let fence = xattr::get(file, FENCE).unwrap();
        assert_eq!(fence, None, "{after}: brick {brick}");
    }
    for host in [1, 0] {
        let next = Daemon::serve(volume, host, &["--lock-timeout", "0s"]);
        let log = next.log();
        assert!(
            !log.contains("did not close the dirty map"),
            "{after}: {log}"
        );
        assert_eq!(next.stop().code(), Some(0), "{after}");
    }
}

#[test]
fn a_serve_that_is_refused_leaves_nothing_behind_early_or_late() {
    let cluster = Cluster::start(3).unwrap();
    let volume = volume_with_image(&cluster, VolumeKind::Replica(3), &FENCING);
    let node = volume.brick_node(0);
    let place = node.place().dir();
    let at = |name: &str| place.join(name).to_str().unwrap().to_owned();

    // What shows before is refused before: the image is not touched at all.
    let file = at("file");
    fs::write(&file, "").unwrap();
    let (nowhere, on_file) = (at("nope/x"), format!("{file}/x"));
    let (metrics, text) = (
        format!("unix:{nowhere}"),
        format!("textfile:{nowhere}.prom"),
    );
    let (name, state) = (volume.brick_name(0), at("untouched"));
    let options = [
        (51, vec!["--socket-path", &nowhere]),
        (
            52,
            vec!["--socket-path", "s", "--serial", "a serial of 22 letters"],
        ),
        (51, vec!["--socket-path", "s", "--metrics", &metrics]),
        (51, vec!["--socket-path", "s", "--metrics", &text]),
        (51, vec!["--socket-path", "s", "--run-dir", &on_file]),
    ];
    for (code, options) in options {
        let mut args = vec![
            "serve",
            "--server",
            node.address(),
            "--volume",
            volume.name(),
        ];
        args.extend(["--image", IMAGE, "--brick", &name, "--state-dir", &state]);
        args.extend(&options);
        let (found, said) = run_on(node, &args);
        assert_eq!(found, Some(code), "{options:?}: {said}");
        assert!(
            !Path::new(&state).exists(),
            "{options:?}: a session was opened"
        );
    }

    // What shows only when the session is open: while it waits for the image, something gets
    // into its way.
    let late = |metrics: &str, spoil: &dyn Fn(&Daemon)| {
        let first = Daemon::serve(&volume, 0, &[]);
        let more = ["--lock-timeout", "60s", "--metrics", metrics];
        let mut second = Daemon::start(&volume, 0, IMAGE, &more);
        second.wait_log("waiting for a lock");
        spoil(&second);
        assert_eq!(first.stop().code(), Some(0));
        second.ended()
    };
    let free = format!("unix:{}", at("m.sock"));
    let (code, said) = late(&free, &|daemon| fs::write(daemon.socket(), "").unwrap());
    assert_eq!(code, Some(51), "{said}");
    assert_nothing_is_left(&volume, "no socket for front-ends");

    let (code, said) = late(&free, &|_| fs::write(at("m.sock"), "").unwrap());
    assert_eq!(code, Some(51), "{said}");
    assert_nothing_is_left(&volume, "no socket for metrics");

    let runs = run_dir(node);
    let textfile = format!("textfile:{}", at("m.prom"));
    let (code, said) = late(&textfile, &|_| {
        fs::remove_dir_all(&runs).unwrap();
        fs::write(&runs, "").unwrap();
    });
    assert_eq!(code, Some(51), "{said}");
    fs::remove_file(&runs).unwrap();
    assert_nothing_is_left(&volume, "no control socket");

    // Its end is wished for while it opens.
    let first = Daemon::serve(&volume, 1, &[]);
    let second = Daemon::start(&volume, 0, IMAGE, &["--lock-timeout", "60s"]);
    second.wait_log("waiting for a lock");
    assert_eq!(second.stop().code(), Some(40));
    assert_eq!(first.stop().code(), Some(0));
    assert_nothing_is_left(&volume, "ended while it waited");
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

#[test]
fn a_daemon_outlives_stray_signals_second_daemons_and_a_want_of_file_descriptors() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let node = volume.brick_node(0);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut healer = Healer::start(node, &[]);
    healer.wait_log("healing the images of this host");

    // Others on its socket, on the healer's.
    let socket = daemon.socket().to_str().unwrap();
    let second = Daemon::start_at(&volume, 0, socket, &[]).wait_listening();
    assert_eq!(second.err().unwrap().code, Some(50));
    let (run, state) = (run_dir(node), state_dir(node));
    let folders = [run.to_str().unwrap(), state.to_str().unwrap()];
    let heald = ["heald", "--run-dir", folders[0], "--state-dir", folders[1]];
    let (code, said) = run_on(node, &heald);
    assert_eq!(code, Some(50), "{said}");
    assert!(
        said.contains("a healer runs on this host already"),
        "{said}"
    );
    let log = daemon.log();
    assert!(!log.contains("front-end"), "it noticed something: {log}");

    // Signals that are not meant to end it.
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, 1, 1);
    let stray = [
        Signal::HUP,
        Signal::USR2,
        Signal::ALARM,
        Signal::IO,
        Signal::POWER,
    ];
    for signal in stray {
        send(daemon.pid(), signal);
        send(healer.pid(), signal);
    }
    send(healer.pid(), Signal::USR1);
    daemon.wait_logged("nothing is done about it", stray.len());
    healer.wait_log("SIGUSR1: nothing is done about it");
    assert_reads(&mut disk, 1, 1);
    drop(disk);
    daemon.wait_log("front-end gone");
    assert!(healer.exited().is_none(), "{}", healer.log());

    // No file descriptor is left to take a connection with. Each is wanted once, and then
    // again after a pause: not told again, and not as fast as it goes.
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap());
    let limit = |current| {
        let (current, maximum) = (Some(current), Some(4096));
        prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap()
    };
    limit(3);
    let waits = UnixStream::connect(daemon.socket()).unwrap();
    daemon.wait_logged("no connection can be taken", 1);
    let is_control = |path: &PathBuf| path.extension().is_some_and(|end| end == "control");
    let mut control = fs::read_dir(&run)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let _asks = UnixStream::connect(control.find(is_control).unwrap()).unwrap();
    daemon.wait_logged("no connection can be taken", 2);
    limit(4096);
    daemon.wait_logged("connections are taken again", 2);
    assert_eq!(daemon.logged("Too many open files"), 2, "{}", daemon.log());
    drop(waits);
    daemon.wait_logged("front-end gone", 2);
    let mut disk = FrontEnd::connect(daemon.socket());
    assert_reads(&mut disk, 1, 1);
    drop(disk);
    assert_eq!(healer.stop().code(), Some(0));
    assert_eq!(daemon.stop().code(), Some(0));
}
