//! `bypass-blk status` as a process: asked of a daemon that is only a control socket
//! with a document behind it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bypass_blk::control::socket::{Answer, ControlSocket};
use bypass_blk::control::status::Status;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon whose image grows by a byte whenever it is asked.
fn daemon(run_dir: &Path) -> ControlSocket {
    let document = json!({
        "version": 2, "volume": "vms", "image": "/vm1.img",
        "gfid": "00000000-0000-0000-0000-000000000001", "size": 0, "state": "clean",
        "detail": null, "holder": null, "fence": "advisory", "copies": [],
        "heal": null, "last_verified": null, "serving": null,
    });
    let status: Status = serde_json::from_value(document).unwrap();
    let socket = ControlSocket::bind(run_dir, "vms", uuid::Uuid::from_u128(1)).unwrap();
    let size = AtomicU64::new(4096);
    let answer = move |_| {
        let size = size.fetch_add(1, Ordering::SeqCst);
        Answer::Status(Box::new(Status {
            size,
            ..status.clone()
        }))
    };
    socket.answer(answer).unwrap();
    socket
}

fn status(run_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bypass-blk"));
    command
        .args(["status", "--run-dir"])
        .arg(run_dir)
        .args(args);
    command.stdin(Stdio::null());
    command
}

fn watch(run_dir: &Path, args: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut command = status(run_dir, args);
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let reports = BufReader::new(child.stdout.take().unwrap());
    (child, reports)
}

/// It ended by itself, quietly and well.
fn ends_well(mut child: Child) {
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it goes on");
        }
        std::thread::yield_now();
    };
    let mut errors = String::new();
    child.stderr.unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
}

#[test]
fn a_watched_report_is_repeated_with_new_figures_until_ctrl_c() {
    let run_dir = tempfile::tempdir().unwrap();
    let _daemon = daemon(run_dir.path());
    let (child, reports) = watch(run_dir.path(), &["--watch=0.1"]);
    let mut lines = reports.lines().map(Result::unwrap);
    for size in 4096..4099 {
        let report: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        assert!(report[0].starts_with("vms/vm1.img  clean"), "{report:?}");
        assert!(report[1].contains(&format!("({size} bytes)")), "{report:?}");
    }
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    // The pipe is read to its end, so that nothing else ends it.
    assert!(lines.all(|line| !line.contains('\x1b')));
    ends_well(child);
}

#[test]
fn a_watched_document_is_one_line_each_time() {
    let run_dir = tempfile::tempdir().unwrap();
    let _daemon = daemon(run_dir.path());
    let (child, mut reports) = watch(run_dir.path(), &["--watch=0.1", "--json"]);
    for size in 4096..4099 {
        let mut line = String::new();
        reports.read_line(&mut line).unwrap();
        let document: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(document[0]["size"], size);
    }
    drop(reports);
    ends_well(child);
}

#[test]
fn a_reader_that_goes_away_ends_it_long_before_the_next_report() {
    let run_dir = tempfile::tempdir().unwrap();
    let (child, mut reports) = watch(run_dir.path(), &["--watch=3600"]);
    let mut line = String::new();
    reports.read_line(&mut line).unwrap();
    assert_eq!(line, "no image is served on this host\n");
    drop(reports);
    ends_well(child);
}

#[test]
fn a_report_that_nobody_reads_is_no_error() {
    let run_dir = tempfile::tempdir().unwrap();
    let _daemon = daemon(run_dir.path());
    for args in [&[][..], &["--json"], &["--watch"]] {
        let (child, reports) = watch(run_dir.path(), args);
        drop(reports);
        ends_well(child);
    }
}
