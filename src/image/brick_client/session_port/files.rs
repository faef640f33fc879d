//! The file of the image that a port is asked about, and what is held of each.

use crate::gluster::fops::{OpenMode, RemoteFd};
use crate::gluster::{Brick, Gfid};
use crate::image::brick_client::failure::port_error;
use crate::image::layout::FileIndex;
use crate::image::replica::brick_port::{Lock, PortError};

use super::{GUARD, GlusterPort, Live};

/// What is held of a file through a connection, and what was last read of it.
#[derive(Clone, Default)]
pub(super) struct FileLocks {
    /// AFR's data lock is held.
    pub(super) data_locked: bool,
    /// Names of the counters that were not zero when the copy was last read; some may be of
    /// a brick that was added, or replaced, since the session was opened.
    pub(super) accusing: Vec<String>,
    /// Locks that the process before took.
    pub(super) standing: Vec<Lock>,
    /// Locks that this one did.
    pub(super) taken: Vec<Lock>,
}

impl FileLocks {
    fn holds(&self, lock: Lock) -> bool {
        self.standing.contains(&lock) || self.taken.contains(&lock)
    }
}

/// The process before took these locks of a file.
pub(super) fn stand(files: &mut [FileLocks], file: FileIndex, locks: &[Lock]) {
    if let Some(of_file) = files.get_mut(file.at()) {
        of_file.standing = locks.to_vec();
    }
}

impl Live {
    /// The files after the first from which heals are kept.
    pub(super) fn guarded(&self) -> Vec<FileIndex> {
        let files = (0..).map(FileIndex).zip(&self.files).skip(1);
        let guarded = files.filter(|(_, locks)| GUARD.iter().all(|lock| locks.holds(*lock)));
        guarded.map(|(file, _)| file).collect()
    }
}

impl GlusterPort {
    /// The identity of the file that is asked about.
    pub(super) fn gfid(&self) -> Gfid {
        match (&self.live, self.file) {
            (Some(live), FileIndex::BASE) => live.base,
            (_, file) => Gfid(self.layout.gfid(file)),
        }
    }

    /// What is held of it.
    pub(super) fn locks(&self) -> Result<&FileLocks, PortError> {
        let locks = self.live()?.files.get(self.file.at());
        locks.ok_or_else(|| PortError::Refused("the image has no such file".to_owned()))
    }

    pub(super) fn locks_mut(&mut self) -> Option<&mut FileLocks> {
        self.live.as_mut()?.files.get_mut(self.file.at())
    }

    /// The open first file, opened when first needed.
    pub(super) fn fd(&mut self, mode: OpenMode) -> Result<(Brick, RemoteFd), PortError> {
        let Some(live) = &mut self.live else {
            return Err(PortError::Away("not connected".to_owned()));
        };
        let fd = match live.fd {
            Some(fd) => fd,
            None => *live
                .fd
                .insert(live.brick.open(live.base, mode).map_err(port_error)?),
        };
        Ok((live.brick.clone(), fd))
    }

    pub(super) fn note_data_lock(&mut self, lock: Lock, held: bool) {
        if let Some(locks) = self.locks_mut().filter(|_| lock == Lock::Data) {
            locks.data_locked = held;
        }
    }

    /// What is changed follows from what was read under the lock. After a new connection
    /// it may be wrong.
    pub(super) fn data_locked(&self) -> Result<&Live, PortError> {
        match self.locks()?.data_locked {
            true => self.live(),
            false => Err(PortError::Away("its data lock was lost".to_owned())),
        }
    }
}
