//! A disk that fails when it is told to: one file on a file system in this process, which says
//! that it is full, or that a sync failed, and later that all is well again. Needs root, for the
//! mount.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use super::{DISK_SIZE, SERIAL};
use bypass_blk::device::Disk;

const NAME: &str = "disk";
const INODE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

/// What it is told to do, and what it did.
#[derive(Default)]
pub struct Faults {
    /// The error number with which changes fail; 0: there is room.
    full: AtomicI32,
    /// How many syncs fail yet.
    failing_syncs: AtomicUsize,
    /// Changes that were refused.
    pub refused: AtomicUsize,
    /// Syncs that were asked for.
    pub syncs: AtomicUsize,
    bytes: Mutex<Vec<u8>>,
}

impl Faults {
    pub fn fill(&self, errno: i32) {
        self.full.store(errno, Ordering::SeqCst);
    }

    pub fn make_room(&self) {
        self.fill(0);
    }

    pub fn fail_syncs(&self, count: usize) {
        self.failing_syncs.store(count, Ordering::SeqCst);
    }

    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        self.bytes.lock().unwrap()[offset..offset + len].to_vec()
    }

    fn change(&self, change: impl FnOnce(&mut [u8])) -> Result<(), Errno> {
        match self.full.load(Ordering::SeqCst) {
            0 => {
                change(&mut self.bytes.lock().unwrap());
                Ok(())
            }
            errno => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                Err(Errno::from_i32(errno))
            }
        }
    }
}

struct OneFile(Arc<Faults>);

fn attributes(inode: INodeNo) -> FileAttr {
    let folder = inode == INodeNo::ROOT;
    FileAttr {
        ino: inode,
        size: if folder { 0 } else { DISK_SIZE },
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

impl Filesystem for OneFile {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&TTL, &attributes(INODE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // A process that ends closes its files when nobody in it answers any more.
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
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
        reply.data(&self.0.read(offset as usize, size as usize));
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
        let at = offset as usize;
        let write = |bytes: &mut [u8]| bytes[at..at + data.len()].copy_from_slice(data);
        match self.0.change(write) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
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
        let range = offset as usize..(offset + len) as usize;
        match self.0.change(|bytes| bytes[range].fill(0)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.syncs.fetch_add(1, Ordering::SeqCst);
        let fails = |left: usize| left.checked_sub(1);
        let order = Ordering::SeqCst;
        match self.0.failing_syncs.fetch_update(order, order, fails) {
            Ok(_) => reply.error(Errno::EIO),
            Err(_) => reply.ok(),
        }
    }
}

/// Unmounted when dropped.
pub struct FaultyDisk {
    pub faults: Arc<Faults>,
    folder: tempfile::TempDir,
    _mounted: BackgroundSession,
}

impl FaultyDisk {
    /// Every byte of it is `contents`.
    pub fn new(contents: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faults {
            bytes: Mutex::new(vec![contents; DISK_SIZE as usize]),
            ..Faults::default()
        });
        let mounted =
            fuser::spawn_mount(OneFile(faults.clone()), folder.path(), &Config::default());
        Self {
            faults,
            _mounted: mounted.unwrap(),
            folder,
        }
    }

    fn open(&self) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(self.folder.path().join(NAME))
            .unwrap()
    }

    pub fn disk(&self) -> Disk {
        Disk::new(self.open(), SERIAL).unwrap()
    }
}
