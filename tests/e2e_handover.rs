//! Giving an image to another host: healed first, one owner at any moment, and what
//! happens when it fails. With front-ends of our own; real guests are in e2e_migrate.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use bypass_harness::{Cluster, Volume, wait_until};
use support::daemon::{Daemon, run_dir, run_on};
use support::front_end::{FrontEnd, assert_reads, write};
use support::healer::Healer;
use support::{IMAGE, PATIENCE, replica_3};

/// `bypass-blk handover` on the host of the daemon of brick 0.
fn handover(volume: &Volume, extra: &[&str]) -> (Option<i32>, String) {
    let node = volume.brick_node(0);
    let run_dir = run_dir(node);
    let name = format!("{}{IMAGE}", volume.name());
    let mut args = vec!["handover", &name, "--run-dir", run_dir.to_str().unwrap()];
    args.extend(extra);
    run_on(node, &args)
}

/// A healer that has not reported yet is none, as far as the daemon knows.
fn wait_healed_by(daemon: &Daemon, healer: &Healer) {
    wait_until("the healer's first report", PATIENCE, || {
        let status = daemon.status();
        let known = status["heal"]["healer"]["pid"] == healer.pid();
        known.then_some(()).ok_or_else(|| status.to_string())
    })
    .unwrap();
}

/// Ends a thread that looks at this.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn an_image_moves_to_another_host_and_back_and_nobody_else_has_it_meanwhile() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let source = Daemon::serve(&volume, 0, &[]);
    let target = Daemon::serve(&volume, 1, &["--incoming", "--lock-timeout", "60s"]);
    assert_eq!(target.custody(), "vacant");
    let healers = [0, 1].map(|brick| Healer::start(volume.brick_node(brick), &[]));
    wait_healed_by(&source, &healers[0]);
    let mut disk = FrontEnd::connect(source.socket());
    (0..16).for_each(|mebibyte| write(&mut disk, 1, mebibyte));

    let (code, said) = handover(&volume, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ready"), "{said}");
    assert_eq!(source.custody(), "armed");
    write(&mut disk, 2, 3);
    assert_reads(&mut disk, 2, 3);
    // QEMU stops the source's rings, and starts the target's.
    drop(disk);
    let mut disk = FrontEnd::connect(target.socket());
    assert_reads(&mut disk, 2, 3);
    source.wait_custody("vacant");
    target.wait_custody("held");
    write(&mut disk, 3, 4);
    assert_reads(&mut disk, 3, 4);
    assert_reads(&mut disk, 1, 5);

    // And back: the target's daemon can give it away as well.
    wait_healed_by(&target, &healers[1]);
    let node = volume.brick_node(1);
    let there = run_dir(node);
    let name = format!("{}{IMAGE}", volume.name());
    let (code, said) = run_on(
        node,
        &["handover", &name, "--run-dir", there.to_str().unwrap()],
    );
    assert_eq!(code, Some(0), "{said}");
    drop(disk);
    let mut disk = FrontEnd::connect(source.socket());
    assert_reads(&mut disk, 3, 4);
    source.wait_custody("held");
    write(&mut disk, 4, 4);
    drop(disk);
    source.wait_state("clean");
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    drop((healers, target, source));
}

