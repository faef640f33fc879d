//! A map's life as a file: made, opened again, attached to, closed.
//!
//! The words of a new file are on the disk before its header is, so a header that
//! can be read stands over words that can be believed. A map that is not trusted
//! is not mended but replaced by a new file, which takes its name only when it is whole
//! and on the disk: whoever dies over it leaves the old one, and what that says about the
//! marks. And only while no healer works on the old one: a healer never finds the ground
//! changed under it.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use uuid::Uuid;

use crate::image::durable::{self, Put};

use super::error::MapError;
use super::extent::spread;
use super::geometry::{Geometry, WORDS_AT};
use super::header::{self, Header, Identity, Record};
use super::map::DirtyMap;
use super::mapping::RoleLock;
use super::terms::{Distrust, Role};

/// How long an open waits for a role: longer than a healer holds the session's
/// while it settles what a dead one left ([`DirtyMap::settle_abandoned`]).
const ROLE_WAIT: Duration = Duration::from_secs(5);
/// How often it asks meanwhile.
const ROLE_POLL: Duration = Duration::from_millis(10);
/// How often a header whose checksum is wrong is read again.
const HEADER_TRIES: usize = 3;
/// How often an open begins anew because the file changed under it.
const MAX_TRIES: usize = 16;
/// What a map is called until it is whole. Always the same, so that what a dead process
/// left of one is found by the next.
pub(super) const DRAFT: &str = "new";
/// Bytes written at once when a file is filled.
const FILL_CHUNK: usize = 1 << 20;

/// What a map is worth at open. Whatever is not [`Trust::Kept`] or
/// [`Trust::CleanClose`] has every extent dirty for every peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// There was none.
    Fresh,
    /// The process that had it is gone, the host is not: it covers every write
    /// that was begun.
    Kept {
        /// Extents in which a write was in flight; they are dirty for every peer.
        interrupted: u64,
    },
    /// It was closed, all on the disk.
    CleanClose,
    /// There was one, and it was replaced.
    Distrusted(Distrust),
}

impl DirtyMap {
    /// Opens the map of `identity` at `path` for the session that writes to the
    /// image; makes it when there is none or the one there is not trusted.
    ///
    /// The caller sees to it that no write of an earlier process can still land
    /// (its requests to the kernel may outlive it), for what was in flight is
    /// counted as ended.
    ///
    /// # Errors
    ///
    /// [`MapError::TooManyPeers`], [`MapError::EmptyImage`], [`MapError::InUse`]
    /// by another session or, when the map has to be replaced, by a healer,
    /// [`MapError::NoSpace`], [`MapError::Unwritable`], [`MapError::Io`].
    pub fn open(path: &Path, identity: &Identity) -> Result<(Self, Trust), MapError> {
        let geometry = Geometry::new(identity.size, identity.extent_size, identity.peers.len())?;
        let boot_id = boot_id()?;
        for _ in 0..MAX_TRIES {
            let Some(file) = open_file(path)? else {
                let header = Header::new(identity, geometry, boot_id);
                match create(path, header)? {
                    Some(map) => return Ok((map, Trust::Fresh)),
                    None => continue,
                }
            };
            let session = wait_for(&file, Role::Session, path)?;
            if !is_at(&file, path)? {
                continue;
            }
            let mut unguarded = false;
            let verdict = read_header(&file, path)?.and_then(|header| {
                // Durable, unlike the words, and true of the image however the map counts.
                let unknown = header.record.unguarded || header.record.unsynced;
                unguarded = unknown && header.gfid == identity.gfid;
                header.check_identity(identity)?;
                // Marks tell nothing then.
                if header.record.unsynced {
                    return Err(Distrust::SyncFailed);
                }
                header.check_boot(boot_id)?;
                Ok(header)
            });
            let reason = match verdict {
                Ok(header) => return reopen(path, file, session, header, boot_id),
                Err(reason) => reason,
            };
            let _healer = wait_for(&file, Role::Healer, path)?;
            let mut header = Header::new(identity, geometry, boot_id);
            header.record.unguarded = unguarded;
            if let Some(map) = create(path, header)? {
                return Ok((map, Trust::Distrusted(reason)));
            }
        }
        Err(MapError::InUse {
            path: path.to_owned(),
            role: Role::Session,
        })
    }

