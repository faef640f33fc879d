//! One writer per image: races, refusals, takeovers, and what other clients see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Instant;

use bypass_harness::{Cluster, VolumeKind, run_command};
use support::daemon::{Daemon, run_on};
use support::front_end::FrontEnd;
use support::{IMAGE, PATIENCE, pattern, replica_3, volume_with_image};

/// What allows a mandatory fence on a volume.
const FENCING: [(&str, &str); 2] = [
    ("locks.mandatory-locking", "optimal"),
    ("features.enforce-mandatory-lock", "on"),
];

#[test]
fn of_daemons_that_race_on_three_hosts_exactly_one_wins_each_time() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    for round in 0..6 {
        let racers: Vec<_> = (0..3)
            .map(|node| Daemon::start(&volume, node, IMAGE, &["--lock-timeout", "2s"]))
            .collect();
        let outcomes: Vec<_> = racers.into_iter().map(Daemon::wait_listening).collect();
        let winners: Vec<_> = outcomes
            .iter()
            .filter_map(|outcome| outcome.as_ref().ok())
            .collect();
        assert_eq!(winners.len(), 1, "round {round}: {:?}", logs(&outcomes));
        let pid = format!("pid {}", winners[0].pid());
        for refused in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert_eq!(refused.code, Some(40), "{}", refused.log);
            assert!(
                refused.log.contains(&pid),
                "the holder is not named: {}",
                refused.log
            );
            assert!(refused.log.contains("since 20"), "no time: {}", refused.log);
        }
        for winner in outcomes.into_iter().flatten() {
            assert_eq!(winner.stop().code(), Some(0));
        }
    }
}

fn logs(outcomes: &[Result<Daemon, support::daemon::Refused>]) -> Vec<String> {
    outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(daemon) => daemon.log(),
            Err(refused) => refused.log.clone(),
        })
        .collect()
}

#[test]
fn the_lock_of_a_killed_daemon_is_free_at_once_and_its_dirty_image_is_continued() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    // It would make the stale copies equal before anybody looks at them.
    volume.set_self_heal_daemon(false).unwrap();
    let first = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(first.socket());
    let data = pattern(7, 0, 4096);
    disk.write(0, &data, PATIENCE).unwrap();
    let stamp = volume.marks(IMAGE).unwrap().pending(0, 1).data;
    first.kill();

    let second = Daemon::serve(&volume, 0, &[]);
    assert_eq!(second.status()["state"], "dirty");
    let mut disk = FrontEnd::connect(second.socket());
    assert!(
        disk.read(0, data.len(), PATIENCE).unwrap() == data,
        "not what was written"
    );
    disk.write(8192, &data, PATIENCE).unwrap();
    let marks = volume.marks(IMAGE).unwrap();
    assert_eq!(
        marks.pending(0, 1).data,
        stamp,
        "the dirty map is not believed: {marks}"
    );
    second.kill();

    // Nobody else may take the stale copies meanwhile, and stock Gluster brings
    // them up to date alone.
    let stale = Daemon::try_serve(&volume, 1, &["--lock-timeout", "1s"])
        .err()
        .expect("stale");
    assert_eq!(stale.code, Some(42), "{}", stale.log);
    assert!(
        stale.log.contains(&volume.brick_name(0)),
        "the fresh copy is not named: {}",
        stale.log
    );
    volume.set_self_heal_daemon(true).unwrap();
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    Daemon::serve(&volume, 1, &[]).stop();
}

#[test]
fn a_daemon_waits_for_a_lock_that_comes_free_in_time() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let first = Daemon::serve(&volume, 0, &[]);
    let second = Daemon::start(&volume, 1, IMAGE, &["--lock-timeout", "60s"]);
    second.wait_log("waiting for a lock");
    // The brick tells, and the session looks at its locks at once.
    first.wait_log("somebody else wants the lock \"bypass-blk.session\"");
    assert_eq!(first.stop().code(), Some(0));
    assert_eq!(second.wait_listening().unwrap().stop().code(), Some(0));
}

#[test]
fn readers_share_an_image_and_keep_writers_out() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let readers: Vec<_> = (0..2)
        .map(|node| Daemon::serve(&volume, node, &["--read-only"]))
        .collect();
    let refused = Daemon::try_serve(&volume, 2, &["--lock-timeout", "1s"])
        .err()
        .expect("readers");
    assert_eq!(refused.code, Some(40), "{}", refused.log);
    for reader in readers {
        assert_eq!(reader.stop().code(), Some(0));
    }
    Daemon::serve(&volume, 2, &[]).stop();
}

