//! What `status` and the metrics say of the debt of a real session.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use bypass_harness::{Cluster, wait_until};
use serde_json::Value;
use support::daemon::{Daemon, run_dir, run_on, state_dir};
use support::front_end::FrontEnd;
use support::healer::Healer;
use support::{IMAGE, PATIENCE, pattern, replica_3};

fn scrape(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

fn wait_heal(daemon: &Daemon, is_so: impl Fn(&Value) -> bool) -> Value {
    wait_until("the healing to get there", PATIENCE, || {
        let status = daemon.status();
        match is_so(&status["heal"]) {
            true => Ok(status),
            false => Err(format!("{status:#}")),
        }
    })
    .unwrap()
}

#[test]
fn what_the_guest_wrote_is_a_debt_to_every_peer_until_somebody_heals_it() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("metrics.sock");
    let metrics = format!("unix:{}", socket.display());
    let daemon = Daemon::serve(&volume, 0, &["--metrics", &metrics]);

    let status = daemon.status();
    assert_eq!(status["version"], 2);
    assert_eq!(status["heal"]["oldest_unsent_seconds"], 0.0, "{status:#}");
    assert_eq!(status["copies"][0]["behind"], Value::Null);

    // 33 extents of the default size.
    let mut disk = FrontEnd::connect(daemon.socket());
    disk.write(1 << 20, &pattern(1, 1 << 20, 131_072 + 4096), PATIENCE)
        .unwrap();
    disk.flush(PATIENCE).unwrap();

    let status = daemon.status();
    for (peer, copy) in [(0, 1), (1, 2)] {
        let behind = &status["copies"][copy]["behind"];
        assert_eq!(behind["extents"], 33, "{status:#}");
        assert_eq!(behind["bytes"], 33 * 4096);
        assert_eq!(behind["suspect"], false);
        let heal = &status["heal"]["peers"][peer];
        assert_eq!(heal["copy"], copy);
        assert_eq!(heal["state"], "waiting");
        assert_eq!(heal["waits_for"], "healer");
        assert!(heal["oldest_unsent_seconds"].as_f64().unwrap() > 0.0);
        assert_eq!(heal["oldest_unsent_at_least"], false);
    }

    let text = scrape(&socket);
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    for brick in 1..3 {
        let brick = volume.brick_name(brick);
        let behind = format!(
            "bypass_blk_copy_behind_bytes{{volume=\"gv0\",image=\"{IMAGE}\",brick=\"{brick}\"}} 135168.0\n"
        );
        assert!(text.contains(&behind), "{text}");
    }

    // At this rate it lasts.
    let node = volume.brick_node(0).clone();
    for at in (0..8).map(|mebibyte| mebibyte << 20) {
        disk.write(at, &pattern(2, at, 1 << 20), PATIENCE).unwrap();
    }
    let slow = Healer::start(&node, &["--bandwidth", "256K"]);
    let status = wait_heal(&daemon, |heal| {
        heal["peers"][0]["figures"]["bytes_sent"].as_u64() > Some(0)
    });
    let heal = &status["heal"];
    assert_eq!(heal["healer"]["bandwidth"], 262_144, "{status:#}");
    assert_eq!(heal["peers"][0]["most_behind_bytes"], 8 << 20);
    slow.stop();
    let status = wait_heal(&daemon, |heal| heal["healer"].is_null());
    assert_eq!(status["heal"]["peers"][0]["waits_for"], "healer");

    let healer = Healer::start(&node, &[]);
    let status = wait_heal(&daemon, |heal| heal["oldest_unsent_seconds"] == 0.0);
    for copy in [1, 2] {
        assert_eq!(status["copies"][copy]["behind"]["bytes"], 0, "{status:#}");
    }
    assert_eq!(status["heal"]["peers"][0]["state"], "idle");
    assert_eq!(status["heal"]["eta_seconds"], 0);
    assert!(
        scrape(&socket).contains("\nbypass_blk_healer_up{volume=\"gv0\",image=\"/vm1.img\"} 1.0\n")
    );
    healer.stop();

    drop(disk);
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!socket.exists(), "the metrics socket is left behind");

    // From the bricks alone nobody knows how much it is.
    let target = format!("gv0{IMAGE}");
    let args = ["status", "--server", node.address(), "--json", &target];
    let (code, text) = run_on(&node, &args);
    assert_eq!(code, Some(0), "{text}");
    let seen: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(seen[0]["heal"], Value::Null);
    assert_eq!(seen[0]["serving"], Value::Null);

    // Killed, it is told by the host, and beside what the bricks say.
    Daemon::serve(&volume, 0, &[]).kill();
    let (run_dir, state_dir) = (run_dir(&node), state_dir(&node));
    let here = ["--run-dir", run_dir.to_str().unwrap()];
    let kept = ["--state-dir", state_dir.to_str().unwrap()];
    let (code, text) = run_on(&node, &[&["status", "--json"], &here[..], &kept].concat());
    assert_eq!(code, Some(76), "{text}");
    assert!(text.contains(&format!("\"image\": \"{IMAGE}\"")), "{text}");
    let args = [&args[..], &here, &kept].concat();
    let (code, text) = run_on(&node, &args);
    assert_eq!(code, Some(0), "{text}");
    let seen: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(seen[0]["state"], "clean");
    assert_eq!(seen[0]["unserved"]["daemon"], "killed", "{text}");
}
