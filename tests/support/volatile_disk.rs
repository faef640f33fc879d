//! A disk with a volatile cache under a real file system, which can lose power at any moment of
//! its past: a file of this process (FUSE), a loop device over it, XFS or ext4 on that.
//!
//! Changes are answered late and out of order, as by a disk that has many of them at a time.
//! Needs root, for the mounts. What survives which cut is `medium`'s.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use bypass_harness::{run_command, wait_until};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use super::PATIENCE;
use super::power::{FileSystem, shut_down};
use medium::Medium;
pub use medium::{Dice, PastCuts};

mod medium;

const NAME: &str = "medium";
const INODE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);
/// How long changes are collected before some of them are answered.
const LATE: Duration = Duration::from_micros(300);

/// The answer that is due to a change, and which change that is.
enum Due {
    Write(usize, ReplyWrite, u32),
    Zeros(usize, ReplyEmpty),
}

struct OneFile {
    medium: Arc<Mutex<Medium>>,
    size: u64,
    due: Sender<Due>,
}

impl OneFile {
    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().unwrap()
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let folder = inode == INodeNo::ROOT;
        FileAttr {
            ino: inode,
            size: if folder { 0 } else { self.size },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if folder {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for OneFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Without it one change is under way at a time, which is less of a disk.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&TTL, &self.attributes(INODE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&self.medium().read(offset, size as usize));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let change = self.medium().write(offset, data);
        let _ = self.due.send(Due::Write(change, reply, data.len() as u32));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        let change = self.medium().zero(offset, len);
        let _ = self.due.send(Due::Zeros(change, reply));
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.medium().sync();
        reply.ok();
    }
}

/// Answers changes: some at a time, in any order.
fn answer(due: &Receiver<Due>, medium: &Mutex<Medium>) {
    let mut dice = Dice::new(7);
    while let Ok(first) = due.recv() {
        std::thread::sleep(LATE);
        let mut all: Vec<Due> = std::iter::once(first).chain(due.try_iter()).collect();
        while !all.is_empty() {
            let one = all.swap_remove(dice.below(all.len()));
            // Known as answered before anybody can act on it: a sync that follows covers it.
            match one {
                Due::Write(change, reply, len) => {
                    medium.lock().unwrap().answered(change);
                    reply.written(len);
                }
                Due::Zeros(change, reply) => {
                    medium.lock().unwrap().answered(change);
                    reply.ok();
                }
            }
        }
    }
}

/// Unmounted when dropped.
pub struct VolatileDisk {
    kind: FileSystem,
    medium: Arc<Mutex<Medium>>,
    mounted: PathBuf,
    device: String,
    folder: tempfile::TempDir,
    _fuse: BackgroundSession,
}

impl VolatileDisk {
    /// Mounted at `at`, which is made if need be.
    pub fn mount(kind: FileSystem, at: &Path) -> Self {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let made = folder.path().join("made");
        let size = kind.format(&made);
        let medium = Arc::new(Mutex::new(Medium::load(&made, size)));
        std::fs::remove_file(&made).unwrap();
        let (due, dues) = channel();
        let answering = medium.clone();
        std::thread::spawn(move || answer(&dues, &answering));
        let file = OneFile {
            medium: medium.clone(),
            size,
            due,
        };
        let fuse = fuser::spawn_mount(file, folder.path(), &Config::default()).unwrap();
        let mut attach = Command::new("losetup");
        attach.args(["--direct-io=on", "--show", "--find"]);
        let device = run_command(attach.arg(folder.path().join(NAME)), PATIENCE).unwrap();
        let device = device.trim().to_owned();
        std::fs::create_dir_all(at).unwrap();
        let disk = Self {
            kind,
            medium,
            mounted: at.to_owned(),
            device,
            folder,
            _fuse: fuse,
        };
        run_command(&mut kind.mount_command(&disk.device, at), PATIENCE).unwrap();
        disk
    }

    pub fn path(&self) -> &Path {
        &self.mounted
    }

    /// Tells the moment that it is, to cut at: how much the disk has done.
    pub fn clock(&self) -> impl Fn() -> usize + use<> {
        let medium = self.medium.clone();
        move || medium.lock().unwrap().moment()
    }

    /// The end of its power: its file system is gone, with no word to the disk. What it has done
    /// until now stays known. No process may have anything open there.
    pub fn power_off(self) -> PastCuts {
        let medium = self.medium.lock().unwrap().clone();
        PastCuts::new(medium, self.kind)
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        shut_down(&self.mounted);
        // What a killed process asked of the kernel keeps its files open for a moment.
        let unmounted = wait_until("nothing to be open on the disk", PATIENCE, || {
            let unmounted = run_command(Command::new("umount").arg(&self.mounted), PATIENCE);
            unmounted.map(drop).map_err(|error| error.to_string())
        });
        let detached = run_command(
            Command::new("losetup").arg("--detach").arg(&self.device),
            PATIENCE,
        );
        if let Err(error) = unmounted.and(detached) {
            let folder = self.folder.path().display();
            eprintln!("{} on {folder} stays: {error}", self.mounted.display());
        }
    }
}
