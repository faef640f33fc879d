//! A `bypass-blk serve` on a node of the cluster.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bypass_harness::{Background, Node, Volume, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{IMAGE, PATIENCE};

pub const BINARY: &str = env!("CARGO_BIN_EXE_bypass-blk");
/// What a daemon says that has taken over from the process before.
pub const UPGRADED: &str = "serving again, upgraded,";
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Killed when dropped.
pub struct Daemon {
    process: Background,
    log: PathBuf,
    socket: PathBuf,
    node: Node,
    args: Vec<String>,
}

/// A daemon that ended before it served.
#[derive(Debug)]
pub struct Refused {
    pub code: Option<i32>,
    pub log: String,
}

impl Daemon {
    /// Serves [`IMAGE`] from child `brick` of the volume, on that brick's node,
    /// and waits until it listens.
    pub fn serve(volume: &Volume, brick: usize, extra: &[&str]) -> Daemon {
        Self::try_serve(volume, brick, extra)
            .unwrap_or_else(|refused| panic!("not served: {refused:?}"))
    }

    /// As [`Daemon::serve`], for a test that expects a refusal.
    pub fn try_serve(volume: &Volume, brick: usize, extra: &[&str]) -> Result<Daemon, Refused> {
        Self::start(volume, brick, IMAGE, extra).wait_listening()
    }

    /// Starts a daemon and does not wait.
    pub fn start(volume: &Volume, brick: usize, image: &str, extra: &[&str]) -> Daemon {
        let name = volume.brick_name(brick);
        let mut all = vec![
            "--volume",
            volume.name(),
            "--image",
            image,
            "--brick",
            &name,
        ];
        all.extend(extra);
        Self::start_on(volume.brick_node(brick), &all)
    }

    /// Starts a daemon of [`IMAGE`] that listens at `socket`, where another one has
    /// listened, and does not wait.
    pub fn start_at(volume: &Volume, brick: usize, socket: &str, extra: &[&str]) -> Daemon {
        let name = volume.brick_name(brick);
        let mut args = vec!["--volume", volume.name(), "--image", IMAGE];
        args.extend(["--brick", &name]);
        args.extend(extra);
        let args = args.iter().map(ToString::to_string).collect();
        Self::launch(volume.brick_node(brick), socket.into(), args)
    }

    /// Starts a daemon on a node with these arguments (and a socket path).
    pub fn start_on(node: &Node, args: &[&str]) -> Daemon {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let socket = node.place().dir().join(format!("daemon{id}.sock"));
        Self::launch(node, socket, args.iter().map(ToString::to_string).collect())
    }

    /// SIGKILL, and a new process with the same arguments, as a supervisor starts it.
    /// Does not wait until it listens.
    pub fn restart(mut self) -> Daemon {
        self.process.kill();
        Self::launch(&self.node, self.socket, self.args)
    }

