//! A daemon that is replaced by a new process while it serves: the front-end goes on with
//! its connection, nobody else gets the image, and what cannot be is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bypass_harness::{
    Cluster, Disk, FioJob, Guest, GuestConfig, GuestImage, Pattern, Verify, VolumeKind, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use support::daemon::{BINARY, Daemon};
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::{IMAGE, IMAGE_BYTES, PATIENCE, pattern, replica_3, volume_with_image};

const MIB: u64 = 1 << 20;
/// What a daemon says that has taken over.
const UPGRADED: &str = "serving again, upgraded,";
const REFUSED: &str = "not upgraded:";
/// What a program answers that understands what the daemon leaves to it.
const UNDERSTOOD: &str = "bypass-blk resume 1";
/// Guests are slow here: translated, two cores.
const FIO_PATIENCE: Duration = Duration::from_secs(300);

fn ask(daemon: &Daemon) {
    let pid = Pid::from_raw(daemon.pid() as i32).unwrap();
    kill_process(pid, Signal::USR1).unwrap();
}

fn count(daemon: &Daemon, text: &str) -> usize {
    daemon.log().matches(text).count()
}

fn wait_count(daemon: &Daemon, text: &str, wanted: usize) {
    wait_until(format!("{wanted} times {text:?}"), PATIENCE, || {
        let found = count(daemon, text);
        (found >= wanted).then_some(()).ok_or_else(|| daemon.log())
    })
    .unwrap();
}

/// Upgrades, and waits until it is done.
fn upgrade(daemon: &Daemon) {
    let before = count(daemon, UPGRADED);
    ask(daemon);
    wait_count(daemon, UPGRADED, before + 1);
}

/// Asks for an upgrade that is refused, with these words.
fn refused(daemon: &Daemon, why: &str) {
    let before = (count(daemon, REFUSED), count(daemon, UPGRADED));
    ask(daemon);
    wait_count(daemon, REFUSED, before.0 + 1);
    assert!(daemon.log().contains(why), "{why}: {}", daemon.log());
    assert_eq!(count(daemon, UPGRADED), before.1);
}

fn write(disk: &mut FrontEnd, seed: u64, mebibyte: u64) {
    let at = mebibyte * MIB;
    disk.write(at, &pattern(seed, at, MIB as usize), PATIENCE)
        .unwrap();
}

fn assert_reads(disk: &mut FrontEnd, seed: u64, mebibyte: u64) {
    let at = mebibyte * MIB;
    let read = disk.read(at, MIB as usize, PATIENCE).unwrap();
    assert!(
        read == pattern(seed, at, MIB as usize),
        "mebibyte {mebibyte}"
    );
}

/// No brick's connection, and so no lock, was ever lost.
fn assert_never_away(daemon: &Daemon) {
    let log = daemon.log();
    for word in [
        " lost: ",
        "is back and locked",
        "not joined yet",
        "starting anew",
    ] {
        assert!(!log.contains(word), "{word}: {log}");
    }
}

/// An executable script.
fn program(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("program");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_front_end_writes_on_through_upgrades_and_nobody_else_ever_gets_the_image() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut tries = 0;
            while !over.load(Ordering::SeqCst) {
                let refused = Daemon::try_serve(&volume, 1, &["--lock-timeout", "1ms"]);
                let refused = refused.err().expect("another host got the image");
                assert!(matches!(refused.code, Some(40 | 42)), "{refused:?}");
                tries += 1;
            }
            tries
        });
        let mut disk = FrontEnd::connect(daemon.socket());
        let session = daemon.status()["holder"].clone();
        let files = || {
            fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
                .unwrap()
                .count()
        };
        let (mut seed, mut longest) = (0, Duration::ZERO);
        let mut open = 0;
        for round in 1..=6 {
            ask(&daemon);
            loop {
                let done = count(&daemon, UPGRADED) == round;
                seed += 1;
                let begin = Instant::now();
                write(&mut disk, seed, seed % 64);
                longest = longest.max(begin.elapsed());
                assert_reads(&mut disk, seed, seed % 64);
                if done {
                    break;
                }
            }
            if round == 1 {
                open = files();
            }
        }
        for back in 0..seed.min(64) {
            assert_reads(&mut disk, seed - back, (seed - back) % 64);
        }
        assert_eq!(daemon.status()["holder"], session);
        // Whoever asks on the control socket has one for a moment.
        assert!(
            files() < open + 5,
            "{} files were open, then {}",
            open,
            files()
        );
        over.store(true, Ordering::SeqCst);
        let tries = other.join().unwrap();
        println!("{seed} writes, the longest took {longest:?}; another host tried {tries} times");
        assert!(tries > 0);
        for line in daemon
            .log()
            .lines()
            .filter(|line| line.contains("stood still"))
        {
            println!("{line}");
        }
        drop(disk);
    });
    assert_never_away(&daemon);
    assert!(!daemon.log().contains("not trusted"), "{}", daemon.log());
    // The healer went on, too.
    daemon.wait_state("clean");
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    drop(healer);
    assert_eq!(daemon.stop().code(), Some(0));
    Daemon::serve(&volume, 1, &[]).stop();
}

