//! A FUSE mount of a volume by Gluster's own client.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};

use crate::node::read_pid;
use crate::process::{alive, kill_and_wait};
use crate::run::make_dir;
use crate::{Node, Result, run_command, wait_until};

const MOUNT_DEADLINE: Duration = Duration::from_secs(60);
/// How long the client may take to end by itself once unmounted.
const END_DEADLINE: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The mount; unmounted when dropped, even if its client hangs.
#[derive(Debug)]
pub struct Mount {
    // Keeps the run, and with it the namespace, until the client is gone.
    node: Node,
    path: PathBuf,
    pid_file: PathBuf,
}

impl Mount {
    /// Runs the client on `node`; the mount is seen by the whole machine.
    pub(crate) fn new(node: &Node, volume: &str, options: &[&str]) -> Result<Mount> {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = node.place().dir().join(format!("mnt{id}"));
        let pid_file = node.place().dir().join(format!("mnt{id}.pid"));
        let log = node.place().dir().join(format!("log/mnt{id}.log"));
        make_dir(&path)?;
        let mut command = node.command("glusterfs");
        command
            .arg(format!("--volfile-server={}", node.address()))
            .arg(format!("--volfile-id={volume}"))
            .arg(format!("--log-file={}", log.display()))
            .arg(format!("--pid-file={}", pid_file.display()))
            .args(options)
            .arg(&path);
        // From here on dropping it unmounts.
        let mount = Mount {
            node: node.clone(),
            path,
            pid_file,
        };
        run_command(&mut command, MOUNT_DEADLINE)?;
        wait_until("the volume's root to answer", MOUNT_DEADLINE, || {
            std::fs::read_dir(&mount.path)
                .map(drop)
                .map_err(|error| error.to_string())
        })?;
        Ok(mount)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node whose network its client uses.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The client's process id; `None` when it is dead.
    pub fn client_pid(&self) -> Result<Option<u32>> {
        read_pid(&self.pid_file)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let pid = self.client_pid().ok().flatten();
        // Fails when it never came to a mount.
        let _ = unmount(&self.path, UnmountFlags::DETACH);
        let Some(pid) = pid else { return };
        let ended = wait_until("the client's end", END_DEADLINE, || {
            if alive(pid) {
                Err("alive".into())
            } else {
                Ok(())
            }
        });
        if ended.is_err() {
            // What even SIGKILL cannot end is left to the run's cleanup.
            let _ = kill_and_wait(pid);
        }
    }
}
