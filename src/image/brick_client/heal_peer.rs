//! [`HealPeer`] over Gluster's brick protocol: one brick, by a connection of the
//! healer's own.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::gluster::fops::InFlight;
use crate::gluster::{
    BrickError, Errno, LkOwner, LockKind, LockOp, Locked, OpenMode, RemoteFd, StrongChecksum,
    Timeouts,
};
use crate::image::heal::peer::{Answer, HealPeer, PeerError};
use crate::image::layout::{FileIndex, Layout};
use crate::image::locate::Located;
use crate::image::replica::copy_lock;

use super::brick_copy::BrickCopy;
use super::failure::peer_error;
use super::session_record::holder_of;

/// The most files that are kept open on a brick from one FSYNC to the next.
const MOST_OPEN: usize = 512;
/// The most FSYNCs that are on their way at one time.
const MOST_FSYNCS: usize = 64;

/// The image's files on one brick.
pub struct GlusterPeer {
    copy: BrickCopy,
    /// The file at the image's path.
    base: RemoteFd,
    /// The files that are open, that one among them: a brick opens and closes one for each
    /// write without. Each is opened before it is written to first, and an FSYNC through it is
    /// told of everything that went wrong with the writes.
    open: RefCell<BTreeMap<FileIndex, RemoteFd>>,
    /// The attribute with which bricks accuse this copy.
    pending_name: String,
}

impl GlusterPeer {
    /// Connects to brick `child` of the image's replica set, makes sure that it has the file
    /// at the image's path there, and takes the copy lock of `session`. `layout` says which
    /// files there are.
    ///
    /// # Errors
    /// [`PeerError::NoBrick`], [`PeerError::Away`], [`PeerError::Unusable`],
    /// [`PeerError::NoImage`], [`PeerError::CopyLocked`], [`PeerError::NotHeld`].
    pub fn connect(
        located: &Located,
        child: usize,
        layout: &Arc<Layout>,
        session: Uuid,
        timeouts: &Timeouts,
    ) -> Result<Self, PeerError> {
        let set = &located.set;
        let known = set.bricks.get(child).zip(set.pending_names.get(child));
        let (spec, pending_name) = known.ok_or_else(|| PeerError::NoBrick {
            volume: located.volume.clone(),
            child,
        })?;
        let (process, owner) = ("bypass-blk-heal", lock_owner());
        let copy = BrickCopy::connect(located, spec, layout, process, owner, timeouts)?;
        let base = copy.brick.open(copy.base(), OpenMode::ReadWrite);
        let base = base.map_err(|error| copy.failed(error))?;
        let peer = Self {
            copy,
            base,
            open: RefCell::new(BTreeMap::from([(FileIndex::BASE, base)])),
            pending_name: pending_name.clone(),
        };
        peer.lock_copies(session)?;
        Ok(peer)
    }

    /// First the lock, then the look at the record. The other way round, a session
    /// could take this brick in between, find nobody copying, and be written over.
    fn lock_copies(&self, session: Uuid) -> Result<(), PeerError> {
        let peer = self.name().to_owned();
        let range = copy_lock::own(session);
        let (brick, domain) = (&self.copy.brick, copy_lock::DOMAIN);
        let base = self.copy.base();
        let taken = brick.inodelk(base, domain, LockOp::Try, LockKind::Write, range);
        if taken.map_err(|error| self.failed(error))? == Locked::WouldBlock {
            return Err(PeerError::CopyLocked { peer });
        }
        let holder = holder_of(brick, self.base).map_err(|error| self.failed(error))?;
        match holder {
            Some(holder) if holder.session == session => Ok(()),
            holder => Err(PeerError::NotHeld { peer, holder }),
        }
    }

    fn failed(&self, error: BrickError) -> PeerError {
        self.copy.failed(error)
    }

    /// The file, opened if it is not.
    fn opened(&self, file: FileIndex) -> Result<RemoteFd, PeerError> {
        if let Some(fd) = self.open.borrow().get(&file) {
            return Ok(*fd);
        }
        let opened = self
            .copy
            .brick
            .open(self.copy.gfid(file), OpenMode::ReadWrite);
        let fd = opened.map_err(self.copy.failed_on(file))?;
        self.open.borrow_mut().insert(file, fd);
        Ok(fd)
    }

    /// After an FSYNC of all that were written to. One that cannot be closed goes with the
    /// connection.
    fn close_some(&self) {
        let mut open = self.open.borrow_mut();
        if open.len() > MOST_OPEN {
            for fd in open.split_off(&FileIndex(1)).into_values() {
                let _ = self.copy.brick.release(fd);
            }
        }
    }
}

