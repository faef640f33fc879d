//! Verifying an image of a real volume: served and not, written to meanwhile or not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bypass_blk::gluster::glusterd::GLUSTERD_PORT;
use bypass_blk::gluster::{LkOwner, Timeouts};
use bypass_blk::image::brick_client::session_port::identity;
use bypass_blk::image::brick_client::verify_brick::GlusterBrick;
use bypass_blk::image::locate::Catalog;
use bypass_blk::image::replica::holder::Holder;
use bypass_harness::{Cluster, Volume, wait_until};
use serde_json::{Value, json};
use support::daemon::{BINARY, Daemon, run_dir, run_on};
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::{IMAGE, IMAGE_BYTES, PATIENCE, pattern, replica_3};

/// To which a difference is narrowed down where nobody serves the image, and where
/// somebody does.
const UNSERVED: u64 = 64 << 10;
const SERVED: u64 = 4 << 10;
const MIB: u64 = 1 << 20;

/// Clients and guests at work make it slow.
const VERIFY_PATIENCE: Duration = Duration::from_secs(180);

/// Ends whoever works meanwhile, when a test fails too: it would wait for it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `bypass-blk verify --json` of [`IMAGE`] on the node of a brick: exit code and
/// document.
fn verify(volume: &Volume, brick: usize, extra: &[&str]) -> (Option<i32>, Value) {
    let node = volume.brick_node(brick);
    let mut command = node.command(BINARY);
    command
        .args(["verify", "--json", "--server", node.address(), "--run-dir"])
        .arg(run_dir(node))
        .arg("--state-dir")
        .arg(support::daemon::state_dir(node))
        .arg(format!("{}{IMAGE}", volume.name()))
        .args(extra)
        .stdin(Stdio::null());
    let output = bypass_harness::finish(&mut command, VERIFY_PATIENCE).unwrap();
    let document = serde_json::from_str(&output.stdout);
    (
        output.status.code(),
        document.unwrap_or(Value::String(output.stderr)),
    )
}

/// Changes a byte in a brick's file, behind Gluster's back.
fn damage(volume: &Volume, brick: usize, at: u64) {
    let path = volume.brick_file(brick, IMAGE);
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

fn differing(document: &Value, brick: usize) -> &Value {
    &document["copies"][brick]["differing"]["ranges"]
}

fn extent_at(at: u64, extent: u64) -> Value {
    let start = at / extent * extent;
    json!([{ "start": start, "end": start + extent }])
}

#[test]
fn equal_copies_verify_clean_and_one_changed_byte_is_found_where_it_is() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let (code, document) = verify(&volume, 1, &[]);
    assert_eq!(code, Some(0), "{document:#}");
    assert_eq!(document["verdict"], "equal");
    for brick in [1, 2] {
        assert_eq!(document["copies"][brick]["verified"], IMAGE_BYTES);
    }

    damage(&volume, 1, 12_345_678);
    damage(&volume, 2, IMAGE_BYTES - 1);
    let (code, document) = verify(&volume, 0, &[]);
    assert_eq!(code, Some(71), "{document:#}");
    assert_eq!(*differing(&document, 1), extent_at(12_345_678, UNSERVED));
    assert_eq!(
        *differing(&document, 2),
        extent_at(IMAGE_BYTES - 1, UNSERVED)
    );

    let node = volume.brick_node(0);
    let target = format!("{}{IMAGE}", volume.name());
    let (code, screen) = run_on(
        node,
        &[
            "verify",
            &target,
            "--server",
            node.address(),
            "--state-dir",
            support::daemon::state_dir(node).to_str().unwrap(),
        ],
    );
    assert_eq!(code, Some(71));
    assert!(screen.contains("DIFFERS: 64.00 KiB differing"), "{screen}");
    assert!(screen.contains("bytes 12320768 to 12386304"), "{screen}");

    let (code, refused) = verify(&volume, 0, &["--repair"]);
    assert_eq!(code, Some(2), "{refused}");
}