    fn launch(node: &Node, socket: PathBuf, args: Vec<String>) -> Daemon {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = node.place().dir().join(format!("daemon{id}.log"));
        let (run_dir, state_dir) = (run_dir(node), state_dir(node));
        let mut command = node.command(BINARY);
        command
            .args(["serve", "--log-level", "debug", "--server", node.address()])
            .arg("--socket-path")
            .arg(&socket)
            .arg("--run-dir")
            .arg(&run_dir)
            .arg("--state-dir")
            .arg(&state_dir)
            .args(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let process = Background::start(&mut command).unwrap();
        Daemon {
            process,
            log,
            socket,
            node: node.clone(),
            args,
        }
    }

    /// SIGKILL, and nobody in its place yet: see [`Daemon::again`].
    pub fn crash(&mut self) {
        self.process.kill();
    }

    /// Starts it anew at the same socket with the same arguments, as a supervisor does,
    /// and waits until it listens.
    pub fn again(&mut self) {
        self.process.kill();
        let daemon = Self::launch(&self.node, self.socket.clone(), self.args.clone());
        *self = daemon.wait_listening().unwrap();
    }

    /// Asks it to become a new process.
    pub fn ask_to_upgrade(&self) {
        let pid = Pid::from_raw(self.pid().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::USR1).unwrap();
    }

    /// Asks for that, and waits until it is done.
    pub fn upgrade(&self) {
        let before = self.logged(UPGRADED);
        self.ask_to_upgrade();
        self.wait_logged(UPGRADED, before + 1);
    }

    /// Waits until every upgrade that was asked for is done or refused. `false`: it has
    /// ended.
    pub fn settle_upgrades(&mut self) -> bool {
        wait_until("the end of an upgrade", PATIENCE, || {
            if self.process.exited().is_some() {
                return Ok(false);
            }
            // Two that are asked for at once may be one.
            let log = self.log();
            let asked = log.rfind("SIGUSR1: upgrading");
            let ends = [
                UPGRADED,
                "not upgraded:",
                "cannot go on with another process",
            ];
            let ended = ends.iter().filter_map(|end| log.rfind(end)).max();
            if asked <= ended { Ok(true) } else { Err(log) }
        })
        .unwrap()
    }

    /// How often it has logged this text.
    pub fn logged(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits until it has logged this text so often.
    pub fn wait_logged(&self, text: &str, wanted: usize) {
        wait_until(format!("{wanted} times {text:?}"), PATIENCE, || {
            let found = self.logged(text);
            (found >= wanted).then_some(()).ok_or_else(|| self.log())
        })
        .unwrap();
    }

    /// Waits for its end by itself; its exit code and log.
    pub fn ended(&mut self) -> (Option<i32>, String) {
        let status = self.process.wait(PATIENCE).unwrap();
        (status.code(), self.log())
    }

    /// Waits until the daemon listens, or has ended instead.
    pub fn wait_listening(mut self) -> Result<Daemon, Refused> {
        wait_until("the daemon to listen or end", PATIENCE, || {
            let ended = self.process.exited();
            match (ended, self.log().contains("listening on")) {
                (Some(status), _) => Ok(Err(Refused {
                    code: status.code(),
                    log: self.log(),
                })),
                (None, true) => Ok(Ok(())),
                (None, false) => Err(self.log()),
            }
        })
        .unwrap()?;
        Ok(self)
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has logged a line with this text.
    pub fn wait_log(&self, text: &str) {
        let logged = || {
            self.log()
                .contains(text)
                .then_some(())
                .ok_or_else(|| self.log())
        };
        wait_until(format!("{text:?} in the log"), PATIENCE, logged).unwrap();
    }

    /// Whose the image is, as this daemon says; empty if it does not answer.
    pub fn custody(&self) -> String {
        let socket = self.socket().to_str().unwrap();
        let images = self.statuses();
        let mut images = images.as_array().into_iter().flatten();
        let ours = images.find(|image| image["serving"]["socket"] == socket);
        let custody = ours.and_then(|image| image["serving"]["custody"].as_str());
        custody.unwrap_or_default().to_owned()
    }

    /// Waits until that is so.
    pub fn wait_custody(&self, wanted: &str) {
        wait_until(format!("custody {wanted}"), PATIENCE, || {
            let found = self.custody();
            (found == wanted)
                .then_some(())
                .ok_or_else(|| format!("{found}: {}", self.log()))
        })
        .unwrap();
    }

    /// Its vhost-user socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The status documents of its host.
    pub fn statuses(&self) -> Value {
        let mut command = self.node.command(BINARY);
        command
            .args(["status", "--json", "--run-dir"])
            .arg(run_dir(&self.node))
            .arg("--state-dir")
            .arg(state_dir(&self.node));
        let output = bypass_harness::finish(&mut command, PATIENCE).unwrap();
        // 76: some daemon of this host was killed, by the test.
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 76)), "{code:?} {}", output.stderr);
        serde_json::from_str(&output.stdout).unwrap()
    }