#[test]
fn a_guest_verifies_its_writes_through_upgrades_with_a_peer_away() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &["--num-queues", "2"]);
    // One that is not told to connect again.
    let disk = Disk::VhostUser {
        socket: daemon.socket().to_owned(),
        queues: 2,
        reconnect: false,
    };
    let image = GuestImage::prepare().unwrap();
    let config = GuestConfig::new(vec![disk]);
    let guest = Guest::boot(&image, volume.brick_node(0).place(), &config).unwrap();
    let mut job = FioJob::new("verify", "/dev/vda", Pattern::RandWrite);
    job.verify = Verify::AfterWrite;
    job.depth = 32;
    let job = guest.start_fio(&job).unwrap();
    daemon.wait_state("dirty");
    (0..3).for_each(|_| upgrade(&daemon));
    volume.kill_brick(1).unwrap();
    daemon.wait_log(" lost: ");
    (0..3).for_each(|_| upgrade(&daemon));
    volume.start_force().unwrap();
    daemon.wait_log("is back and locked");
    (0..3).for_each(|_| upgrade(&daemon));
    let report = guest.finish_fio(job, FIO_PATIENCE).unwrap();
    // fio fails on the first error or wrong byte, so a report is a verdict.
    let bytes = [report.read.unwrap().bytes, report.write.unwrap().bytes];
    assert_eq!(bytes, [IMAGE_BYTES; 2]);
    upgrade(&daemon);
    for line in daemon
        .log()
        .lines()
        .filter(|line| line.contains("stood still"))
    {
        println!("{line}");
    }
    guest.power_off().unwrap();
    assert_eq!(daemon.stop().code(), Some(0));
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

#[test]
fn what_cannot_take_over_is_refused_and_the_old_one_goes_on() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let folder = volume.brick_node(0).place().dir().join("new");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("program");
    let daemon = Daemon::serve(&volume, 0, &["--upgrade-binary", path.to_str().unwrap()]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, 1, 1);
    refused(&daemon, "cannot be run");
    fs::write(&path, "no program").unwrap();
    refused(&daemon, "cannot be run");
    program(&folder, "echo something else");
    refused(&daemon, "does not take this daemon's place");
    // It is gone when it is needed: the guest was stopped already.
    program(&folder, &format!("rm \"$0\"; echo {UNDERSTOOD}"));
    refused(&daemon, "No such file");
    assert_reads(&mut disk, 1, 1);
    write(&mut disk, 2, 1);
    // Nor without a front-end.
    drop(disk);
    program(&folder, &format!("rm \"$0\"; echo {UNDERSTOOD}"));
    refused(&daemon, "No such file");
    assert_never_away(&daemon);

    // Asked twice at once, and with nobody connected: it is the new one in the end.
    std::os::unix::fs::symlink(BINARY, &path).unwrap();
    ask(&daemon);
    ask(&daemon);
    wait_count(&daemon, UPGRADED, 1);
    upgrade(&daemon);
    let mut disk = FrontEnd::connect(daemon.socket());
    assert_reads(&mut disk, 2, 1);
    write(&mut disk, 3, 1);
    ask(&daemon);
    ask(&daemon);
    wait_count(&daemon, UPGRADED, 3);
    assert_reads(&mut disk, 3, 1);
    assert_never_away(&daemon);
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn a_new_process_that_dies_is_a_crash_and_loses_nothing() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let folder = volume.brick_node(0).place().dir().join("new");
    fs::create_dir(&folder).unwrap();
    // It says that it would, and then does not.
    let path = program(&folder, &format!("echo {UNDERSTOOD}"));
    let daemon = Daemon::serve(&volume, 0, &["--upgrade-binary", path.to_str().unwrap()]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, 1, 1);
    ask(&daemon);
    daemon.wait_end(PATIENCE);
    drop(disk);
    let daemon = Daemon::serve(&volume, 0, &[]);
    assert!(
        daemon.log().contains("(killed, or upgraded); 0 extents"),
        "{}",
        daemon.log()
    );
    let mut disk = FrontEnd::connect(daemon.socket());
    assert_reads(&mut disk, 1, 1);
    write(&mut disk, 2, 1);
    drop(disk);
    daemon.stop();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

#[test]
fn without_a_quorum_the_daemon_stays_and_a_fence_stands_through_an_upgrade() {
    let cluster = Cluster::start(3).unwrap();
    let options = [
        ("locks.mandatory-locking", "optimal"),
        ("features.enforce-mandatory-lock", "on"),
    ];
    let volume = volume_with_image(&cluster, VolumeKind::Replica(3), &options);
    let daemon = Daemon::serve(&volume, 0, &["--fence", "mandatory"]);
    let mount = volume.mount(1).unwrap();
    let fenced = || {
        fs::OpenOptions::new()
            .write(true)
            .open(mount.path().join("vm1.img"))
            .and_then(|file| {
                std::os::unix::fs::FileExt::write_at(&file, &[1], 0).and(file.sync_all())
            })
            .is_err()
    };
    assert!(fenced());
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, 1, 1);
    upgrade(&daemon);
    assert!(fenced());
    assert_reads(&mut disk, 1, 1);
    [1, 2]
        .into_iter()
        .for_each(|brick| volume.kill_brick(brick).unwrap());
    wait_count(&daemon, " lost: ", 2);
    refused(&daemon, "quorum");
    assert_reads(&mut disk, 1, 1);
    volume.start_force().unwrap();
    wait_count(&daemon, "is back and locked", 2);
    upgrade(&daemon);
    write(&mut disk, 2, 1);
    assert_reads(&mut disk, 2, 1);
    assert!(fenced());
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!fenced());
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
}
