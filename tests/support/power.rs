//! A disk whose power fails: what was not made durable is gone.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use bypass_harness::{run_command, wait_until};

use super::PATIENCE;

/// `EXT4_IOC_SHUTDOWN` (fs/ext4/ext4.h) and `XFS_IOC_GOINGDOWN` (fs/xfs/libxfs/xfs_fs.h):
/// `_IOR('X', 125, __u32)`.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`, `XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`: as it is on the disk, with what only the journal's
/// memory has thrown away.
const NO_LOG_FLUSH: u32 = 2;

/// Of which kind a disk's file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    /// Makes `file` an empty file system, as small as mkfs takes it, or little more; its size in bytes.
    pub fn format(self, file: &Path) -> u64 {
        let (mkfs, size) = match self {
            FileSystem::Ext4 => ("mkfs.ext4", 64 << 20),
            FileSystem::Xfs => ("mkfs.xfs", 320 << 20),
        };
        File::create(file)
            .and_then(|file| file.set_len(size))
            .unwrap();
        run_command(Command::new(mkfs).arg("-q").arg(file), PATIENCE).unwrap();
        size
    }

    /// Mounts it so that no commit by time comes to help; that of XFS comes every 30 s. Another
    /// XFS of the same past may be mounted.
    pub fn mount_command(self, device: impl AsRef<OsStr>, at: &Path) -> Command {
        let mut mount = Command::new("mount");
        mount.args(match self {
            FileSystem::Ext4 => ["-o", "commit=600"],
            FileSystem::Xfs => ["-o", "nouuid"],
        });
        mount.arg(device).arg(at);
        mount
    }
}

/// Ends a file system that is mounted here, as it is on its disk.
pub fn shut_down(mounted: &Path) {
    let root = File::open(mounted).unwrap();
    // SAFETY: the descriptor is open, and EXT4_IOC_SHUTDOWN reads one u32, which
    // outlives the call.
    let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &NO_LOG_FLUSH) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A file system in a file. Unmounted when dropped.
pub struct Disk {
    kind: FileSystem,
    image: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    /// An ext4 in `dir`.
    pub fn make(dir: &Path) -> Disk {
        Self::with(FileSystem::Ext4, dir)
    }

    /// In `dir`.
    pub fn with(kind: FileSystem, dir: &Path) -> Disk {
        let disk = Disk {
            kind,
            image: dir.join("disk.img"),
            mounted: dir.join("disk"),
        };
        kind.format(&disk.image);
        std::fs::create_dir(&disk.mounted).unwrap();
        disk.mount();
        disk
    }

    pub fn path(&self) -> &Path {
        &self.mounted
    }

    fn mount(&self) {
        let mut mount = self.kind.mount_command(&self.image, &self.mounted);
        run_command(mount.args(["-o", "loop"]), PATIENCE).unwrap();
    }

    /// The power fails, and is back. No process may have anything open there.
    pub fn cut(&self) {
        shut_down(&self.mounted);
        // What a killed process asked of the kernel keeps its files open for a moment.
        wait_until("nothing to be open on the disk", PATIENCE, || {
            let unmounted = run_command(Command::new("umount").arg(&self.mounted), PATIENCE);
            unmounted.map(drop).map_err(|error| error.to_string())
        })
        .unwrap();
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
