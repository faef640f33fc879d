//! Where a session shows on a brick: the domain of its lock, and the byte whose lock carries its
//! record. Written by the session's port, read by everybody.

use crate::gluster::{Brick, BrickError, LockKind, LockRange, RemoteFd};
use crate::image::replica::holder::Holder;

/// Our own inodelk domain: one writer per image.
pub const SESSION_DOMAIN: &str = "bypass-blk.session";

/// The byte that carries the holder's record, beyond any file's data.
pub const RECORD: LockRange = LockRange {
    start: 1 << 62,
    len: 1,
};

/// The session of another lock owner whose record is on an open file.
pub(super) fn holder_of(brick: &Brick, fd: RemoteFd) -> Result<Option<Holder>, BrickError> {
    let lock = brick.lk_conflict(fd, LockKind::Write, RECORD)?;
    Ok(lock.and_then(|lock| Holder::decode(&lock.lk_owner)))
}
