//! A small file system in memory.

use std::path::{Path, PathBuf};
use std::process::Command;

use bypass_harness::run_command;

use super::PATIENCE;

/// Unmounted when dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// At `dir`, which is made.
    pub fn mount(dir: &Path, options: &str) -> Tmpfs {
        std::fs::create_dir(dir).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir);
        run_command(&mut mount, PATIENCE).unwrap();
        Tmpfs(dir.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        let done = run_command(umount.arg("--lazy").arg(&self.0), PATIENCE);
        if let Err(error) = done {
            eprintln!("{} stays mounted: {error}", self.0.display());
        }
    }
}
