//! An image in shards under a real guest, and given to another host.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use bypass_harness::{
    Cluster, Disk, Fill, FioJob, Guest, GuestConfig, GuestImage, Pattern, Verify, VolumeKind,
    wait_until,
};
use support::daemon::{Daemon, run_dir, run_on};
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::shards::{self, SHARD, sharded};
use support::{IMAGE, IMAGE_BYTES, PATIENCE, pattern};

/// Guests are slow here: translated, two cores.
const FIO_PATIENCE: Duration = Duration::from_secs(300);
/// Of what `gluster volume set VOL group virt` sets (`extras/group-virt.example` of GlusterFS)
/// that which a client of the volume sees.
const VIRT: [(&str, &str); 12] = [
    ("performance.quick-read", "off"),
    ("performance.read-ahead", "off"),
    ("performance.io-cache", "off"),
    ("performance.low-prio-threads", "32"),
    ("network.remote-dio", "disable"),
    ("performance.strict-o-direct", "on"),
    ("cluster.eager-lock", "enable"),
    ("cluster.quorum-type", "auto"),
    ("cluster.data-self-heal-algorithm", "full"),
    ("cluster.locking-scheme", "granular"),
    ("cluster.choose-local", "off"),
    ("client.event-threads", "4"),
];

#[test]
fn a_guest_verifies_its_writes_over_all_shards_while_bricks_die_and_return() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Arbiter, Fill::Sparse, &VIRT);
    let daemon = Daemon::serve(&volume, 0, &["--num-queues", "2"]);
    let _healer = Healer::start(volume.brick_node(0), &[]);
    let disk = Disk::VhostUser {
        socket: daemon.socket().to_owned(),
        queues: 2,
        reconnect: false,
    };
    let image = GuestImage::prepare().unwrap();
    let config = GuestConfig::new(vec![disk]);
    let guest = Guest::boot(&image, cluster.node(0).place(), &config).unwrap();
    let mut job = FioJob::new("verify", "/dev/vda", Pattern::RandWrite);
    job.verify = Verify::AfterWrite;
    job.depth = 16;
    let job = guest.start_fio(&job).unwrap();
    daemon.wait_state("dirty");
    for brick in [1, 0, 2] {
        volume.kill_brick(brick).unwrap();
        volume.start_force().unwrap();
    }
    // fio fails on the first error or wrong byte, so a report is a verdict.
    let report = guest.finish_fio(job, FIO_PATIENCE).unwrap();
    assert_eq!(report.read.expect("verified").bytes, IMAGE_BYTES);
    guest.power_off().unwrap();
    assert_eq!(daemon.stop().code(), Some(0));
    shards::wait_healed(&volume);
    assert!(shards::disk(&volume, 0) == shards::disk(&volume, 1));
}

#[test]
fn an_image_in_shards_is_given_to_another_host() {
    let cluster = Cluster::start(3).unwrap();
    let volume = sharded(&cluster, VolumeKind::Replica(3), Fill::Noise, &[]);
    let source = Daemon::serve(&volume, 0, &[]);
    let target = Daemon::serve(&volume, 1, &["--incoming", "--lock-timeout", "60s"]);
    let healers = [0, 1].map(|brick| Healer::start(volume.brick_node(brick), &[]));
    wait_until("the healer's first report", PATIENCE, || {
        let status = source.status();
        let known = status["heal"]["healer"]["pid"] == healers[0].pid();
        known.then_some(()).ok_or_else(|| status.to_string())
    })
    .unwrap();
    let places = [0, 3 * SHARD - 4096, 9 * SHARD];
    let mut disk = FrontEnd::connect(source.socket());
    for at in places {
        disk.write(at, &pattern(1, at, 8192), PATIENCE).unwrap();
    }
    let node = volume.brick_node(0);
    let run_dir = run_dir(node);
    let name = format!("{}{IMAGE}", volume.name());
    let args = ["handover", &name, "--run-dir", run_dir.to_str().unwrap()];
    let (code, said) = run_on(node, &args);
    assert_eq!(code, Some(0), "{said}");
    disk.write(places[2], &pattern(2, places[2], 8192), PATIENCE)
        .unwrap();
    drop(disk);
    let mut disk = FrontEnd::connect(target.socket());
    for (at, seed) in places.into_iter().zip([1, 1, 2]) {
        assert!(disk.read(at, 8192, PATIENCE).unwrap() == pattern(seed, at, 8192));
    }
    disk.write(places[1], &pattern(3, places[1], 8192), PATIENCE)
        .unwrap();
    assert_eq!(target.custody(), "held");
    drop(disk);
    assert_eq!(target.stop().code(), Some(0));
    source.stop();
    shards::wait_healed(&volume);
    shards::assert_equal(&volume);
}
