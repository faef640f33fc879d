//! A state directory that cannot be used: nobody would know what the peers miss, so
//! nothing is served.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;

use bypass_harness::{Cluster, Volume};
use support::daemon::{Daemon, run_on};
use support::tmpfs::Tmpfs;
use support::{IMAGE, replica_3};

/// `serve` with this state directory; its exit code and what it said.
fn serve(volume: &Volume, state_dir: &Path, extra: &[&str]) -> (Option<i32>, String) {
    let node = volume.brick_node(0);
    let file = |name: &str| node.place().dir().join(name).display().to_string();
    let (socket, run_dir, brick) = (file("s.sock"), file("s.run"), volume.brick_name(0));
    let mut args = vec!["serve", "--server", node.address(), "--run-dir", &run_dir];
    args.extend([
        "--volume",
        volume.name(),
        "--image",
        IMAGE,
        "--brick",
        &brick,
    ]);
    args.extend(["--socket-path", &socket, "--state-dir"]);
    args.push(state_dir.to_str().unwrap());
    args.extend(extra);
    run_on(node, &args)
}

#[test]
fn a_state_directory_that_is_full_or_not_writable_refuses_the_start_and_leaves_the_image_alone() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let node = volume.brick_node(0);
    let full = Tmpfs::mount(&node.place().dir().join("full"), "size=4k");
    let read_only = Tmpfs::mount(&node.place().dir().join("read-only"), "ro");
    let a_file = node.place().dir().join("a-file");
    std::fs::write(&a_file, "").unwrap();
    for (state_dir, words) in [
        (full.path(), "no room"),
        (read_only.path(), "--state-dir"),
        (&a_file, "--state-dir"),
    ] {
        let (code, said) = serve(&volume, state_dir, &[]);
        assert_eq!(code, Some(36), "{said}");
        let name = state_dir.to_str().unwrap();
        assert!(said.contains(words) && said.contains(name), "{said}");
    }
    let marks = volume.marks(IMAGE).unwrap();
    assert!(marks.is_clean(), "{marks}");
    // Nothing is left of the attempts.
    drop(Daemon::serve(&volume, 0, &["--lock-timeout", "0s"]));
}