    /// Attaches to the map at `path` beside the session that has it, or after it:
    /// to look, to mark, or to heal ([`super::Healer::claim`]). Changes nothing.
    ///
    /// # Errors
    ///
    /// [`MapError::Missing`], [`MapError::Untrusted`] (a session that opens the
    /// image replaces such a map), [`MapError::Unwritable`], [`MapError::Io`].
    pub fn attach(path: &Path) -> Result<Self, MapError> {
        let file = open_file(path)?.ok_or_else(|| MapError::Missing {
            path: path.to_owned(),
        })?;
        let boot_id = boot_id()?;
        let header = read_header(&file, path)?
            .and_then(|header| header.check_boot(boot_id).map(|()| header))
            .map_err(|reason| MapError::Untrusted {
                path: path.to_owned(),
                reason,
            })?;
        Self::over(path, file, header, None)
    }

    /// Ends the session's use of the map: everything is on the disk when this
    /// returns, and the map is trusted even after a restart of the host. No write
    /// may begin afterwards. A healer may go on.
    ///
    /// # Errors
    ///
    /// [`MapError::NotOwner`] on an attached map, [`MapError::InFlight`],
    /// [`MapError::Io`].
    pub fn close_clean(&self) -> Result<(), MapError> {
        self.check_owner()?;
        let extents = self.extents_in_flight();
        if extents > 0 {
            return Err(MapError::InFlight {
                path: self.path().to_owned(),
                extents,
            });
        }
        self.sync()?;
        self.write_header(self.record(), true)
    }

    /// What is known about the marks, as the session has it now; an attached map's own
    /// [`DirtyMap::record`] is of the last such look.
    ///
    /// # Errors
    ///
    /// [`MapError::Untrusted`] with a header that is not whole, [`MapError::Io`].
    pub fn read_record(&self) -> Result<Record, MapError> {
        if self.is_session() {
            return Ok(self.record());
        }
        let mut tries = 1..=HEADER_TRIES;
        loop {
            match read_header(self.file(), self.path())? {
                Ok(header) => {
                    self.keep_record(header.record);
                    return Ok(header.record);
                }
                // The session may be writing it at this moment.
                Err(Distrust::Checksum) if tries.next().is_some() => {
                    thread::sleep(ROLE_POLL);
                }
                Err(reason) => {
                    return Err(MapError::Untrusted {
                        path: self.path().to_owned(),
                        reason,
                    });
                }
            }
        }
    }

    pub(super) fn write_header(&self, record: Record, clean: bool) -> Result<(), MapError> {
        self.check_owner()?;
        let mut header = self.header().clone();
        (header.clean, header.record) = (clean, record);
        write_header(self.file(), self.path(), &header)
    }

    fn check_owner(&self) -> Result<(), MapError> {
        if self.is_session() {
            return Ok(());
        }
        Err(MapError::NotOwner {
            path: self.path().to_owned(),
        })
    }

    /// When no session has the map: counts the writes that a dead one left in
    /// flight as ended, their extents dirty for every peer. The number of such
    /// extents; `None` when a session has the map. As with [`DirtyMap::open`], no
    /// write of that session may still land.
    ///
    /// # Errors
    ///
    /// [`MapError::Io`].
    pub fn settle_abandoned(&self) -> Result<Option<u64>, MapError> {
        let role = RoleLock::take(self.file(), Role::Session)
            .map_err(|e| MapError::of("lock", self.path(), 0, e))?;
        Ok(role.map(|_role| self.settle()))
    }
}

/// A map that is trusted: the header says that it is in use again, then the words
/// are made ready.
fn reopen(
    path: &Path,
    file: File,
    session: RoleLock,
    mut header: Header,
    boot_id: Uuid,
) -> Result<(DirtyMap, Trust), MapError> {
    allocate(&file, path, header.geometry.file_len())?;
    let was_clean = std::mem::replace(&mut header.clean, false);
    header.epoch = header.epoch.wrapping_add(1);
    header.boot_id = boot_id;
    write_header(&file, path, &header)?;
    let map = DirtyMap::over(path, file, header, Some(session))?;
    let interrupted = map.settle();
    let trust = if was_clean {
        Trust::CleanClose
    } else {
        Trust::Kept { interrupted }
    };
    Ok((map, trust))
}

/// A new map with everything dirty takes the place of what is at `path`, whose roles the
/// caller has, or of nothing; `None` when another session was faster.
fn create(path: &Path, header: Header) -> Result<Option<DirtyMap>, MapError> {
    let draft = durable::draft_of(path, DRAFT);
    let mut options = options();
    let file = options.create(true).mode(0o600).open(&draft);
    let file = file.map_err(|e| MapError::of("make", &draft, header.geometry.file_len(), e))?;
    // Two that find no map both draft one.
    let session = wait_for(&file, Role::Session, &draft)?;
    if !is_at(&file, &draft)? {
        return Ok(None);
    }
    let put = || match durable::put(&file, &draft, path) {
        Ok(Put::Durable) => Ok(()),
        Ok(Put::Fleeting(error)) | Err(error) => Err(MapError::of("make", path, 0, error)),
    };
    match fill(&file, &draft, &header).and_then(|()| put()) {
        Ok(()) => DirtyMap::over(path, file, header, Some(session)).map(Some),
        Err(error) => {
            // Nobody believes it; this only gives its room back.
            let _ = std::fs::remove_file(&draft);
            Err(error)
        }
    }
}

