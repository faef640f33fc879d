//! A small disk of its own for a brick, which can be filled.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use bypass_harness::run_command;
use rustix::io::Errno;

use super::PATIENCE;

/// The size of its file system in bytes.
const BYTES: u64 = 256 << 20;

/// An ext4 file system in a file, with nothing kept for root; unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// At `at`, which is made if need be.
    pub fn mount(at: &Path) -> Self {
        let file = at.with_extension("ext4");
        File::create(&file).unwrap().set_len(BYTES).unwrap();
        run(Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-m", "0"])
            .arg(&file));
        std::fs::create_dir_all(at).unwrap();
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&file)
            .arg(at));
        Self(at.to_owned())
    }

    /// Fills it but for so many bytes.
    pub fn fill_but(&self, room: u64) {
        let left = rustix::fs::statvfs(&self.0).unwrap();
        let left = left.f_bavail * left.f_frsize;
        let file = File::create(self.filler()).unwrap();
        let flags = rustix::fs::FallocateFlags::empty();
        let fill = left.saturating_sub(room).max(1);
        match rustix::fs::fallocate(&file, flags, 0, fill) {
            // Somebody else has taken a part of it meanwhile.
            Ok(()) | Err(Errno::NOSPC) => {}
            Err(errno) => panic!("{}: {errno}", self.0.display()),
        }
    }

    /// There is room again.
    pub fn make_room(&self) {
        let removed = std::fs::remove_file(self.filler());
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            panic!("{}: {error}", self.filler().display());
        }
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn run(command: &mut Command) {
    run_command(command, PATIENCE).unwrap();
}