#[test]
fn with_a_brick_down_the_rest_is_verified_and_the_outcome_says_so() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    volume.kill_brick(0).unwrap();
    let (code, document) = verify(&volume, 1, &[]);
    assert_eq!(code, Some(72), "{document:#}");
    assert_eq!(document["verdict"], "incomplete");
    let copies = &document["copies"];
    assert_eq!(copies[0]["state"], "away");
    assert_eq!(copies[0]["not_verified"], IMAGE_BYTES);
    assert_eq!(copies[2]["verified"], IMAGE_BYTES);
    damage(&volume, 2, 5);
    assert_eq!(verify(&volume, 1, &[]).0, Some(71));
}

#[test]
fn a_copy_that_is_marked_is_behind_and_not_different() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    volume.set_self_heal_daemon(false).unwrap();
    let daemon = Daemon::serve(&volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(MIB, &pattern(1, MIB, MIB as usize), PATIENCE)
        .unwrap();

    // Beside the session: exactly what was written. Nobody heals it, so the copies are not
    // called equal.
    let (code, document) = verify(&volume, 0, &[]);
    assert_eq!(code, Some(72), "{document:#}");
    assert_eq!(document["verdict"], "incomplete");
    for brick in [1, 2] {
        let copy = &document["copies"][brick];
        assert_eq!(
            (&copy["behind"], &copy["verified"]),
            (&json!(MIB), &json!(IMAGE_BYTES - MIB))
        );
    }

    // On another host: refused, and told where.
    let (code, refused) = verify(&volume, 1, &[]);
    assert_eq!(code, Some(40), "{refused}");
    let told = refused.as_str().unwrap();
    assert!(told.contains(&format!("pid {}", daemon.pid())), "{told}");
    assert!(told.contains("on that host"), "{told}");

    // Afterwards: all of a marked copy.
    drop(disk);
    daemon.stop();
    let (code, document) = verify(&volume, 1, &[]);
    assert_eq!(code, Some(72), "{document:#}");
    assert_eq!(document["reference"], 0);
    assert_eq!(document["copies"][2]["state"], "stale");
    assert_eq!(document["copies"][2]["behind"], IMAGE_BYTES);
}

/// Holds an image as a running `verify` does, on a thread of a node's network.
fn hold(volume: &Volume, node: usize) -> Vec<GlusterBrick> {
    let node = volume.brick_node(node);
    let netns = fs::File::open(format!("/run/netns/{}", node.netns())).unwrap();
    let (name, address) = (volume.name().to_owned(), node.address().to_owned());
    let holding = std::thread::spawn(move || {
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(netns.as_fd(), Some(kind)).unwrap();
        let (timeouts, me) = (Timeouts::default(), Holder::here("verifier"));
        let owner = LkOwner::new(me.encode()).unwrap();
        let catalog = Catalog::load(&address, GLUSTERD_PORT, &name, &timeouts).unwrap();
        let located = catalog.find(IMAGE, &identity(owner.clone()), &timeouts);
        let located = located.unwrap();
        let connect = |spec| {
            let brick = GlusterBrick::connect(&located, spec, owner.clone(), &timeouts);
            let brick = brick.unwrap();
            brick.hold().unwrap();
            brick
        };
        located.set.bricks.iter().map(connect).collect()
    });
    holding.join().unwrap()
}

#[test]
fn while_an_image_is_verified_no_session_writes_to_it_and_is_told_who_keeps_it_out() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let held = hold(&volume, 1);
    let refused = Daemon::try_serve(&volume, 0, &["--lock-timeout", "0s"]);
    let refused = refused.err().unwrap();
    assert_eq!(refused.code, Some(40), "{refused:?}");
    let told = format!("host verifier, pid {}", std::process::id());
    assert!(refused.log.contains(&told), "{refused:?}");

    // Two may verify at one time, and whoever only reads may serve it.
    assert_eq!(verify(&volume, 2, &[]).0, Some(0));
    let reader = Daemon::serve(&volume, 0, &["--read-only"]);
    assert_eq!(verify(&volume, 0, &[]).0, Some(0));
    drop(reader);

    drop(held);
    Daemon::serve(&volume, 0, &["--lock-timeout", "10s"]).stop();
}

