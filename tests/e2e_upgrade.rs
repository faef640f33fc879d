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
use support::daemon::{BINARY, Daemon, UPGRADED, run_dir, run_on};
use support::front_end::{FrontEnd, assert_reads, write};
use support::healer::Healer;
use support::{IMAGE, IMAGE_BYTES, PATIENCE, replica_3, volume_with_image};

const MIB: u64 = 1 << 20;
const REFUSED: &str = "not upgraded:";
/// What a program answers that understands what the daemon leaves to it.
const UNDERSTOOD: &str = "bypass-blk resume 1";
/// Guests are slow here: translated, two cores.
const FIO_PATIENCE: Duration = Duration::from_secs(300);

/// Asks for an upgrade that is refused, with these words.
fn refused(daemon: &Daemon, why: &str) {
    let before = (daemon.logged(REFUSED), daemon.logged(UPGRADED));
    daemon.ask_to_upgrade();
    daemon.wait_logged(REFUSED, before.0 + 1);
    assert!(daemon.log().contains(why), "{why}: {}", daemon.log());
    assert_eq!(daemon.logged(UPGRADED), before.1);
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
            daemon.ask_to_upgrade();
            loop {
                let done = daemon.logged(UPGRADED) == round;
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
    (0..3).for_each(|_| daemon.upgrade());
    volume.kill_brick(1).unwrap();
    daemon.wait_log(" lost: ");
    (0..3).for_each(|_| daemon.upgrade());
    volume.start_force().unwrap();
    daemon.wait_log("is back and locked");
    (0..3).for_each(|_| daemon.upgrade());
    let report = guest.finish_fio(job, FIO_PATIENCE).unwrap();
    // fio fails on the first error or wrong byte, so a report is a verdict.
    let bytes = [report.read.unwrap().bytes, report.write.unwrap().bytes];
    assert_eq!(bytes, [IMAGE_BYTES; 2]);
    daemon.upgrade();
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
    daemon.ask_to_upgrade();
    daemon.ask_to_upgrade();
    daemon.wait_logged(UPGRADED, 1);
    daemon.upgrade();
    let mut disk = FrontEnd::connect(daemon.socket());
    assert_reads(&mut disk, 2, 1);
    write(&mut disk, 3, 1);
    daemon.ask_to_upgrade();
    daemon.ask_to_upgrade();
    daemon.wait_logged(UPGRADED, 3);
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
    daemon.ask_to_upgrade();
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
    daemon.upgrade();
    assert!(fenced());
    assert_reads(&mut disk, 1, 1);
    [1, 2]
        .into_iter()
        .for_each(|brick| volume.kill_brick(brick).unwrap());
    daemon.wait_logged(" lost: ", 2);
    refused(&daemon, "quorum");
    assert_reads(&mut disk, 1, 1);
    volume.start_force().unwrap();
    daemon.wait_logged("is back and locked", 2);
    daemon.upgrade();
    write(&mut disk, 2, 1);
    assert_reads(&mut disk, 2, 1);
    assert!(fenced());
    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!fenced());
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
}

/// The guest's disk, as it sees it: cache mode, and size in bytes.
fn seen(guest: &Guest) -> (String, u64) {
    let script = "cat /sys/block/vda/cache_type /sys/block/vda/size";
    let seen = guest.run(script, PATIENCE).unwrap();
    let (mode, sectors) = seen.trim().split_once('\n').unwrap();
    (mode.to_owned(), sectors.parse::<u64>().unwrap() * 512)
}

#[test]
fn a_guest_whose_daemon_was_upgraded_keeps_its_cache_mode_and_sees_its_disk_grow() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let node = volume.brick_node(0);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let disk = Disk::VhostUser {
        socket: daemon.socket().to_owned(),
        queues: 1,
        reconnect: false,
    };
    let image = GuestImage::prepare().unwrap();
    let guest = Guest::boot(&image, node.place(), &GuestConfig::new(vec![disk])).unwrap();
    let (there, name) = (run_dir(node), format!("{}{IMAGE}", volume.name()));
    let told = |command: &[&str]| {
        let rest = ["--run-dir", there.to_str().unwrap()];
        run_on(node, &[command, &rest].concat())
    };
    let mut size = IMAGE_BYTES;
    let mut grow = || {
        size += 4 * MIB;
        let (code, said) = told(&["resize", &name, "+4M"]);
        assert_eq!(code, Some(0), "{said}");
        let wanted = ("write through".to_owned(), size);
        wait_until("the guest to see the new size", PATIENCE, || {
            let seen = seen(&guest);
            (seen == wanted).then_some(()).ok_or(format!("{seen:?}"))
        })
        .unwrap();
    };
    let set = "echo 'write through' >/sys/block/vda/cache_type";
    guest.run(set, PATIENCE).unwrap();
    grow();
    for _ in 0..2 {
        daemon.upgrade();
        // What the daemon itself believes: it gives no such guest away.
        let (code, said) = told(&["handover", &name]);
        assert_eq!(code, Some(74), "{said}");
        assert!(said.contains("write-through"), "{said}");
        grow();
    }
    assert!(!daemon.log().contains("not trusted"), "{}", daemon.log());
    let end = "dd if=/dev/urandom of=/tmp/end bs=1M count=1 2>/dev/null && \
         dd if=/tmp/end of=/dev/vda bs=1M seek=$(($(cat /sys/block/vda/size) / 2048 - 1)) oflag=direct 2>/dev/null && \
         dd if=/dev/vda bs=1M skip=$(($(cat /sys/block/vda/size) / 2048 - 1)) iflag=direct 2>/dev/null | cmp - /tmp/end";
    guest.run(end, PATIENCE).unwrap();
    guest.power_off().unwrap();
    assert_eq!(daemon.stop().code(), Some(0));
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}
