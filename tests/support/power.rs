//! A disk whose power fails: what was not made durable is gone.

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

/// A file system in a file. Unmounted when dropped.
pub struct Disk {
    kind: FileSystem,
    image: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    /// An ext4 in `dir`, of 64 MiB.
    pub fn make(dir: &Path) -> Disk {
        Self::with(FileSystem::Ext4, dir)
    }

    /// In `dir`, as small as mkfs takes it.
    pub fn with(kind: FileSystem, dir: &Path) -> Disk {
        let disk = Disk {
            kind,
            image: dir.join("disk.img"),
            mounted: dir.join("disk"),
        };
        File::create(&disk.image)
            .and_then(|file| file.set_len(disk.size()))
            .unwrap();
        std::fs::create_dir(&disk.mounted).unwrap();
        let mut format = Command::new(match kind {
            FileSystem::Ext4 => "mkfs.ext4",
            FileSystem::Xfs => "mkfs.xfs",
        });
        run_command(format.arg("-q").arg(&disk.image), PATIENCE).unwrap();
        disk.mount();
        disk
    }

    pub fn path(&self) -> &Path {
        &self.mounted
    }

    fn size(&self) -> u64 {
        match self.kind {
            FileSystem::Ext4 => 64 << 20,
            FileSystem::Xfs => 320 << 20,
        }
    }

    fn mount(&self) {
        let mut mount = Command::new("mount");
        // No commit by time comes to help; that of XFS comes every 30 s.
        mount.args(match self.kind {
            FileSystem::Ext4 => ["-o", "loop,commit=600"],
            FileSystem::Xfs => ["-o", "loop"],
        });
        run_command(mount.arg(&self.image).arg(&self.mounted), PATIENCE).unwrap();
    }

    /// The power fails, and is back. No process may have anything open there.
    pub fn cut(&self) {
        let root = File::open(&self.mounted).unwrap();
        // SAFETY: the descriptor is open, and EXT4_IOC_SHUTDOWN reads one u32, which
        // outlives the call.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &NO_LOG_FLUSH) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        drop(root);
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