#[test]
fn a_guest_that_goes_on_at_the_source_keeps_the_image_there() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let source = Daemon::serve(&volume, 0, &["--lock-timeout", "1s"]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    wait_healed_by(&source, &healer);
    let mut disk = FrontEnd::connect(source.socket());
    write(&mut disk, 1, 1);

    // Cancelled by the operator before the rings stop.
    assert_eq!(handover(&volume, &[]).0, Some(0));
    assert_eq!(handover(&volume, &["--cancel"]).0, Some(0));
    drop(disk);
    wait_until("the front-end to be gone", PATIENCE, || {
        let gone = source.status()["serving"]["front_end"] == false;
        gone.then_some(()).ok_or(source.log())
    })
    .unwrap();
    assert_eq!(source.custody(), "held");

    // The rings stop, and start again here: nobody else took it.
    let disk = FrontEnd::connect(source.socket());
    assert_eq!(handover(&volume, &[]).0, Some(0));
    drop(disk);
    source.wait_custody("vacant");
    let mut disk = FrontEnd::connect(source.socket());
    assert_reads(&mut disk, 1, 1);
    write(&mut disk, 2, 1);
    assert_eq!(source.custody(), "held");

    // The target has it: the source does not get it back, and says so whatever is asked.
    assert_eq!(handover(&volume, &[]).0, Some(0));
    drop(disk);
    source.wait_custody("vacant");
    let (code, said) = handover(&volume, &["--cancel"]);
    assert_eq!(code, Some(74), "{said}");
    assert!(said.contains("does not hold it"), "{said}");
    for to in [&[][..], &["--to", volume.brick_node(1).address()]] {
        let (code, said) = handover(&volume, to);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("does not hold it"), "{said}");
    }
    let target = Daemon::serve(&volume, 1, &["--incoming"]);
    let mut disk = FrontEnd::connect(target.socket());
    write(&mut disk, 3, 1);
    let refused = FrontEnd::connect(source.socket());
    let (status, log) = source.wait_end(PATIENCE);
    assert_eq!(status.code(), Some(40), "{log}");
    assert_reads(&mut disk, 3, 1);
    drop((refused, disk, target, healer));
}

/// QEMU from 9.1 on starts the rings of a guest that has left as soon as it connects again.
#[test]
fn a_daemon_that_is_started_again_gives_the_image_away_though_a_qemu_left_behind_starts_its_rings()
{
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let mut source = Daemon::serve(&volume, 0, &[]);
    let healer = Healer::start(volume.brick_node(0), &[]);
    let mut disk = FrontEnd::connect(source.socket());
    write(&mut disk, 1, 1);
    source.crash();
    drop(disk);
    source.again();
    wait_healed_by(&source, &healer);
    let left_behind = FrontEnd::connect(source.socket());

    // For all that is known here once its rings run, a guest may be there.
    let said = wait_until("its rings to run", PATIENCE, || {
        match handover(&volume, &[]) {
            (Some(0), said) => Ok(said),
            (_, said) => Err(said),
        }
    })
    .unwrap();
    assert_eq!(source.custody(), "armed");
    assert!(said.contains("no guest has asked for anything"), "{said}");
    let (code, said) = handover(&volume, &["--no-guest"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("given away") && !said.contains("Migrate"),
        "{said}"
    );
    assert_eq!(source.custody(), "vacant");
    let target = Daemon::serve(&volume, 1, &["--incoming"]);
    let mut disk = FrontEnd::connect(target.socket());
    assert_reads(&mut disk, 1, 1);
    target.wait_custody("held");
    drop((left_behind, disk, target, source, healer));
}

#[test]
fn a_handover_that_cannot_be_made_says_why_and_harms_nobody() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let (code, said) = handover(&volume, &[]);
    assert_eq!(code, Some(74), "{said}");
    assert!(said.contains("no daemon"), "{said}");

    let source = Daemon::serve(&volume, 0, &[]);
    let healer = Healer::start(volume.brick_node(0), &["--bandwidth", "256K"]);
    wait_healed_by(&source, &healer);
    let mut disk = FrontEnd::connect(source.socket());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when something below fails: else this would wait for the writer for good.
        let _end = End(&over);
        scope.spawn(|| {
            for round in 0.. {
                (0..16).for_each(|mebibyte| write(&mut disk, round, mebibyte));
                if over.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        wait_until("a debt", PATIENCE, || {
            let status = source.status();
            let behind = status["copies"][1]["behind"]["bytes"].as_u64();
            let much = behind.is_some_and(|bytes| bytes >= 8 << 20);
            much.then_some(()).ok_or_else(|| status.to_string())
        })
        .unwrap();
        let (code, said) = handover(&volume, &["--max-downtime", "300ms"]);
        assert_eq!(code, Some(74), "{said}");
        assert!(said.contains("--max-downtime"), "{said}");
    });
    // What no guest could be given is not waited for.
    let (code, said) = handover(&volume, &["--max-downtime", "0s"]);
    assert_eq!(code, Some(74), "{said}");
    assert!(said.contains("nothing left to copy"), "{said}");
    assert_eq!(source.custody(), "held");
    write(&mut disk, 2, 0);
    assert_reads(&mut disk, 2, 0);
    drop((disk, healer, source));
}
