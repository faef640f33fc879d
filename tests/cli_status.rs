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

/// In a host whose state directory is a folder in its run directory.
fn status(run_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bypass-blk"));
    command
        .args(["status", "--run-dir"])
        .arg(run_dir)
        .arg("--state-dir")
        .arg(run_dir.join("state"))
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
    assert!(
        line.starts_with("no image is served on this host"),
        "{line}"
    );
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

/// What it ended with, and printed, and warned of.
fn outcome(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// A document as a session on `/vm{number}.img` leaves it.
fn remember(run_dir: &Path, number: u128) {
    let gfid = uuid::Uuid::from_u128(number);
    let document = json!({
        "volume": "vms", "image": format!("/vm{number}.img"), "gfid": gfid, "server": "localhost",
        "port": 24007, "brick": "node1:/no/such/brick", "settled": false,
    });
    let state = run_dir.join("state");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join(format!("vms-{gfid}.json")), document.to_string()).unwrap();
}

#[test]
fn a_killed_daemon_is_told_with_an_exit_code_of_its_own_and_the_rest_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path();
    let _daemon = daemon(run_dir);
    let (code, _, warned) = outcome(&mut status(run_dir, &[]));
    assert_eq!((code, warned.as_str()), (Some(0), ""));
    remember(run_dir, 2);
    let name = format!("vms-{}-77.control", uuid::Uuid::from_u128(2));
    drop(std::os::unix::net::UnixListener::bind(run_dir.join(&name)).unwrap());
    let (code, screen, warned) = outcome(&mut status(run_dir, &[]));
    assert_eq!(code, Some(76), "{screen}{warned}");
    let lines: Vec<_> = screen.lines().collect();
    // The worst first, under the heading.
    assert!(lines[1].starts_with("vms/vm2.img  KILLED"), "{screen}");
    assert!(lines[2].starts_with("vms/vm1.img  clean"), "{screen}");
    assert!(
        lines[3].starts_with("2 images: 1 bad for the guest, 1 well"),
        "{screen}"
    );
    let told = "vms/vm2.img: its daemon was killed";
    assert!(warned.contains(told), "{warned}");
    assert!(lines[1].contains(&name), "{screen}");
    let (code, document, _) = outcome(&mut status(run_dir, &["--json"]));
    assert_eq!(code, Some(76));
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document[0]["unserved"], serde_json::Value::Null);
    assert_eq!(document[1]["unserved"]["daemon"], "killed");
    assert_eq!(document[1]["unserved"]["pid"], 77);
    assert_eq!(document[1]["state"], "unknown");
}

#[test]
fn images_that_nobody_serves_and_that_are_not_healed_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path();
    remember(run_dir, 3);
    let (code, screen, _) = outcome(&mut status(run_dir, &[]));
    assert_eq!(code, Some(0), "it was seen: {screen}");
    assert!(screen.starts_with("vms/vm3.img  NOT SERVED\n"), "{screen}");
    assert!(screen.contains("bypass-blk heald"), "{screen}");
    remember(run_dir, 4);
    let (_, screen, _) = outcome(&mut status(run_dir, &["--details"]));
    assert_eq!(screen.matches("copies   not asked").count(), 2, "{screen}");
}

#[test]
fn whoever_may_not_look_is_told_so_and_not_that_there_is_nothing() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path();
    let _daemon = daemon(run_dir);
    remember(run_dir, 3);
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(run_dir, 0o755);
    mode(&run_dir.join("state"), 0o700);
    // The program may lie where only root can go.
    let program = run_dir.join("bypass-blk");
    std::fs::copy(env!("CARGO_BIN_EXE_bypass-blk"), &program).unwrap();
    mode(&program, 0o755);
    let mut command = Command::new(program);
    command.args(["status", "--run-dir"]).arg(run_dir);
    command.arg("--state-dir").arg(run_dir.join("state"));
    command.uid(65534).gid(65534).current_dir("/");
    let (code, screen, warned) = outcome(&mut command);
    assert_eq!(code, Some(76), "{screen}{warned}");
    assert!(screen.contains("NO ANSWER"), "{screen}");
    assert!(screen.contains("NOT SEEN: cannot read"), "{screen}");
    assert!(warned.contains("Permission denied"), "{warned}");
    assert!(warned.contains("as root"), "{warned}");
    assert!(!screen.contains("no image"), "{screen}");
}

#[test]
fn without_a_healer_its_bandwidth_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bypass-blk"));
    command
        .args(["bandwidth", "10M", "--run-dir"])
        .arg(folder.path());
    let (code, _, told) = outcome(&mut command);
    assert_eq!(code, Some(51));
    assert!(told.contains("no healer runs on this host"), "{told}");
}