#[test]
fn qemu_s_tools_on_a_mount_are_refused_and_refuse_us() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let mount = volume.mount(1).unwrap();
    let image = mount.path().join("vm1.img");
    let daemon = Daemon::serve(&volume, 0, &["--fence", "auto"]);
    assert_eq!(daemon.status()["fence"], "advisory");
    for (tool, args) in [
        ("qemu-io", vec!["-f", "raw", "-c", "write 0 512"]),
        ("qemu-img", vec!["bench", "-w", "-c", "1", "-f", "raw"]),
    ] {
        let mut command = cluster.node(1).command(tool);
        let error = run_command(command.args(args).arg(&image), PATIENCE)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("Failed to get") && error.contains("lock"),
            "{tool}: {error}"
        );
    }
    daemon.stop();

    // The other way round: an image open in QEMU on the mount is not served.
    let mut qemu = cluster.node(1).command("qemu-io");
    qemu.args(["-f", "raw", "-c", "read 0 512", "-c", "sleep 60000"])
        .arg(&image);
    qemu.stdout(std::process::Stdio::null());
    let qemu = bypass_harness::Background::start(&mut qemu).unwrap();
    let begin = Instant::now();
    let refused = loop {
        match Daemon::try_serve(&volume, 0, &["--lock-timeout", "1s"]) {
            Err(refused) => break refused,
            // QEMU has not opened it yet.
            Ok(daemon) => drop(daemon.stop()),
        }
        assert!(begin.elapsed() < PATIENCE, "served though QEMU has it open");
    };
    assert_eq!(refused.code, Some(41), "{}", refused.log);
    drop(qemu);
}

#[test]
fn a_mandatory_fence_keeps_every_other_client_out_and_is_lifted_at_the_end() {
    let cluster = Cluster::start(3).unwrap();
    let volume = volume_with_image(&cluster, VolumeKind::Replica(3), &FENCING);
    let mount = volume.mount(1).unwrap();
    let image = mount.path().join("vm1.img");
    let write = || {
        std::fs::OpenOptions::new()
            .write(true)
            .open(&image)
            .and_then(|file| {
                use std::os::unix::fs::FileExt;
                file.write_all_at(&[1; 512], 0)?;
                file.sync_all()
            })
    };
    write().unwrap();

    let daemon = Daemon::serve(&volume, 0, &[]);
    assert_eq!(daemon.status()["fence"], "mandatory");
    write().unwrap_err();
    let mut disk = FrontEnd::connect(daemon.socket());
    let data = pattern(3, 4096, 4096);
    disk.write(4096, &data, PATIENCE).unwrap();
    assert!(
        disk.read(4096, data.len(), PATIENCE).unwrap() == data,
        "not what was written"
    );
    // A client that takes locks on the fenced image does not take the record away.
    // QEMU 10 is told at the flush that its write was refused, not at the write.
    let mut qemu = cluster.node(1).command("qemu-io");
    let commands = ["-f", "raw", "-c", "write 0 512", "-c", "flush"];
    run_command(qemu.args(commands).arg(&image), PATIENCE).unwrap_err();
    let refused = Daemon::try_serve(&volume, 1, &["--lock-timeout", "1s"])
        .err()
        .expect("locked");
    assert!(
        refused.log.contains(&format!("pid {}", daemon.pid())),
        "{}",
        refused.log
    );

    // While it lives the fence cannot be lifted; killed, it is lifted by release.
    let target = format!("{}{IMAGE}", volume.name());
    let server = cluster.node(2).address().to_owned();
    let release = || run_on(cluster.node(2), &["release", &target, "--server", &server]);
    assert_eq!(release().0, Some(40));
    daemon.kill();
    let (code, text) = release();
    assert_eq!(
        (code, text.contains("lifted from 3 copies")),
        (Some(0), true),
        "{text}"
    );
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    write().unwrap();

    // A fence left by a killed daemon is taken over, and lifted at a clean end.
    Daemon::serve(&volume, 0, &[]).kill();
    let next = Daemon::serve(&volume, 0, &[]);
    write().unwrap_err();
    assert_eq!(next.stop().code(), Some(0));
    write().unwrap();
}

#[test]
fn a_mandatory_fence_that_the_volume_does_not_allow_is_refused() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let refused = Daemon::try_serve(&volume, 0, &["--fence", "mandatory"])
        .err()
        .expect("no fence");
    assert_eq!(refused.code, Some(46), "{}", refused.log);
    assert!(
        refused.log.contains("locks.mandatory-locking"),
        "{}",
        refused.log
    );
}
