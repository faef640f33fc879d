//! A `bypass-blk heald` on a node of the cluster.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use bypass_harness::{Background, Node, wait_until};

use super::PATIENCE;
use super::daemon::{BINARY, run_dir, state_dir};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Killed when dropped.
pub struct Healer {
    process: Background,
    log: PathBuf,
}

impl Healer {
    /// Starts the healer of a node.
    pub fn start(node: &Node, extra: &[&str]) -> Healer {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = node.place().dir().join(format!("heald{id}.log"));
        let mut command = node.command(BINARY);
        command
            .args(["heald", "--log-level", "debug", "--run-dir"])
            .arg(run_dir(node))
            .arg("--state-dir")
            .arg(state_dir(node))
            .args(extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let process = Background::start(&mut command).unwrap();
        Healer { process, log }
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has logged a line with this text.
    pub fn wait_log(&self, text: &str) {
        let logged = || {
            let log = self.log();
            log.contains(text).then_some(()).ok_or(log)
        };
        wait_until(format!("{text:?} in the healer's log"), PATIENCE, logged).unwrap();
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its exit status, if it has ended by itself.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process.exited()
    }

    /// SIGTERM, and its exit status.
    pub fn stop(mut self) -> ExitStatus {
        self.process.terminate();
        self.process.wait(PATIENCE).unwrap()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.kill();
    }
}
