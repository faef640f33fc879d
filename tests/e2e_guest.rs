//! A real guest on a served image: boots, verifies its own writes, and does not
//! notice what happens to the bricks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use bypass_harness::{
    Cluster, Disk, FioJob, Guest, GuestConfig, GuestImage, Node, Pattern, Verify, Volume,
};
use support::daemon::Daemon;
use support::{IMAGE, IMAGE_BYTES, PATIENCE, replica_3};

/// Guests are slow here: translated, two cores.
const FIO_PATIENCE: Duration = Duration::from_secs(300);

fn boot(node: &Node, daemon: &Daemon, queues: u16) -> Guest {
    let disk = Disk::VhostUser {
        socket: daemon.socket().to_owned(),
        queues,
        reconnect: false,
    };
    let image = GuestImage::prepare().unwrap();
    Guest::boot(&image, node.place(), &GuestConfig::new(vec![disk])).unwrap()
}

fn verified_writes() -> FioJob {
    let mut job = FioJob::new("verify", "/dev/vda", Pattern::RandWrite);
    job.verify = Verify::AfterWrite;
    job.depth = 16;
    job
}

fn assert_healed(volume: &Volume) {
    volume.wait_healed(IMAGE, PATIENCE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

#[test]
fn a_guest_verifies_its_writes_while_peers_and_local_brick_die_and_return() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &["--num-queues", "2"]);
    let guest = boot(cluster.node(0), &daemon, 2);
    let job = guest.start_fio(&verified_writes()).unwrap();
    daemon.wait_state("dirty");
    for brick in [1, 0, 2] {
        volume.kill_brick(brick).unwrap();
        volume.start_force().unwrap();
    }
    let report = guest.finish_fio(job, FIO_PATIENCE).unwrap();
    // fio fails on the first error or wrong byte, so a report is a verdict.
    let (read, write) = (
        report.read.expect("verified"),
        report.write.expect("written"),
    );
    assert_eq!((read.bytes, write.bytes), (IMAGE_BYTES, IMAGE_BYTES));
    let status = daemon.status();
    let writes: u64 = (0..2)
        .map(|q| status["serving"]["queues"][q]["writes"].as_u64().unwrap())
        .sum();
    assert!(writes > 1000, "{status}");
    guest.power_off().unwrap();
    assert_eq!(daemon.stop().code(), Some(0));
    assert_healed(&volume);
}

#[test]
fn what_a_guest_flushed_survives_the_daemon_s_death_and_stock_gluster_spreads_it() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 1, &[]);
    let guest = boot(cluster.node(1), &daemon, 1);
    let script = "dd if=/dev/urandom of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null; \
                  dd if=/dev/vda bs=64k count=64 2>/dev/null | md5sum";
    let written = guest.run(script, FIO_PATIENCE).unwrap();
    daemon.kill();
    drop(guest);
    assert_healed(&volume);

    // Another host serves its own, healed copy: the guest reads the same there.
    let daemon = Daemon::serve(&volume, 2, &["--read-only"]);
    let guest = boot(cluster.node(2), &daemon, 1);
    let read = guest
        .run(
            "dd if=/dev/vda bs=64k count=64 2>/dev/null | md5sum",
            FIO_PATIENCE,
        )
        .unwrap();
    assert_eq!(read, written);
    let refused = guest.run(
        "dd if=/dev/zero of=/dev/vda bs=512 count=1 oflag=direct",
        FIO_PATIENCE,
    );
    assert!(
        refused.is_err(),
        "a read-only disk was written: {refused:?}"
    );
    guest.power_off().unwrap();
    daemon.stop();
}
