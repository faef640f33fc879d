//! The demo program ended before its time leaves nothing behind. Needs root and
//! Debian's packages (`tests/run`).

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use bypass_harness::{Background, Run, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
/// The shell's exit status for SIGTERM.
const TERMINATED: i32 = 128 + 15;

/// The demo, with its first node's `glusterd` up.
fn demo_under_way() -> Background {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    // It will not come as far as running this program.
    command.args(["--program", "/bin/false"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let demo = Background::start(&mut command).unwrap();
    wait_until("the demo's first glusterd", DEADLINE, || {
        let up = left_of(demo.pid())
            .iter()
            .any(|path| fs::exists(format!("{path}/n1/run/glusterd.pid")).unwrap_or(false));
        up.then_some(()).ok_or("not yet".into())
    })
    .unwrap();
    demo
}

/// The folders and namespaces of all runs of a process.
fn left_of(pid: u32) -> Vec<String> {
    let scratch = std::env::var("BYPASS_SCRATCH").unwrap_or("/var/tmp".into());
    let mut left = Vec::new();
    for dir in [scratch.as_str(), "/run/netns"] {
        let entries = fs::read_dir(dir).unwrap().flatten();
        let names = entries.map(|entry| entry.path().display().to_string());
        left.extend(names.filter(|name| name.contains(&format!("/bb-{pid}-"))));
    }
    left
}

#[test]
fn sigterm_removes_everything_and_is_told_in_the_exit_status() {
    let mut demo = demo_under_way();
    demo.terminate();
    let status = demo.wait(DEADLINE).unwrap();
    assert_eq!(status.code(), Some(TERMINATED));
    assert_eq!(left_of(demo.pid()), [""; 0]);
}

#[test]
fn what_a_killed_run_left_is_swept_away_by_the_next() {
    let mut demo = demo_under_way();
    demo.kill();
    assert_ne!(left_of(demo.pid()), [""; 0]);
    Run::sweep();
    assert_eq!(left_of(demo.pid()), [""; 0]);
}
