//! One run of the harness and everything that must be gone after it: the
//! scratch folder, the network namespaces, the mounts, the processes.
//!
//! The name of a run holds the process that owns it, and is in the environment
//! of every process started for it. So a run can be cleaned up knowing its name
//! alone: by its own drop (also in a panic), from a signal handler's thread, or
//! by a later process when the owner was killed.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::error::AtPath;
use crate::process::{all_pids, gone, signal, start_time};
use crate::{Error, Result, run_command, wait_until};

/// The environment variable that marks a run's processes.
const MARK: &str = "BYPASS_RUN";
/// Where the scratch folders go: a disk file system with `trusted.*` xattrs.
const SCRATCH: &str = "BYPASS_SCRATCH";
/// A folder that gets the logs and consoles of every run before it is removed,
/// for whoever looks into a failed test.
const KEEP_LOGS: &str = "BYPASS_KEEP_LOGS";
const PREFIX: &str = "bb";
const NETNS_DIR: &str = "/run/netns";
/// Longest scratch folder: unix socket paths below it must fit 107 bytes.
const MAX_SCRATCH: usize = 60;
const KILL_DEADLINE: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One run. Dropping it removes everything that was made for it.
#[derive(Debug)]
pub struct Run {
    name: String,
    dir: PathBuf,
}

impl Run {
    /// Sweeps what dead runs left, and begins a new one.
    pub fn begin() -> Result<Arc<Run>> {
        let scratch = scratch()?;
        Self::sweep();
        let pid = process::id();
        let started = start_time(pid).unwrap_or_default();
        let name = format!(
            "{PREFIX}-{pid}-{started}-{}",
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = scratch.join(&name);
        fs::create_dir(&dir).at("create", &dir)?;
        Ok(Arc::new(Run { name, dir }))
    }

    /// The unique name, which all namespaces of this run begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The scratch folder of this run.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes `command` one of this run's processes.
    pub(crate) fn mark(&self, command: &mut Command) {
        command.env(MARK, &self.name);
    }

    /// Removes what runs left whose owner is dead. Returns how many.
    pub fn sweep() -> usize {
        remove_where(|owner| owner.is_none_or(|(pid, started)| start_time(pid) != Some(started)))
    }

    /// Removes all runs of this process at once, for a signal handler's thread.
    pub fn clean_all() -> usize {
        let me = process::id();
        remove_where(|owner| owner.is_some_and(|(pid, _)| pid == me))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(kept) = env::var_os(KEEP_LOGS) {
            keep_logs(&self.dir, &Path::new(&kept).join(&self.name));
        }
        remove(&self.name, &self.dir);
    }
}

fn keep_logs(from: &Path, to: &Path) {
    let copy = "mkdir -p \"$2\" && cd \"$1\" && \
        find . -name '*.log' -o -name '*.console' -o -name '*.err' | cpio --quiet -pdm \"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", copy, "sh"]).arg(from).arg(to);
    if let Err(error) = run_command(&mut command, KILL_DEADLINE) {
        eprintln!("cannot keep the logs: {error}");
    }
}

/// The folder for scratch data, checked to be fit for bricks.
pub(crate) fn scratch() -> Result<PathBuf> {
    let dir = env::var_os(SCRATCH).map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    if dir.as_os_str().len() > MAX_SCRATCH {
        return Err(Error::Unsuitable(format!(
            "{SCRATCH}={} is too long: at most {MAX_SCRATCH} bytes, for the sockets in it",
            dir.display()
        )));
    }
    fs::create_dir_all(&dir).at("create", &dir)?;
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    let probe = dir.join(format!("{PREFIX}-probe-{}-{unique}", process::id()));
    fs::write(&probe, b"").at("create", &probe)?;
    let set = rustix::fs::setxattr(
        &probe,
        "trusted.bypass-probe",
        b"1",
        rustix::fs::XattrFlags::empty(),
    );
    fs::remove_file(&probe).at("remove", &probe)?;
    let on_tmpfs = rustix::fs::statfs(&dir)
        .at("stat the file system of", &dir)?
        .f_type
        == TMPFS_MAGIC;
    match set {
        Ok(()) if !on_tmpfs => Ok(dir),
        Ok(()) => Err(Error::Unsuitable(format!(
            "{} is a tmpfs, no place for bricks: set {SCRATCH} to a folder on ext4 or xfs",
            dir.display()
        ))),
        Err(error) => Err(Error::Unsuitable(format!(
            "{} takes no trusted.* xattrs ({error}): run as root, with {SCRATCH} on ext4 or xfs",
            dir.display()
        ))),
    }
}

