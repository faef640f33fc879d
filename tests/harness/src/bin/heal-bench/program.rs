//! `bypass-blk` on the node that has the served copy: the daemon, the healer, and
//! one heal in the foreground. Everything is killed when dropped.

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bypass_harness::{Background, Node, Volume, run_command, wait_until};
use serde_json::Value;

use crate::NODE;
use crate::traffic::{cpu_of, read_by};

const PATIENCE: Duration = Duration::from_secs(60);
/// The longest heal.
const HEAL_DEADLINE: Duration = Duration::from_secs(3600);
/// The line of the daemon's log that says that the socket is there.
const READY: &str = "listening on";

/// Where the program is.
pub struct Program(PathBuf);

/// A finished heal.
pub struct Healed {
    /// From the program's start to its end.
    pub took: Duration,
    /// What it read from disks: the local copy.
    pub read: u64,
    /// The processors' time it had.
    pub cpu: Duration,
    /// Its summary.
    pub said: String,
}

impl Program {
    /// The program at this path, or found by name.
    pub fn new(path: &Path) -> Result<Program, Box<dyn Error>> {
        let path = match path.components().count() {
            1 => path.to_owned(),
            _ => path.canonicalize()?,
        };
        Ok(Program(path))
    }

    fn command(&self, node: &Node, verb: &str) -> Command {
        let mut command = node.command(&self.0.to_string_lossy());
        let dir = node.place().dir();
        command.arg(verb).arg("--run-dir").arg(dir.join("blk-run"));
        command.arg("--state-dir").arg(dir.join("blk-state"));
        command.stdin(Stdio::null());
        command
    }

    /// Serves an image, with extents of the default size or of this one, and waits
    /// until it listens.
    pub fn serve(
        &self,
        volume: &Volume,
        image: &str,
        extent_size: Option<&str>,
    ) -> Result<Daemon<'_>, Box<dyn Error>> {
        let option = extent_size.map(|size| format!("--extent-size={size}"));
        self.serve_with(volume, image, option.as_slice())
    }

    /// As [`Program::serve`], with any options of `bypass-blk serve`.
    pub fn serve_with(
        &self,
        volume: &Volume,
        image: &str,
        options: &[String],
    ) -> Result<Daemon<'_>, Box<dyn Error>> {
        let node = volume.brick_node(NODE);
        let name = image.replace('/', "-");
        let socket = node.place().dir().join(format!("blk{name}.sock"));
        let mut command = self.command(node, "serve");
        command
            .args(["--server", node.address(), "--volume", volume.name()])
            .args(["--image", image, "--brick", &volume.brick_name(NODE)])
            .arg("--socket-path")
            .arg(&socket)
            .args(options);
        let (mut process, log) = start(&mut command, node, &format!("serve{name}"))?;
        wait_until("bypass-blk to listen", PATIENCE, || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            match process.exited() {
                Some(status) => Ok(Err(format!("bypass-blk serve ended, {status}: {said}"))),
                None if said.contains(READY) => Ok(Ok(())),
                None => Err(said),
            }
        })??;
        Ok(Daemon {
            program: self,
            node: node.clone(),
            image: image.to_owned(),
            process,
            socket,
        })
    }

    /// Heals an image until all copies are equal and no mark is left.
    pub fn heal(&self, volume: &Volume, image: &str) -> Result<Healed, Box<dyn Error>> {
        let node = volume.brick_node(NODE);
        let mut command = self.command(node, "heal");
        command
            .args([&format!("{}{image}", volume.name()), "--wait", "--brick"])
            .args([&volume.brick_name(NODE), "--server", node.address()]);
        let begun = Instant::now();
        let (mut process, log) = start(&mut command, node, "heal")?;
        let (mut read, mut cpu) = (0, Duration::ZERO);
        let status = wait_until("the heal's end", HEAL_DEADLINE, || {
            // The last look is at a healer that has done everything.
            read = read_by(process.pid()).unwrap_or(read);
            cpu = cpu_of(process.pid()).unwrap_or(cpu);
            process.exited().ok_or_else(String::new)
        })?;
        let took = begun.elapsed();
        let said = fs::read_to_string(log)?.trim().to_owned();
        match status.success() && volume.marks(image)?.is_clean() {
            true => Ok(Healed {
                took,
                read,
                cpu,
                said,
            }),
            false => Err(format!("not healed, {status}: {said}").into()),
        }
    }
}

/// Starts it with both output streams in a file.
fn start(
    command: &mut Command,
    node: &Node,
    name: &str,
) -> Result<(Background, PathBuf), Box<dyn Error>> {
    let log = node.place().dir().join(format!("{name}.log"));
    let file = File::create(&log)?;
    command.stdout(file.try_clone()?).stderr(file);
    Ok((Background::start(command)?, log))
}

/// A running `bypass-blk serve`.
pub struct Daemon<'a> {
    program: &'a Program,
    node: Node,
    image: String,
    process: Background,
    /// Its vhost-user socket.
    pub socket: PathBuf,
}

impl Daemon<'_> {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The image's status document.
    pub fn status(&self) -> Result<Value, Box<dyn Error>> {
        let mut command = self.program.command(&self.node, "status");
        let text = run_command(command.arg("--json"), PATIENCE)?;
        let images: Vec<Value> = serde_json::from_str(&text)?;
        let ours = |image: &Value| image["image"] == self.image.as_str();
        let found = images.into_iter().find(ours);
        found.ok_or_else(|| format!("no status of {}: {text}", self.image).into())
    }

    /// Bytes that the healer at work, or one that has just ended, sent to all peers.
    pub fn sent(&self) -> Result<u64, Box<dyn Error>> {
        let status = self.status()?;
        let peers = status["heal"]["peers"].as_array().map(Vec::as_slice);
        let of_peer = |peer: &Value| peer["figures"]["bytes_sent"].as_u64();
        let sum: Option<u64> = peers.unwrap_or_default().iter().map(of_peer).sum();
        sum.ok_or_else(|| format!("no figures of a healer: {status:#}").into())
    }

    /// Starts `heald`, and waits until it heals this image.
    pub fn start_healer(&self) -> Result<Background, Box<dyn Error>> {
        let mut command = self.program.command(&self.node, "heald");
        let (process, _) = start(&mut command, &self.node, "heald")?;
        wait_until("heald to follow the session", PATIENCE, || {
            let status = self.status().map_err(|error| error.to_string())?;
            match status["heal"]["healer"]["pid"] == process.pid() {
                true => Ok(()),
                false => Err(status["heal"].to_string()),
            }
        })?;
        Ok(process)
    }

    /// Waits until a healer that has ended is forgotten, which takes five seconds:
    /// until then `bypass-blk heal` leaves the work to it.
    pub fn wait_no_healer(&self) -> Result<(), Box<dyn Error>> {
        wait_until("the last healer to be forgotten", PATIENCE, || {
            let status = self.status().map_err(|error| error.to_string())?;
            match status["heal"]["healer"].is_null() {
                true => Ok(()),
                false => Err(status["heal"].to_string()),
            }
        })?;
        Ok(())
    }

    /// Ends it in order.
    pub fn stop(self) -> Result<(), Box<dyn Error>> {
        end(self.process)
    }

    /// Ends it with SIGKILL.
    pub fn kill(mut self) {
        self.process.kill();
    }
}

/// Ends a daemon or healer with SIGTERM, as an operator does.
pub fn end(mut process: Background) -> Result<(), Box<dyn Error>> {
    process.terminate();
    let status = process.wait(PATIENCE)?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("a bypass-blk process ended with {status}").into()),
    }
}
