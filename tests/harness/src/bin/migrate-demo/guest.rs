//! A guest that writes, on the first host, and its move to the second by the script.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bypass_harness::{Disk, Guest, GuestConfig, GuestImage, Job, Node, Volume, run_command};
use serde_json::Value;

use crate::hosts::{Daemon, Program, run_dir};

const PORT: u16 = 4444;
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the guest writes fast.
pub const FAST: Duration = Duration::from_secs(15);

const FIO: &str =
    "fio --name=load --filename=/dev/vda --ioengine=libaio --direct=1 --thread --rw=randwrite";

/// A script for the guest: rounds of writes, each read back, until there is `/run/end`.
pub fn verifying() -> String {
    format!(
        "n=0; until [ -e /run/end ]; do n=$((n + 1)); {FIO} --bs=4k --iodepth=16 --size=12M \
         --randseed=$n --verify=crc32c --verify_fatal=1 --do_verify=1 >/run/load 2>&1 || \
         {{ cat /run/load >&2; exit 1; }}; done"
    )
}

/// What the guest does.
pub enum Load {
    /// Rounds of writes, verified.
    Verify,
    /// Writes at so many MB/s into the first 256 MiB for [`FAST`], then at 1 MB/s, not
    /// verified.
    Write(u32),
}

/// The guest and its two hosts.
pub struct Moving {
    volume: Volume,
    name: String,
    program: PathBuf,
    pub source: Daemon,
    pub target: Daemon,
    here: Option<Guest>,
    there: Guest,
    load: Option<Job>,
}

/// What came of the script.
pub struct Moved {
    /// It said that the guest moved.
    pub success: bool,
    /// Its last line.
    pub verdict: String,
}

impl Moving {
    /// Boots the guest on the first host; a QEMU waits for it on the second.
    pub fn prepare(
        program: &Program,
        volume: &Volume,
        image: &str,
        boot: &GuestImage,
    ) -> Result<Moving, Box<dyn Error>> {
        let source = program.serve(volume, image, 0, &[])?;
        let target = program.serve(volume, image, 1, &["--incoming", "--lock-timeout", "60s"])?;
        let [first, second] = [0, 1].map(|brick| volume.brick_node(brick));
        let here = Guest::boot(boot, first.place(), &config(first, &source))?;
        let uri = format!("tcp:{}:{PORT}", second.address());
        let there = Guest::incoming(boot, second.place(), &config(second, &target), &uri)?;
        Ok(Moving {
            volume: volume.clone(),
            name: format!("{}{image}", volume.name()),
            program: program.path().to_owned(),
            source,
            target,
            here: Some(here),
            there,
            load: None,
        })
    }

    fn guest(&self) -> &Guest {
        self.here.as_ref().unwrap_or(&self.there)
    }

    /// Lets the guest write.
    pub fn start(&mut self, load: Load) -> Result<(), Box<dyn Error>> {
        let script = match load {
            Load::Verify => verifying(),
            Load::Write(rate) => format!(
                "{FIO} --bs=64k --iodepth=16 --size=256M --rate={rate}m --time_based --runtime={seconds} \
                 --norandommap >/run/load 2>&1; touch /run/slow; \
                 {FIO} --bs=4k --iodepth=4 --size=256M --rate=1m --time_based --runtime=3600 \
                 --norandommap >/run/load 2>&1 & until [ -e /run/end ]; do sleep 0.2; done; kill %1; true",
                seconds = FAST.as_secs()
            ),
        };
        self.load = Some(self.guest().start(&script)?);
        Ok(())
    }

    /// Waits until the guest has written fast for long enough; bytes written so far.
    pub fn written_fast(&self) -> Result<u64, Box<dyn Error>> {
        let wait = "until [ -e /run/slow ]; do sleep 0.1; done";
        self.guest().run(wait, PATIENCE)?;
        let first = self.volume.brick_node(0);
        let mut command = first.command(&self.program.to_string_lossy());
        command
            .args(["status", "--json", "--run-dir"])
            .arg(run_dir(first));
        let images: Value = serde_json::from_str(&run_command(&mut command, PATIENCE)?)?;
        let serving = |image: &Value| image["serving"]["queues"].as_array().cloned();
        let queues = images
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(serving)
            .flatten();
        Ok(queues
            .filter_map(|queue| queue["written_bytes"].as_u64())
            .sum())
    }

    /// Runs the script on the first host; `tell` gets each of its lines.
    pub fn run_script(
        &mut self,
        script: &Path,
        max_downtime: &str,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Moved, Box<dyn Error>> {
        let [first, second] = [0, 1].map(|brick| self.volume.brick_node(brick));
        let mut command = first.command(&script.canonicalize()?.to_string_lossy());
        command
            .args(["--image", &self.name, "--to", second.address()])
            .args(["--uri", &format!("tcp:{}:{PORT}", second.address())])
            .args(["--max-downtime", max_downtime, "--memory-downtime", "1000"])
            .args([
                "--remote",
                &format!("nsenter --net=/run/netns/{}", second.netns()),
            ])
            .arg("--qmp")
            .arg(qmp(first))
            .arg("--target-qmp")
            .arg(qmp(second))
            .arg("--run-dir")
            .arg(run_dir(first))
            .arg("--target-run-dir")
            .arg(run_dir(second))
            .arg("--program")
            .arg(&self.program)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut verdict = String::new();
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                verdict = line?;
                tell(&verdict);
            }
        }
        let success = child.wait()?.success();
        if success && let Some(here) = self.here.take() {
            let load = self.load.take();
            self.load = load.map(|load| self.there.adopt(&load, &here));
        }
        Ok(Moved { success, verdict })
    }

    /// Ends the load, which must have seen no error, the guest and the daemons.
    pub fn finish(mut self) -> Result<(), Box<dyn Error>> {
        self.guest().run("touch /run/end", PATIENCE)?;
        if let Some(load) = self.load.take() {
            let reply = load.wait(PATIENCE)?;
            if reply.status != 0 {
                return Err(format!("fio in the guest: {}", reply.stderr).into());
            }
        }
        match self.here {
            Some(here) => here.power_off()?,
            None => self.there.power_off()?,
        }
        self.target.stop()?;
        self.source.stop()
    }
}

fn config(node: &Node, daemon: &Daemon) -> GuestConfig {
    let mut config = GuestConfig::new(vec![Disk::VhostUser {
        socket: daemon.socket.clone(),
        queues: 1,
        reconnect: true,
    }]);
    // A machine protocol for the script, beside the harness' own.
    let path = qmp(node).display().to_string();
    config.extra = vec!["-qmp".into(), format!("unix:{path},server=on,wait=off")];
    config
}

fn qmp(node: &Node) -> PathBuf {
    node.place().dir().join("migrate.qmp")
}
