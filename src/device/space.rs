//! A full local disk, as all queues of the device see it: since when requests wait for room,
//! and what the operator is told of it.
//!
//! Each queue keeps its own requests ([`super::queue::work`]); here they are only counted. The log
//! gets one line when the first one waits and one when none does any more, and at most that
//! once a minute, however often the disk is full and not full.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::io::disk::Disk;
use super::request::decode::Extent;

/// The shortest time between two reports of a full disk.
const TELL_PAUSE: Duration = Duration::from_secs(60);

/// A disk that is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// For how long.
    pub since: Duration,
    /// Requests that wait for room.
    pub waiting: usize,
    /// The byte of the disk at which the first of them wanted it.
    pub offset: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Space {
    limit: OnceLock<Duration>,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    waiting: usize,
    /// The first that waits: since when, and where.
    first: Option<(Instant, u64)>,
    /// When it was last told.
    told: Option<Instant>,
    /// What was told is not yet over.
    owed: bool,
}

impl Space {
    /// Requests that wait for longer than `limit` fail.
    pub(super) fn set_limit(&self, limit: Duration) {
        // It is set once, before anything waits.
        let _ = self.limit.set(limit);
    }

    /// How long a request waits at most; `None`: for ever.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit.get().copied()
    }

    /// A request that wants room at `extent` begins to wait, for this error of the system.
    pub(super) fn wait(&self, disk: &Disk, extent: Extent, errno: i32) {
        let at = Instant::now();
        let mut now = self.now();
        now.waiting += 1;
        if now.waiting > 1 {
            return;
        }
        now.first = Some((at, extent.offset));
        if now.told.is_some_and(|told| at - told < TELL_PAUSE) {
            return;
        }
        (now.told, now.owed) = (Some(at), true);
        drop(now);
        let (error, spot) = (
            io::Error::from_raw_os_error(errno),
            disk.spot(extent.offset),
        );
        let path = path_of(disk, spot.file);
        let limit = match self.limit() {
            None => "until there is room".to_owned(),
            Some(limit) => format!("until there is room, or fail after {limit:?}"),
        };
        log::error!(
            "the local disk is full: no room for {} bytes at {} of {} ({error}). The guest's writes wait {limit}; reads go on. \
             Free space on that file system, or make it larger: the guest goes on by itself",
            extent.len,
            spot.offset,
            path.display()
        );
    }

    /// A request does not wait any more.
    pub(super) fn wait_over(&self) {
        let mut now = self.now();
        now.waiting = now.waiting.saturating_sub(1);
        if now.waiting > 0 {
            return;
        }
        let waited = now.first.take().map(|(since, _)| since.elapsed());
        if std::mem::take(&mut now.owed) {
            let waited = waited.unwrap_or_default().as_secs();
            log::info!(
                "no request of the guest waits for room on the local disk any more, after {waited} s"
            );
        }
    }

    /// What is the case now; `None`: there is room.
    pub fn full(&self) -> Option<Full> {
        let now = self.now();
        now.first.map(|(since, offset)| Full {
            since: since.elapsed(),
            waiting: now.waiting,
            offset,
        })
    }

    /// Nothing in it is half done.
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the operator knows this file of the disk by.
fn path_of(disk: &Disk, file: u32) -> PathBuf {
    let descriptor = disk.files().descriptor(file);
    let link = descriptor.map(|descriptor| format!("/proc/self/fd/{descriptor}"));
    link.and_then(|link| std::fs::read_link(link).ok())
        .unwrap_or_else(|| "the disk's file".into())
}
