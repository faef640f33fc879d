//! How other programs learn that an image is in use: QEMU's image locks or a fence, and
//! the record that names the holder.

use crate::gluster::fops::OpenMode;
use crate::gluster::locks::ForeignLock;
use crate::gluster::{BrickError, LockKind, LockOp, LockRange, Locked};
use crate::image::replica::brick_port::{Conflict, PortError, Publication};
use crate::image::replica::holder::Holder;

use super::{FENCE_XATTR, GlusterPort};
use crate::image::brick_client::failure::port_error;
use crate::image::brick_client::session_record::RECORD;

/// What the fence covers: every byte of data. It ends short of the record, for
/// on a fenced file a brick grants every posix lock and drops those that it
/// overlaps (`pl_lock_preempt`): QEMU's lock bytes must not take the record away.
const FENCED: LockRange = LockRange {
    start: 0,
    len: (1 << 62) - 1,
};

/// QEMU's image locks (`block/file-posix.c`, `RAW_LOCK_PERM_BASE` and
/// `RAW_LOCK_SHARED_BASE`): a read lock on byte 100 + p for each permission p
/// in use, on 200 + p for each that is not shared.
mod qemu {
    /// First byte of the permissions in use.
    pub const USED: u64 = 100;
    /// First byte of the permissions not shared.
    pub const UNSHARED: u64 = 200;
    /// `BLK_PERM_CONSISTENT_READ`.
    pub const READ: u64 = 0;
    /// `BLK_PERM_WRITE`.
    pub const WRITE: u64 = 1;
    /// `BLK_PERM_RESIZE`.
    pub const RESIZE: u64 = 3;
}

impl GlusterPort {
    /// With the locks that QEMU and its tools respect.
    pub(super) fn publish_advisory(&mut self, read_only: bool) -> Result<Publication, PortError> {
        let (used, unshared): (&[u64], &[u64]) = match read_only {
            true => (&[qemu::READ], &[qemu::WRITE, qemu::RESIZE]),
            false => (
                &[qemu::READ, qemu::WRITE, qemu::RESIZE],
                &[qemu::WRITE, qemu::RESIZE],
            ),
        };
        let (brick, fd) = self.fd(open_mode(read_only))?;
        let byte = |start| LockRange { start, len: 1 };
        let used_bytes = used.iter().map(|p| (qemu::USED + p, qemu::UNSHARED + p));
        let unshared_bytes = unshared
            .iter()
            .map(|p| (qemu::UNSHARED + p, qemu::USED + p));
        for (ours, theirs) in used_bytes.chain(unshared_bytes) {
            // First ours, then a look at theirs, as QEMU does: of two that begin
            // at the same moment, at least one sees the other.
            let taken = brick
                .lk(fd, LockOp::Try, LockKind::Read, byte(ours), false)
                .map_err(port_error)?;
            let conflict = brick
                .lk_conflict(fd, LockKind::Write, byte(theirs))
                .map_err(port_error)?;
            if taken == Locked::WouldBlock || conflict.is_some() {
                return Ok(Publication::InUse(conflict_of(conflict)));
            }
        }
        self.publish_record(read_only)
    }

    /// With the fence that bricks hold up against everybody.
    pub(super) fn publish_mandatory(&mut self) -> Result<Publication, PortError> {
        let (brick, fd) = self.fd(OpenMode::ReadWrite)?;
        // Looked for before the attribute is set: from then on the brick would
        // take the other's lock away without a word.
        let foreign = brick
            .lk_conflict(fd, LockKind::Write, LockRange::WHOLE)
            .map_err(port_error)?;
        if foreign.is_some() {
            return Ok(Publication::InUse(conflict_of(foreign)));
        }
        match brick.setxattr(fd.gfid, FENCE_XATTR, b"1\0") {
            Ok(()) => {}
            Err(BrickError::Refused { .. }) => return Ok(Publication::FenceUnavailable),
            Err(error) => return Err(port_error(error)),
        }
        match brick
            .lk(fd, LockOp::Try, LockKind::Write, FENCED, true)
            .map_err(port_error)?
        {
            Locked::Granted => self.publish_record(false),
            Locked::WouldBlock => Ok(Publication::InUse(conflict_of(None))),
        }
    }

    /// Who holds the image, as the owner of a lock.
    fn publish_record(&mut self, read_only: bool) -> Result<Publication, PortError> {
        let (brick, fd) = self.fd(open_mode(read_only))?;
        let kind = if read_only {
            LockKind::Read
        } else {
            LockKind::Write
        };
        match brick
            .lk(fd, LockOp::Try, kind, RECORD, false)
            .map_err(port_error)?
        {
            Locked::Granted => Ok(Publication::Done),
            Locked::WouldBlock => {
                let foreign = brick.lk_conflict(fd, kind, RECORD).map_err(port_error)?;
                Ok(Publication::InUse(conflict_of(foreign)))
            }
        }
    }
}

fn open_mode(read_only: bool) -> OpenMode {
    if read_only {
        OpenMode::Read
    } else {
        OpenMode::ReadWrite
    }
}

fn conflict_of(lock: Option<ForeignLock>) -> Conflict {
    match lock {
        None => Conflict {
            holder: None,
            pid: 0,
        },
        Some(lock) => Conflict {
            holder: Holder::decode(&lock.lk_owner),
            pid: i32::try_from(lock.pid).unwrap_or(0),
        },
    }
}
