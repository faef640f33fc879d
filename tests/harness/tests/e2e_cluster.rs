//! The harness itself against real Gluster: what the end-to-end tests rely on.
//! Needs root and Debian's packages (`tests/run`).

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use bypass_harness::{Cluster, Fill, VolumeKind, run_command, wait_until};

const IMAGE: &str = "/vm1.img";
const IMAGE_BYTES: u64 = 8 << 20;
const HEAL_DEADLINE: Duration = Duration::from_secs(120);
const PING_DEADLINE: Duration = Duration::from_secs(20);

fn volume(cluster: &Cluster) -> bypass_harness::Volume {
    let options = [("network.ping-timeout", "5")];
    let volume = cluster
        .create_volume("gv0", VolumeKind::Replica(3), &options)
        .unwrap();
    volume.start().unwrap();
    volume
}

fn can_connect(cluster: &Cluster, from: usize, to: usize) -> bool {
    let mut command = cluster.node(from).command("busybox");
    command.args(["timeout", "2", "busybox", "nc", "-w", "1"]);
    command.args([cluster.node(to).address(), "24007"]);
    run_command(&mut command, PING_DEADLINE).is_ok()
}

#[test]
fn a_cut_node_is_unreachable_until_its_cable_is_back() {
    let cluster = Cluster::start(2).unwrap();
    assert!(can_connect(&cluster, 0, 1));
    cluster.cut(1).unwrap();
    assert!(
        !can_connect(&cluster, 0, 1),
        "a packet got through to a cut node"
    );
    assert!(
        !can_connect(&cluster, 1, 0),
        "a packet got out of a cut node"
    );
    assert!(
        can_connect(&cluster, 1, 1),
        "a cut node must still reach itself"
    );
    cluster.restore(1).unwrap();
    wait_until("the node to be back", PING_DEADLINE, || {
        can_connect(&cluster, 0, 1)
            .then_some(())
            .ok_or("not yet".into())
    })
    .unwrap();
}

#[test]
fn a_killed_brick_misses_writes_and_is_healed_when_it_is_back() {
    let cluster = Cluster::start(3).unwrap();
    let volume = volume(&cluster);
    volume
        .create_image(IMAGE, IMAGE_BYTES, Fill::Noise)
        .unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
    assert!(volume.marks(IMAGE).unwrap().is_clean());

    let before = volume.brick_pid(2).unwrap().expect("the brick is up");
    volume.kill_brick(2).unwrap();
    assert_eq!(volume.brick_pid(2).unwrap(), None);
    let mount = volume.mount(0).unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(mount.path().join("vm1.img"))
        .unwrap();
    file.write_all_at(&[0xaa; 4096], 1 << 20).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(!volume.copies_equal(IMAGE).unwrap().are_equal());
    // The client stores them a moment after the write; one that is gone by then never does.
    wait_until("the marks against the killed brick", PING_DEADLINE, || {
        let marks = volume.marks(IMAGE).unwrap();
        let marked = marks.accuses(0, 2) && marks.accuses(1, 2);
        marked.then_some(()).ok_or_else(|| marks.to_string())
    })
    .unwrap();
    drop(mount);
    assert!(volume.heal_info(0).unwrap().lists(IMAGE));

    volume.start_force().unwrap();
    let after = volume.brick_pid(2).unwrap().expect("the brick is up again");
    assert_ne!(before, after);
    volume.wait_healed(IMAGE, HEAL_DEADLINE).unwrap();
    assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
}

#[test]
fn one_byte_changed_on_one_brick_is_noticed() {
    let cluster = Cluster::start(3).unwrap();
    let volume = volume(&cluster);
    volume
        .create_image(IMAGE, IMAGE_BYTES, Fill::Sparse)
        .unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(volume.brick_file(1, IMAGE))
        .unwrap();
    file.write_all_at(&[1], 12345).unwrap();
    let copies = volume.copies_equal(IMAGE).unwrap();
    let bypass_harness::Copies::Differ { offset, other, .. } = copies else {
        panic!("taken for equal: {copies:?}");
    };
    assert_eq!((offset, other), (12345, volume.brick_file(1, IMAGE)));
}

#[test]
fn a_crashed_node_comes_back_with_its_brick() {
    let cluster = Cluster::start(3).unwrap();
    let volume = volume(&cluster);
    cluster.crash_node(2).unwrap();
    assert_eq!(volume.brick_pid(2).unwrap(), None);
    assert_eq!(cluster.node(2).glusterd_pid().unwrap(), None);
    cluster.boot_node(2).unwrap();
    volume.wait_bricks_up().unwrap();
    assert!(volume.brick_pid(2).unwrap().is_some());
}

#[test]
fn nothing_is_left_of_a_cluster_that_is_dropped() {
    let cluster = Cluster::start(2).unwrap();
    let (name, dir) = {
        let run = cluster.node(0).place().run();
        (run.name().to_owned(), run.dir().to_owned())
    };
    let volume = cluster
        .create_volume("gv0", VolumeKind::Replica(2), &[])
        .unwrap();
    volume.start().unwrap();
    let mount = volume.mount(1).unwrap();
    let brick = volume.brick_pid(0).unwrap().unwrap();
    drop((mount, volume, cluster));
    assert!(!dir.exists());
    // A zombie that nobody has waited for yet has no command line.
    let command_line = fs::read(format!("/proc/{brick}/cmdline")).unwrap_or_default();
    assert!(command_line.is_empty(), "brick process {brick} lives on");
    let netns = run_command(Command::new("ip").args(["netns", "list"]), PING_DEADLINE).unwrap();
    assert!(!netns.contains(&name), "{netns}");
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(&name)
    );
}
