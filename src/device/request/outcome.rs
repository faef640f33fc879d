//! How an operation ended, and what a request wants next.

use std::io;

use crate::device::io::engine::Operation;

use super::decode::Status;

/// What to do about a request.
pub enum Step {
    /// This operation; its result goes to [`Slot::completed`](super::slot::Slot::completed).
    Submit(Operation),
    /// The syncs of a flush, several at a time: [`Slot::begin_sync`](super::slot::Slot::begin_sync).
    SyncFiles,
    /// Answer it.
    Done(Status),
    /// There is no room on the disk for the next operation, for this error number; it is
    /// [`Slot::next`](super::slot::Slot::next) again.
    Full(i32),
    /// Answer it with an error: what was to be durable may not be, for this error number.
    Unsynced(i32),
}

/// How an operation ended.
pub enum Outcome {
    /// It transferred so many bytes.
    Bytes(usize),
    /// It was not begun, and is to be tried again.
    Retry,
    /// With this error number.
    Failed(i32),
}

/// Logs why an operation failed, for the operator: the guest only learns that it did.
pub fn io_error(what: &str, errno: i32) -> Status {
    let error = io::Error::from_raw_os_error(errno);
    log::warn!("{what} failed on the disk's file: {error}");
    Status::IoError
}
