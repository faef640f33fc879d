//! `bypass-blk` on the hosts: a daemon for an image, the healers. Killed when dropped.

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bypass_harness::{Background, Node, Volume, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// The vhost-user socket of an image, in the folder of the control sockets.
pub const SOCKET: &str = "vm1.sock";
/// The line of the daemon's log that says that the socket is there.
const READY: &str = "listening on";

/// Where the program is, and how it is run.
pub struct Program {
    path: PathBuf,
    /// What a daemon of an image is run by; nothing for most.
    runner: Vec<String>,
}

/// A running `bypass-blk serve`.
pub struct Daemon {
    process: Background,
    log: PathBuf,
    /// Its vhost-user socket.
    pub socket: PathBuf,
}

impl Program {
    /// The program at this path, or found by name.
    pub fn new(path: &Path) -> Result<Program, Box<dyn Error>> {
        let path = match path.components().count() {
            1 => path.to_owned(),
            _ => path.canonicalize()?,
        };
        Ok(Program {
            path,
            runner: Vec::new(),
        })
    }

    /// The same, with the group and the umask that a systemd unit gives to a daemon.
    pub fn of_unit(self, unit: &str) -> Result<Program, Box<dyn Error>> {
        let [group, umask] = ["Group", "UMask"].map(|name| {
            let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned());
            let value = unit.lines().find_map(value);
            value.ok_or_else(|| format!("the unit has no {name}="))
        });
        let script = format!(
            "umask {}; exec setpriv --regid {} --clear-groups -- \"$@\"",
            umask?, group?
        );
        Ok(Program {
            runner: ["sh", "-c", &script, "sh"].map(String::from).into(),
            ..self
        })
    }

    /// For a command line.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn start(
        &self,
        node: &Node,
        runner: &[String],
        verb: &str,
        args: &[&str],
    ) -> Result<(Background, PathBuf), Box<dyn Error>> {
        let dir = node.place().dir();
        let log = dir.join(format!("{verb}.log"));
        let program = self.path.to_string_lossy().into_owned();
        let words: Vec<&String> = runner.iter().chain([&program]).collect();
        let mut command: Command = node.command(words[0]);
        command
            .args(&words[1..])
            .args([verb, "--run-dir"])
            .arg(run_dir(node))
            .arg("--state-dir")
            .arg(dir.join("blk-state"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        Ok((Background::start(&mut command)?, log))
    }

    /// `heald` on every host.
    pub fn healers(&self, volume: &Volume) -> Result<Vec<Background>, Box<dyn Error>> {
        let nodes = volume.cluster().nodes().iter();
        nodes
            .map(|node| Ok(self.start(node, &[], "heald", &[])?.0))
            .collect()
    }

    /// Serves an image from a brick, on that brick's host, and waits until it listens.
    pub fn serve(
        &self,
        volume: &Volume,
        image: &str,
        brick: usize,
        more: &[&str],
    ) -> Result<Daemon, Box<dyn Error>> {
        let node = volume.brick_node(brick);
        fs::create_dir_all(run_dir(node))?;
        let socket = run_dir(node).join(SOCKET);
        let (brick, path) = (volume.brick_name(brick), socket.display().to_string());
        let mut args = vec!["--server", node.address(), "--volume", volume.name()];
        args.extend(["--image", image, "--brick", &brick, "--socket-path", &path]);
        args.extend(more);
        let (process, log) = self.start(node, &self.runner, "serve", &args)?;
        let mut daemon = Daemon {
            process,
            log,
            socket,
        };
        wait_until("bypass-blk to listen", PATIENCE, || {
            match daemon.process.exited() {
                Some(status) => Ok(Err(format!("bypass-blk ended, {status}: {}", daemon.log()))),
                None if daemon.log().contains(READY) => Ok(Ok(())),
                None => Err(daemon.log()),
            }
        })??;
        Ok(daemon)
    }
}

/// Where the control sockets of a host are.
pub fn run_dir(node: &Node) -> PathBuf {
    node.place().dir().join("blk-run")
}

impl Daemon {
    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it with SIGTERM, as an operator does.
    pub fn stop(mut self) -> Result<(), Box<dyn Error>> {
        self.process.terminate();
        let status = self.process.wait(PATIENCE)?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("bypass-blk ended with {status}: {}", self.log()).into()),
        }
    }
}