    /// The status document of its one image.
    pub fn status(&self) -> Value {
        let images = self.statuses();
        let ours = |image: &&Value| image["holder"]["pid"] == self.pid();
        let image = images.as_array().unwrap().iter().find(ours);
        image.cloned().unwrap_or_default()
    }

    /// Waits until the status says this state.
    pub fn wait_state(&self, state: &str) -> Value {
        wait_until(format!("state {state}"), PATIENCE, || {
            let status = self.status();
            if status["state"] == state {
                Ok(status)
            } else {
                Err(format!("{status:#}\n{}", self.log()))
            }
        })
        .unwrap()
    }

    /// SIGTERM, and its exit status.
    pub fn stop(mut self) -> ExitStatus {
        self.process.terminate();
        self.process.wait(PATIENCE).unwrap()
    }

    /// Its exit status, once it ends by itself.
    pub fn wait_end(mut self, patience: Duration) -> (ExitStatus, String) {
        let status = self.process.wait(patience).unwrap();
        (status, self.log())
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.kill();
    }
}

/// Where the daemons of a node have their control sockets.
pub fn run_dir(node: &Node) -> PathBuf {
    node.place().dir().join("run")
}

/// Where the daemons of a node keep their dirty maps.
pub fn state_dir(node: &Node) -> PathBuf {
    node.place().dir().join("state")
}

/// Runs another command of the program on a node; its exit code and output, both
/// streams.
pub fn run_on(node: &Node, args: &[&str]) -> (Option<i32>, String) {
    let mut command: Command = node.command(BINARY);
    let output = command.args(args).stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// `bypass-blk heal` of [`IMAGE`] on the node of a brick.
pub fn heal(volume: &Volume, brick: usize, extra: &[&str]) -> (Option<i32>, String) {
    of_image("heal", volume, brick, extra)
}

/// `bypass-blk resize` of [`IMAGE`] on the node of a brick.
pub fn resize(volume: &Volume, brick: usize, extra: &[&str]) -> (Option<i32>, String) {
    of_image("resize", volume, brick, extra)
}

fn of_image(command: &str, volume: &Volume, brick: usize, extra: &[&str]) -> (Option<i32>, String) {
    let node = volume.brick_node(brick);
    let (target, name) = (
        format!("{}{IMAGE}", volume.name()),
        volume.brick_name(brick),
    );
    let (run_dir, state_dir) = (run_dir(node), state_dir(node));
    let folder = |path: &Path| path.to_str().unwrap().to_owned();
    let (run_dir, state_dir) = (folder(&run_dir), folder(&state_dir));
    let mut args = vec![command, &target, "--server", node.address()];
    args.extend([
        "--run-dir",
        &run_dir,
        "--state-dir",
        &state_dir,
        "--brick",
        &name,
    ]);
    args.extend(extra);
    run_on(node, &args)
}

/// `bypass-blk promote` of [`IMAGE`] on the node of a brick.
pub fn promote(volume: &Volume, brick: usize, extra: &[&str]) -> (Option<i32>, String) {
    let node = volume.brick_node(brick);
    let (target, name) = (
        format!("{}{IMAGE}", volume.name()),
        volume.brick_name(brick),
    );
    let state = state_dir(node).to_str().unwrap().to_owned();
    let mut args = vec!["promote", &target, "--server", node.address()];
    args.extend(["--state-dir", &state, "--brick", &name]);
    args.extend(extra);
    run_on(node, &args)
}

/// The same, until it succeeds: the bricks may still hold the locks of a crashed host.
pub fn wait_promoted(volume: &Volume, brick: usize, extra: &[&str]) {
    wait_until("the copy to be promoted", PATIENCE, || {
        let (code, said) = promote(volume, brick, extra);
        (code == Some(0)).then_some(()).ok_or(said)
    })
    .unwrap();
}
