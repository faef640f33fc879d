//! A disk whose power fails: what was not made durable is gone.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use bypass_harness::run_command;

use super::PATIENCE;

/// `EXT4_IOC_SHUTDOWN` (fs/ext4/ext4.h): `_IOR('X', 125, __u32)`.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: as it is on the disk, with what only the journal's
/// memory has thrown away.
const NO_LOG_FLUSH: u32 = 2;

/// An ext4 file system in a file. Unmounted when dropped.
pub struct Disk {
    image: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    /// In `dir`, of 64 MiB.
    pub fn make(dir: &Path) -> Disk {
        let disk = Disk {
            image: dir.join("disk.img"),
            mounted: dir.join("disk"),
        };
        File::create(&disk.image)
            .and_then(|file| file.set_len(64 << 20))
            .unwrap();
        std::fs::create_dir(&disk.mounted).unwrap();
        let mut format = Command::new("mkfs.ext4");
        run_command(format.arg("-q").arg(&disk.image), PATIENCE).unwrap();
        disk.mount();
        disk
    }

    pub fn path(&self) -> &Path {
        &self.mounted
    }

    fn mount(&self) {
        let mut mount = Command::new("mount");
        // No commit by time comes to help.
        mount.args(["-o", "loop,commit=600"]);
        run_command(mount.arg(&self.image).arg(&self.mounted), PATIENCE).unwrap();
    }

    /// The power fails, and is back. Nothing may be open there.
    pub fn cut(&self) {
        let root = File::open(&self.mounted).unwrap();
        // SAFETY: the descriptor is open, and EXT4_IOC_SHUTDOWN reads one u32, which
        // outlives the call.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &NO_LOG_FLUSH) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        drop(root);
        run_command(Command::new("umount").arg(&self.mounted), PATIENCE).unwrap();
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = run_command(Command::new("umount").arg(&self.mounted), PATIENCE);
        if let Err(error) = done {
            eprintln!("{} stays mounted: {error}", self.mounted.display());
        }
    }
}