/// Waits for all of them, for the last first: it is mostly answered last, so the waiting
/// thread is woken once. The first error counts.
fn wait_all(sent: Vec<InFlight<()>>) -> Result<(), BrickError> {
    let mut outcome = Ok(());
    for write in sent.into_iter().rev() {
        outcome = write.wait().and(outcome);
    }
    outcome
}

impl HealPeer for GlusterPeer {
    fn name(&self) -> &str {
        self.copy.brick.name()
    }

    fn is_connected(&self) -> bool {
        self.copy.brick.is_connected()
    }

    fn close(&self) {
        self.copy.brick.close();
    }

    fn size(&self) -> Result<u64, PeerError> {
        let entry = self.copy.brick.lookup_gfid(self.copy.base(), &[]);
        Ok(entry.map_err(|error| self.failed(error))?.iatt.size)
    }

    fn own_mark(&self, at: u64) -> Result<i32, PeerError> {
        let name = self.pending_name.as_str();
        let (file, gfid, _) = self.copy.place(at);
        let entry = self.copy.brick.lookup_gfid(gfid, &[name]);
        let entry = entry.map_err(self.copy.failed_on(file))?;
        entry
            .pending_data(name)
            .map_err(|error| PeerError::Refused {
                peer: self.copy.brick.name().to_owned(),
                source: Box::new(error),
            })
    }

    fn truncate(&self, size: u64) -> Result<(), PeerError> {
        let done = self.copy.brick.ftruncate(self.copy.base(), size);
        done.map_err(|error| self.failed(error))
    }

    fn start_writes(&self, writes: &[(u64, &[u8])]) -> Result<Answer<()>, PeerError> {
        let layout = &self.copy.layout;
        let Some((first, _)) = writes.first() else {
            return Ok(Answer::new(|| Ok(())));
        };
        let fd = self.opened(layout.place(*first).0)?;
        let in_file = writes
            .iter()
            .map(|&(offset, bytes)| (layout.place(offset).1, bytes));
        let in_file: Vec<_> = in_file.collect();
        let sent = self.copy.brick.start_writes(fd, &in_file);
        let sent = sent.map_err(|error| self.failed(error))?;
        let peer = self.copy.brick.name().to_owned();
        Ok(Answer::new(move || {
            wait_all(sent).map_err(|error| peer_error(&peer, error))
        }))
    }

    fn start_zero(&self, range: Range<u64>) -> Result<Answer<()>, PeerError> {
        let length = range.end - range.start;
        let (file, gfid, start) = self.copy.place(range.start);
        self.opened(file)?;
        let brick = &self.copy.brick;
        let done = match brick.discard(gfid, start, length) {
            // A file system without holes.
            Err(error) if error.errno() == Some(Errno(libc::EOPNOTSUPP)) => {
                brick.zerofill(gfid, start, length)
            }
            done => done,
        };
        done.map_err(|error| self.failed(error))?;
        Ok(Answer::new(|| Ok(())))
    }

    fn data_from(&self, offset: u64) -> Result<Option<u64>, PeerError> {
        self.copy.data_from(offset)
    }

    fn start_checksum(&self, range: Range<u64>) -> Result<Answer<StrongChecksum>, PeerError> {
        self.copy.start_checksum(range)
    }

    fn fsync(&self, files: &BTreeSet<FileIndex>) -> Result<(), PeerError> {
        let files: Vec<_> = files.iter().copied().collect();
        for some in files.chunks(MOST_FSYNCS) {
            let mut sent = Vec::with_capacity(some.len());
            for file in some {
                let fd = self.opened(*file)?;
                let started = self.copy.brick.start_fsync(fd, false);
                sent.push(started.map_err(|error| self.failed(error))?);
            }
            wait_all(sent).map_err(|error| self.failed(error))?;
        }
        self.close_some();
        Ok(())
    }

    fn lock(
        &self,
        range: Range<u64>,
        limit: Duration,
        stop: &AtomicBool,
    ) -> Result<bool, PeerError> {
        let stopped = || stop.load(Ordering::Relaxed);
        let patient = self.copy.brick.with_timeout(limit);
        self.copy
            .queue_data_lock(&patient, &range, stopped)
            .map_err(self.copy.failed_at(range.start))
    }

    fn unlock(&self, range: Range<u64>) -> Result<(), PeerError> {
        let (op, kind) = (LockOp::Unlock, LockKind::Write);
        let copy = &self.copy;
        let done = copy.data_lock(&copy.brick, op, kind, &range);
        done.map(|_| ()).map_err(|error| self.failed(error))
    }
}

/// A lock owner of this healer alone, so that its locks are never taken for the
/// session's.
fn lock_owner() -> LkOwner {
    let mut owner = b"bypass-blk.heal:".to_vec();
    owner.extend(Uuid::new_v4().into_bytes());
    LkOwner::new(owner).unwrap_or_else(|_| unreachable!("32 bytes are taken"))
}
