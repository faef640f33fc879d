//! One node of a cluster: its namespace, its folders and its `glusterd`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::AtPath;
use crate::process::{alive, kill_and_wait};
use crate::run::make_dir;
use crate::{Error, Place, Result, run_command, wait_until};

/// Where the package of glusterfs-server has the groups of volume options.
const OPTION_GROUPS: &str = "/var/lib/glusterd/groups";
/// How long a `glusterd` may take to answer its command line.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Above the command line's own time-out of 120 s.
const CLI_DEADLINE: Duration = Duration::from_secs(130);

/// A node: an address and a place to run programs in.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) index: usize,
    pub(crate) address: String,
    pub(crate) place: Place,
}

impl Node {
    /// Its number in the cluster, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its IPv4 address inside the cluster's namespaces.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The name of its network namespace.
    pub fn netns(&self) -> &str {
        self.place.netns().unwrap_or_default()
    }

    /// Where its programs run and its files are.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A command that runs `program` on this node.
    pub fn command(&self, program: &str) -> Command {
        self.place.command(program)
    }

    /// The folder that holds all bricks of this node.
    pub fn bricks_dir(&self) -> PathBuf {
        self.place.dir().join("bricks")
    }

    /// `glusterd`'s run folder, with the pid files of bricks and daemons.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.place.dir().join("run")
    }

    fn cli_socket(&self) -> PathBuf {
        self.place.dir().join("glusterd.sock")
    }

    /// Starts `glusterd`, and with it the bricks of started volumes, and waits
    /// until it answers.
    pub(crate) fn start_glusterd(&self) -> Result<()> {
        let dir = self.place.dir();
        for sub in ["work", "run", "log", "bricks"] {
            make_dir(&dir.join(sub))?;
        }
        let mut command = self.command("glusterd");
        for (option, value) in [
            ("working-directory", dir.join("work")),
            ("run-directory", self.run_dir()),
            ("logging-directory", dir.join("log")),
            ("glusterd-sockfile", self.cli_socket()),
        ] {
            let option = format!("management.{option}={}", value.display());
            command.arg("--xlator-option").arg(option);
        }
        command.arg("-l").arg(dir.join("log/glusterd.log"));
        command.arg("-p").arg(self.glusterd_pid_file());
        run_command(&mut command, START_DEADLINE)?;
        wait_until(
            format!("glusterd of node {} to answer", self.index),
            START_DEADLINE,
            || {
                self.gluster_once(&["peer", "status"])
                    .map(drop)
                    .map_err(|error| error.to_string())
            },
        )
    }

    /// Lets its `glusterd` know the groups of volume options that the installed package brings.
    pub(crate) fn install_option_groups(&self) -> Result<()> {
        let known = self.place.dir().join("work/groups");
        make_dir(&known)?;
        let packaged = Path::new(OPTION_GROUPS);
        for entry in fs::read_dir(packaged).at("list", packaged)? {
            let from = entry.at("list", packaged)?.path();
            if let Some(name) = from.file_name() {
                fs::copy(&from, known.join(name)).at("copy", &from)?;
            }
        }
        Ok(())
    }

    /// The process id of its `glusterd`; `None` when it is down.
    pub fn glusterd_pid(&self) -> Result<Option<u32>> {
        read_pid(&self.glusterd_pid_file())
    }

    fn glusterd_pid_file(&self) -> PathBuf {
        self.run_dir().join("glusterd.pid")
    }

    /// Kills `glusterd` with SIGKILL; its bricks live on.
    pub(crate) fn kill_glusterd(&self) -> Result<()> {
        match self.glusterd_pid()? {
            Some(pid) => kill_and_wait(pid),
            None => Ok(()),
        }
    }

    /// Forgets what a reboot forgets.
    pub(crate) fn empty_run_dir(&self) -> Result<()> {
        let dir = self.run_dir();
        fs::remove_dir_all(&dir).at("remove", &dir)?;
        make_dir(&dir)
    }

    /// One try of the `gluster` command line against this node's `glusterd`.
    pub(crate) fn gluster_once(&self, args: &[&str]) -> Result<String> {
        let dir = self.place.dir();
        let mut command = self.command("gluster");
        command
            .arg("--mode=script")
            .arg(format!("--glusterd-sock={}", self.cli_socket().display()))
            .arg(format!("--log-file={}", dir.join("log/cli.log").display()))
            .args(args);
        run_command(&mut command, CLI_DEADLINE)
    }

    /// What `gluster volume heal VOLUME info` prints. It runs `glfsheal`, and
    /// does not hand it the socket of a glusterd elsewhere than usual: so this
    /// runs `glfsheal` itself.
    pub(crate) fn heal_info(&self, volume: &str) -> Result<String> {
        let glfsheal = find_glfsheal()?;
        let mut command = self.command(&glfsheal.to_string_lossy());
        command
            .args([volume, "--nolog", "glusterd-sock"])
            .arg(self.cli_socket());
        run_command(&mut command, CLI_DEADLINE)
    }
}

/// Where Debian and the others keep Gluster's own helpers.
fn find_glfsheal() -> Result<PathBuf> {
    let candidates = [
        "/usr/lib/x86_64-linux-gnu/glusterfs/glfsheal",
        "/usr/lib/aarch64-linux-gnu/glusterfs/glfsheal",
        "/usr/libexec/glusterfs/glfsheal",
    ];
    let found = candidates
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists());
    found.ok_or_else(|| Error::Unsuitable(format!("no glfsheal in any of {candidates:?}")))
}

/// The pid of a live process from a pid file; `None` if there is none.
pub(crate) fn read_pid(file: &std::path::Path) -> Result<Option<u32>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at("read", file),
    };
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let pid = text.parse().map_err(|_| Error::Parse {
        what: "a pid file",
        text: format!("{}: {text:?}", file.display()),
    })?;
    Ok(alive(pid).then_some(pid))
}