#[test]
fn a_guest_at_work_makes_no_false_difference_and_hides_no_real_one() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let daemon = Daemon::serve(&volume, 0, &[]);
    let _healer = Healer::start(volume.brick_node(0), &[]);
    let over = AtomicBool::new(false);
    // The guest keeps to the first half.
    let write = || {
        let mut disk = FrontEnd::connect(daemon.socket());
        let mut seed = 0;
        while !over.load(Ordering::Relaxed) {
            seed += 1;
            let at = seed * 7919 * 4096 % (IMAGE_BYTES / 2);
            disk.write(at, &pattern(seed, at, 4096), PATIENCE).unwrap();
        }
        seed
    };
    std::thread::scope(|scope| {
        let guest = scope.spawn(write);
        let checks = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..5 {
                let (code, document) = verify(&volume, 0, &[]);
                assert_ne!(code, Some(71), "{document:#}");
                let verified = document["copies"][1]["verified"].as_u64().unwrap();
                assert!(verified >= IMAGE_BYTES / 2, "{document:#}");
            }
            let at = IMAGE_BYTES - 3 * MIB + 17;
            damage(&volume, 2, at);
            let (code, document) = verify(&volume, 0, &[]);
            assert_eq!(code, Some(71), "{document:#}");
            assert_eq!(*differing(&document, 1), json!([]));
            assert_eq!(*differing(&document, 2), extent_at(at, SERVED));
        }));
        over.store(true, Ordering::Relaxed);
        let writes = guest.join().unwrap();
        if let Err(failed) = checks {
            std::panic::resume_unwind(failed);
        }
        assert!(writes > 100, "the guest wrote {writes} times only");
    });

    // Given to the healer, the copies are equal again, from the local one.
    let local = fs::read(volume.brick_file(0, IMAGE)).unwrap();
    let (code, document) = verify(&volume, 0, &["--repair"]);
    assert_eq!((code, &document["repaired"]), (Some(71), &json!(true)));
    daemon.wait_state("clean");
    let (code, document) = verify(&volume, 0, &[]);
    assert_eq!(code, Some(0), "{document:#}");
    assert!(fs::read(volume.brick_file(2, IMAGE)).unwrap() == local);
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

#[test]
fn a_client_of_gluster_that_writes_meanwhile_makes_no_false_difference() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let mount = volume.mount(1).unwrap();
    let over = AtomicBool::new(false);
    let write = || {
        let path = mount.path().join(IMAGE.trim_start_matches('/'));
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let mut seed = 0;
        while !over.load(Ordering::Relaxed) {
            seed += 1;
            let at = seed * 7919 * 4096 % IMAGE_BYTES;
            file.write_all_at(&pattern(seed, at, 65536), at).unwrap();
        }
        seed
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let client = scope.spawn(write);
        let end = Over(&over);
        let outcomes = (0..3).map(|_| verify(&volume, 0, &[])).collect();
        drop(end);
        let writes = client.join().unwrap();
        assert!(writes > 100, "the client wrote {writes} times only");
        outcomes
    });
    for (code, document) in outcomes {
        assert_ne!(code, Some(71), "{document:#}");
        assert_eq!(code, Some(0), "{document:#}");
    }
    // While it is mounted: a client that ends does not always send its last ones.
    wait_until("the client's last counters to go", PATIENCE, || {
        let marks = volume.marks(IMAGE).unwrap();
        marks.is_clean().then_some(()).ok_or(marks.to_string())
    })
    .unwrap();
    drop(mount);
    assert_eq!(verify(&volume, 0, &[]).0, Some(0));
}
