//! A disk that fails when it is told to: files on a file system in this process, which says
//! that it is full, or that a sync failed, or keeps who syncs waiting, and later that all is well again.
//! Needs root, for the mount.

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

/// Of the first file.
const INODE: u64 = 2;
const TTL: Duration = Duration::from_secs(3600);

/// What a file is told to do, and what it did.
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
    /// Writes that were to be durable when they end.
    pub durable: AtomicUsize,
    /// Who waits for a sync, while they are kept waiting.
    kept: Mutex<Option<Vec<ReplyEmpty>>>,
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

    /// Syncs do not end from now on.
    pub fn keep_syncs(&self) {
        *self.kept.lock().unwrap() = Some(Vec::new());
    }

    /// They do, and those that were kept.
    pub fn let_syncs_go(&self) {
        let kept = self.kept.lock().unwrap().take();
        kept.into_iter().flatten().for_each(ReplyEmpty::ok);
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

struct Files(Vec<Arc<Faults>>);

impl Files {
    fn of(&self, inode: INodeNo) -> &Faults {
        &self.0[(inode.0 - INODE) as usize]
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let folder = inode == INodeNo::ROOT;
        let size = match folder {
            true => 0,
            false => self.of(inode).bytes.lock().unwrap().len() as u64,
        };
        FileAttr {
            ino: inode,
            size,
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

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let index = name.to_str().and_then(|name| name.parse().ok());
        match index.filter(|&index: &u64| index < self.0.len() as u64) {
            Some(index) => {
                let attributes = self.attributes(INodeNo(INODE + index));
                reply.entry(&TTL, &attributes, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // A process that ends closes its files when nobody in it answers any more.
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&self.of(inode).read(offset as usize, size as usize));
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let durable = usize::from(flags.0 & libc::O_DSYNC != 0);
        self.of(inode).durable.fetch_add(durable, Ordering::SeqCst);
        let at = offset as usize;
        let write = |bytes: &mut [u8]| bytes[at..at + data.len()].copy_from_slice(data);
        match self.of(inode).change(write) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        let range = offset as usize..(offset + len) as usize;
        match self.of(inode).change(|bytes| bytes[range].fill(0)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let faults = self.of(inode);
        faults.syncs.fetch_add(1, Ordering::SeqCst);
        if let Some(kept) = &mut *faults.kept.lock().unwrap() {
            kept.push(reply);
            return;
        }
        let fails = |left: usize| left.checked_sub(1);
        let order = Ordering::SeqCst;
        match faults.failing_syncs.fetch_update(order, order, fails) {
            Ok(_) => reply.error(Errno::EIO),
            Err(_) => reply.ok(),
        }
    }
}

/// Unmounted when dropped.
pub struct FaultyDisk {
    /// Of the first file.
    pub faults: Arc<Faults>,
    /// Of each.
    pub all: Vec<Arc<Faults>>,
    folder: tempfile::TempDir,
    _mounted: BackgroundSession,
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.all.iter().for_each(|file| file.let_syncs_go());
    }
}

impl FaultyDisk {
    /// Every byte of it is `contents`.
    pub fn new(contents: u8) -> Self {
        Self::of_files(1, DISK_SIZE, contents)
    }

    /// So many files of `size` bytes each.
    pub fn of_files(count: usize, size: u64, contents: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let faults = || Faults {
            bytes: Mutex::new(vec![contents; size as usize]),
            ..Faults::default()
        };
        let all: Vec<_> = (0..count).map(|_| Arc::new(faults())).collect();
        let files = Files(all.clone());
        let mounted = fuser::spawn_mount(files, folder.path(), &Config::default());
        Self {
            faults: all[0].clone(),
            all,
            _mounted: mounted.unwrap(),
            folder,
        }
    }

    fn open(&self, index: usize) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(self.folder.path().join(index.to_string()))
            .unwrap()
    }

    /// Over the first file.
    pub fn disk(&self) -> Disk {
        Disk::new(self.open(0), SERIAL).unwrap()
    }

    /// Over all of them.
    pub fn whole_disk(&self) -> Disk {
        let files: Vec<_> = (0..self.all.len()).map(|index| self.open(index)).collect();
        let piece = self.faults.bytes.lock().unwrap().len() as u64;
        let size = piece * files.len() as u64;
        Disk::over_files(files, piece, size, SERIAL).unwrap()
    }
}
