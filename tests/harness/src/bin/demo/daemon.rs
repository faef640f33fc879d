//! `bypass-blk serve` on a node, from its start to its clean end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bypass_harness::{Background, Error, Result, Volume, wait_until};

/// The line of its log that says that the socket is there.
const READY: &str = "listening on";
const START_DEADLINE: Duration = Duration::from_secs(60);
const END_DEADLINE: Duration = Duration::from_secs(60);

/// The running daemon; killed when dropped.
pub struct Daemon {
    process: Background,
    log: PathBuf,
    /// Its vhost-user socket.
    pub socket: PathBuf,
}

impl Daemon {
    /// Serves `image` from brick `brick` on that brick's node.
    pub fn start(program: &Path, volume: &Volume, image: &str, brick: usize) -> Result<Daemon> {
        let node = volume.brick_node(brick);
        let socket = node.place().dir().join("blk.sock");
        let log = node.place().dir().join("bypass-blk.log");
        let log_file = File::create(&log).map_err(|source| Error::File {
            what: "create",
            path: log.clone(),
            source,
        })?;
        let mut command = node.command(&program.to_string_lossy());
        command
            .args([
                "serve",
                "--server",
                node.address(),
                "--volume",
                volume.name(),
            ])
            .args(["--image", image, "--brick", &volume.brick_name(brick)])
            .arg("--socket-path")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file);
        let mut daemon = Daemon {
            process: Background::start(&mut command)?,
            log,
            socket,
        };
        wait_until("bypass-blk to listen", START_DEADLINE, || {
            match daemon.process.exited() {
                Some(status) => Ok(Err(daemon.failed(&status.to_string()))),
                None if daemon.log().contains(READY) => Ok(Ok(())),
                None => Err(daemon.log()),
            }
        })??;
        Ok(daemon)
    }

    /// Ends it with SIGTERM, as an operator does.
    pub fn stop(mut self) -> Result<()> {
        self.process.terminate();
        let status = self.process.wait(END_DEADLINE)?;
        if status.success() {
            return Ok(());
        }
        Err(self.failed(&status.to_string()))
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn failed(&self, status: &str) -> Error {
        Error::Command {
            command: "bypass-blk serve".into(),
            status: status.to_owned(),
            output: self.log(),
        }
    }
}
