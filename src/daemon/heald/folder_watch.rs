//! When [`super::host_healer`] looks again which sessions and images there are: as soon as something
//! changes in its folders, or a session that it follows is over. So it need not look often
//! to see it soon.
//!
//! What has changed is not asked: it looks at everything.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

use rustix::io::Errno;

use crate::daemon::failure::Failure;
use crate::daemon::shutdown::Stop;

/// How often it looks in any case.
const LONG: Duration = Duration::from_secs(10);
/// The same while it would not hear of a change.
const SHORT: Duration = Duration::from_secs(1);
/// A change seldom comes alone: so much later, all of it is looked at.
const TOGETHER: Duration = Duration::from_millis(100);

/// See the module.
pub struct FolderWatch {
    folders: [PathBuf; 2],
    /// Absent where the system gives none.
    inotify: Option<OwnedFd>,
    nudge: Arc<Nudge>,
    /// Is a change of any of the folders heard of?
    hears: bool,
}

/// Tells the watch that something has changed.
pub struct Nudge(OwnedFd);

impl Nudge {
    /// Tells it.
    pub fn nudge(&self) {
        // It fails only while it was nudged very often and not heard yet.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl FolderWatch {
    /// Over these folders, which need not be there yet.
    ///
    /// # Errors
    /// When the system gives no event fd.
    pub fn new(folders: [PathBuf; 2]) -> Result<Self, Failure> {
        let nudge = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let nudge = nudge.map_err(|errno| Failure::System {
            what: "make an event fd",
            source: errno.into(),
        })?;
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        let unheard = |errno| log::info!("folders are looked at every second: inotify: {errno}");
        let mut watch = Self {
            folders,
            inotify: inotify.map_err(unheard).ok(),
            nudge: Arc::new(Nudge(nudge)),
            hears: false,
        };
        watch.listen();
        Ok(watch)
    }

    /// For who has news.
    pub fn nudge(&self) -> Arc<Nudge> {
        self.nudge.clone()
    }

    /// Waits for a change since the last time, until `due` at the latest (`None`: there is
    /// nothing to do by then), or for the end.
    pub fn wait(&mut self, stop: &Stop, due: Option<Instant>) {
        let limit = if self.hears { LONG } else { SHORT };
        let left = |due: Instant| due.saturating_duration_since(Instant::now());
        let limit = due.map_or(limit, |due| limit.min(left(due)));
        let sources = [
            Some(self.nudge.0.as_fd()),
            self.inotify.as_ref().map(AsFd::as_fd),
        ];
        let sources: Vec<BorrowedFd<'_>> = sources.into_iter().flatten().collect();
        let mut polled = vec![PollFd::from_borrowed_fd(stop.readable(), PollFlags::IN)];
        polled.extend(
            sources
                .iter()
                .map(|source| PollFd::new(source, PollFlags::IN)),
        );
        let timeout = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) => {}
            Ok(_) => stop.wait(TOGETHER),
            // Interrupted by a signal: the caller looks what is wanted.
            Err(errno) => log::debug!("waiting: {errno}"),
        }
        sources.into_iter().for_each(drain);
        self.listen();
    }

    /// Before it is looked what there is: so nothing is missed in between.
    fn listen(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        let flags =
            WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::ONLYDIR;
        // Where it listens already nothing changes.
        let hears = |folder: &PathBuf| match add_watch(inotify, folder, flags) {
            // Nothing is in it. Sessions make both, or one that is heard.
            Ok(_) | Err(Errno::NOENT) => true,
            Err(_) => false,
        };
        self.hears = self.folders.iter().all(hears);
    }
}

/// Forgets what has happened by now.
fn drain(source: BorrowedFd<'_>) {
    let mut buffer = [0; 4096];
    while rustix::io::read(source, &mut buffer).is_ok_and(|count| count > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_in_a_folder_or_a_nudge_is_heard_at_once_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let (run, state) = (folder.path().join("run"), folder.path().join("state"));
        std::fs::create_dir(&run).unwrap();
        let stop = Stop::on_signals().unwrap();
        let mut watch = FolderWatch::new([run.clone(), state.clone()]).unwrap();
        let mut waits = |due: Duration| {
            let begin = Instant::now();
            watch.wait(&stop, Some(begin + due));
            begin.elapsed()
        };
        let short = Duration::from_millis(500);
        assert!(waits(short) >= short);
        std::fs::write(run.join("a.control"), "").unwrap();
        assert!(waits(LONG) < LONG / 2);
        assert!(waits(short) >= short, "it was heard once");
        // As when the first session of a host begins.
        std::fs::create_dir(&state).unwrap();
        waits(Duration::ZERO);
        std::fs::write(state.join("a.json"), "").unwrap();
        assert!(waits(LONG) < LONG / 2);
        std::fs::remove_file(run.join("a.control")).unwrap();
        assert!(waits(LONG) < LONG / 2);
        let nudge = watch.nudge();
        nudge.nudge();
        let begin = Instant::now();
        watch.wait(&stop, None);
        assert!(begin.elapsed() < LONG / 2);
    }
}