/// Words, then header. What a dead process left in the file goes first.
fn fill(file: &File, path: &Path, header: &Header) -> Result<(), MapError> {
    let geometry = &header.geometry;
    let len = geometry.file_len();
    file.set_len(0)
        .map_err(|e| MapError::of("empty", path, len, e))?;
    allocate(file, path, len)?;
    let dirty = spread(geometry.all_peers().dirty_bits()).to_ne_bytes();
    let chunk = dirty.repeat(FILL_CHUNK / dirty.len());
    let mut at = WORDS_AT;
    while at < len {
        let rest = usize::try_from(len - at).unwrap_or(FILL_CHUNK);
        let part = chunk.get(..rest).unwrap_or(&chunk);
        file.write_all_at(part, at)
            .map_err(|e| MapError::of("write", path, len, e))?;
        at += part.len() as u64;
    }
    file.sync_all()
        .map_err(|e| MapError::of("sync", path, len, e))?;
    write_header(file, path, header)
}

/// Reserves every block, so that a disk that fills up later cannot fault a write
/// to the mapping.
pub(super) fn allocate(file: &File, path: &Path, len: u64) -> Result<(), MapError> {
    let full = |error: Errno| MapError::of("allocate", path, len, error.into());
    if !could_have_room(file, len).map_err(full)? {
        return Err(full(Errno::NOSPC));
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        // A file system without it: a new file is written in full anyway.
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(full(error)),
    }
}

/// Whether `len` bytes may fit. A reservation that cannot end well would first take every
/// free block of the file system from everybody else there.
fn could_have_room(file: &File, len: u64) -> Result<bool, Errno> {
    const SECTOR: u64 = 512;
    let system = rustix::fs::fstatvfs(file)?;
    if system.f_blocks == 0 {
        // It does not count blocks.
        return Ok(true);
    }
    let own = u64::try_from(rustix::fs::fstat(file)?.st_blocks).unwrap_or(0) * SECTOR;
    let free = system.f_bfree.saturating_mul(system.f_frsize);
    Ok(len <= free.saturating_add(own))
}

/// On the disk when this returns.
pub(super) fn write_header(file: &File, path: &Path, header: &Header) -> Result<(), MapError> {
    file.write_all_at(&header.encode(), 0)
        .and_then(|()| file.sync_all())
        .map_err(|e| MapError::of("write", path, header.geometry.file_len(), e))
}

fn read_header(file: &File, path: &Path) -> Result<Result<Header, Distrust>, MapError> {
    let failed = |e| MapError::of("read", path, 0, e);
    let len = file.metadata().map_err(failed)?.len();
    let mut bytes = [0; header::LEN];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(Header::decode(&bytes, len)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(Distrust::Truncated)),
        Err(error) => Err(failed(error)),
    }
}

pub(super) fn options() -> std::fs::OpenOptions {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW);
    options
}

/// `None`: there is no such file, though maybe its directory.
fn open_file(path: &Path) -> Result<Option<File>, MapError> {
    match options().open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(MapError::of("open", path, 0, error)),
    }
}

/// Does `path` still name this file?
pub(super) fn is_at(file: &File, path: &Path) -> Result<bool, MapError> {
    let failed = |e| MapError::of("look at", path, 0, e);
    let ours = file.metadata().map_err(failed)?;
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

pub(super) fn wait_for(file: &File, role: Role, path: &Path) -> Result<RoleLock, MapError> {
    let deadline = Instant::now() + ROLE_WAIT;
    loop {
        let lock = RoleLock::take(file, role);
        if let Some(lock) = lock.map_err(|e| MapError::of("lock", path, 0, e))? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(MapError::InUse {
                path: path.to_owned(),
                role,
            });
        }
        thread::sleep(ROLE_POLL);
    }
}

/// This boot of the host.
fn boot_id() -> Result<Uuid, MapError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    std::fs::read_to_string(PATH)
        .and_then(|text| Uuid::parse_str(text.trim()).map_err(io::Error::other))
        .map_err(|source| MapError::BootId { source })
}