/// `TMPFS_MAGIC` of statfs(2).
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Pid and start time of the owner in a run's name; `None` if it is no run.
fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.strip_prefix('-')?.splitn(3, '-');
    let owner = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next()?.parse::<u32>().ok()?;
    Some(owner)
}

fn remove_where(chosen: impl Fn(Option<(u32, u64)>) -> bool) -> usize {
    let Ok(scratch) = scratch() else { return 0 };
    let mut names: Vec<String> = list(&scratch);
    // A namespace outlives its folder if the removal was interrupted.
    names.extend(list(Path::new(NETNS_DIR)).iter().filter_map(|netns| {
        let (run, _) = netns.rsplit_once('-')?;
        Some(run.to_owned())
    }));
    names.retain(|name| owner(name).is_some_and(|owner| chosen(Some(owner))));
    names.sort();
    names.dedup();
    for name in &names {
        remove(name, &scratch.join(name));
    }
    names.len()
}

fn list(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Removes all there is of a run. Goes on whatever fails: the next sweep tries
/// again as long as the folder or a namespace is there.
fn remove(name: &str, dir: &Path) {
    // First the mounts: a dead client must not hang the rest.
    for target in mounts_below(dir) {
        let _ = unmount(&target, UnmountFlags::DETACH);
    }
    let sockets = kill_marked(name);
    for socket in sockets {
        let _ = fs::remove_file(socket);
    }
    for netns in list(Path::new(NETNS_DIR)) {
        if netns.rsplit_once('-').is_some_and(|(run, _)| run == name) {
            let _ = run_command(
                Command::new("ip").args(["netns", "delete", &netns]),
                KILL_DEADLINE,
            );
        }
    }
    let _ = fs::remove_dir_all(dir);
}

/// Mount points below `dir`, innermost first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut targets: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|target| target.starts_with(dir) && target != dir)
        .collect();
    targets.reverse();
    targets
}

/// Kills every process marked with `name` until there is none; returns the
/// sockets they were told to make outside the run's folder.
fn kill_marked(name: &str) -> Vec<PathBuf> {
    let wanted = format!("{MARK}={name}");
    let mut sockets = Vec::new();
    let mut killed: Vec<u32> = Vec::new();
    // On a time-out the next sweep tries again.
    let _ = wait_until("the end of the run's processes", KILL_DEADLINE, || {
        for pid in marked(&wanted) {
            sockets.extend(management_socket(pid));
            signal(pid, Signal::KILL);
            killed.push(pid);
        }
        // One that is on its way out has no environment any more.
        killed.retain(|pid| !gone(*pid));
        if killed.is_empty() {
            Ok(())
        } else {
            Err(format!("{killed:?} alive"))
        }
    });
    sockets
}

fn marked(wanted: &str) -> Vec<u32> {
    let mut pids = all_pids();
    pids.retain(|pid| {
        *pid != process::id()
            && fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| {
                env.split(|byte| *byte == 0)
                    .any(|var| var == wanted.as_bytes())
            })
    });
    pids
}

/// The socket after `-S` on the command line of a brick or a self-heal daemon:
/// glusterd puts those in one folder of the machine, not in the node's.
fn management_socket(pid: u32) -> Option<PathBuf> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let mut args = line.split('\0');
    if !args.next()?.contains("glusterfs") {
        return None;
    }
    args.find(|arg| *arg == "-S")?;
    let socket = PathBuf::from(args.next()?);
    socket.starts_with("/var/run/gluster").then_some(socket)
}

/// Makes a folder only root may enter, with its parents.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).at("create", dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).at("set the mode of", dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_runs_have_an_owner() {
        assert_eq!(owner("bb-12-3456-0"), Some((12, 3456)));
        for other in [
            "bb-12-3456",
            "bb-12-3456-n1",
            "xx-12-3456-0",
            "bb",
            "bb-a-1-0",
            "",
        ] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
