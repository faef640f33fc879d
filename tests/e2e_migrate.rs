//! Live migration of real guests between two hosts of a cluster, their disk being two
//! copies of one image: the guest writes and verifies throughout.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use bypass_harness::{
    Cluster, Disk, FioJob, Guest, GuestConfig, GuestImage, Node, Pattern, Verify, Volume,
    wait_until,
};
use support::daemon::{Daemon, run_dir, run_on};
use support::healer::Healer;
use support::{IMAGE, PATIENCE, replica_3};

/// Guests are slow here: translated, two cores.
const FIO_PATIENCE: Duration = Duration::from_secs(300);
/// Where the target's QEMU listens.
const PORT: u16 = 4444;

/// Two hosts, one guest that writes and verifies at the first.
struct Move {
    cluster: Cluster,
    volume: Volume,
    source: Daemon,
    target: Daemon,
    healers: [Healer; 2],
    here: Guest,
    there: Guest,
    uri: String,
}

fn disk(daemon: &Daemon) -> GuestConfig {
    GuestConfig::new(vec![Disk::VhostUser {
        socket: daemon.socket().to_owned(),
        queues: 1,
        reconnect: false,
    }])
}

fn verified_writes() -> FioJob {
    let mut job = FioJob::new("verify", "/dev/vda", Pattern::RandWrite);
    job.verify = Verify::AfterWrite;
    job.depth = 16;
    job
}

impl Move {
    fn prepare() -> Move {
        let cluster = Cluster::start(3).unwrap();
        let volume = replica_3(&cluster);
        let source = Daemon::serve(&volume, 0, &[]);
        let target = Daemon::serve(&volume, 1, &["--incoming", "--lock-timeout", "60s"]);
        let healers = [0, 1].map(|brick| Healer::start(volume.brick_node(brick), &[]));
        let image = GuestImage::prepare().unwrap();
        let [first, second]: [&Node; 2] = [volume.brick_node(0), volume.brick_node(1)];
        let here = Guest::boot(&image, first.place(), &disk(&source)).unwrap();
        let uri = format!("tcp:{}:{PORT}", second.address());
        let there = Guest::incoming(&image, second.place(), &disk(&target), &uri).unwrap();
        Move {
            cluster,
            volume,
            source,
            target,
            healers,
            here,
            there,
            uri,
        }
    }

    fn handover(&self) -> (Option<i32>, String) {
        let node = self.volume.brick_node(0);
        let (run_dir, name) = (run_dir(node), format!("{}{IMAGE}", self.volume.name()));
        let run_dir = run_dir.to_str().unwrap();
        // Guests write fast: it is the rest that counts, whatever it takes.
        run_on(
            node,
            &[
                "handover",
                &name,
                "--run-dir",
                run_dir,
                "--max-downtime",
                "60s",
            ],
        )
    }

    /// One daemon has the image at most, and says so.
    fn held_by(&self) -> Vec<usize> {
        let statuses = [&self.source, &self.target].map(Daemon::statuses);
        let held = |(host, images): (usize, &serde_json::Value)| {
            let images = images.as_array()?;
            let held = |image: &serde_json::Value| {
                let custody = image["serving"]["custody"].as_str();
                matches!(custody, Some("held" | "armed" | "leaving"))
            };
            images.iter().any(held).then_some(host)
        };
        statuses.iter().enumerate().filter_map(held).collect()
    }

    /// The guest goes down; all copies are equal then.
    fn end(self, at_target: bool) {
        let (guest, _other) = match at_target {
            true => (self.there, self.here),
            false => (self.here, self.there),
        };
        guest.power_off().unwrap();
        let volume = &self.volume;
        wait_until("no mark to be left", PATIENCE, || {
            let marks = volume.marks(IMAGE).unwrap();
            marks.is_clean().then_some(()).ok_or(marks.to_string())
        })
        .unwrap();
        assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
        drop((self.healers, self.target, self.source, self.cluster));
    }
}

#[test]
fn a_guest_that_writes_and_verifies_moves_to_the_other_host() {
    let to = Move::prepare();
    let job = to.here.start_fio(&verified_writes()).unwrap();
    to.source.wait_state("dirty");
    let (code, said) = to.handover();
    assert_eq!(code, Some(0), "{said}");
    to.here.migrate(&to.uri).unwrap();
    to.here.wait_migration("completed").unwrap();
    let job = to.there.adopt(&job);
    // fio fails on the first error or wrong byte, so a report is a verdict.
    let report = to.there.finish_fio(job, FIO_PATIENCE).unwrap();
    assert!(report.write.is_some() && report.read.is_some());
    assert_eq!(to.held_by(), [1]);
    to.end(true);
}

#[test]
fn a_migration_that_is_cancelled_leaves_the_guest_running_at_the_source() {
    let to = Move::prepare();
    let job = to.here.start_fio(&verified_writes()).unwrap();
    to.source.wait_state("dirty");
    assert_eq!(to.handover().0, Some(0));
    // So slow that it can be cancelled.
    let slow = serde_json::json!({ "max-bandwidth": 65536 });
    to.here
        .qmp()
        .execute("migrate-set-parameters", slow)
        .unwrap();
    to.here.migrate(&to.uri).unwrap();
    to.here.wait_migration("active").unwrap();
    to.here
        .qmp()
        .execute("migrate_cancel", serde_json::json!({}))
        .unwrap();
    to.here.wait_migration("cancelled").unwrap();
    let report = to.here.finish_fio(job, FIO_PATIENCE).unwrap();
    assert!(report.write.is_some() && report.read.is_some());
    assert_eq!(to.held_by(), [0]);
    to.end(false);
}
