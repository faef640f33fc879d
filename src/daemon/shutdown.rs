//! The wish to end, from a signal or from the session, and whoever must hear it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM,
};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

use super::failure::Failure;

/// What ends the program in good order.
const ENDING: [i32; 2] = [SIGTERM, SIGINT];
/// What would end a program that does nothing about it, at once, and mostly means
/// something else: a terminal that was closed, a reload, a timer, a file that may not be so large. A guest's disk does not go
/// with it. (SIGQUIT and SIGABRT are left: whoever sends those wants a core dump.)
const MEANT_OTHERWISE: [i32; 10] = [
    SIGHUP,
    SIGUSR1,
    SIGUSR2,
    SIGALRM,
    SIGVTALRM,
    SIGPROF,
    SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXFSZ,
];
/// Every signal that this program does something about, where it does.
pub fn handled() -> impl Iterator<Item = i32> {
    ENDING.into_iter().chain(MEANT_OTHERWISE)
}

type OnStop = Box<dyn Fn() + Send>;

/// Shared between the signal thread, the session and the serving loop.
pub struct Stop {
    requested: AtomicBool,
    wake: OwnedFd,
    on_stop: Mutex<Option<OnStop>>,
}

impl Stop {
    /// Listens for SIGTERM and SIGINT on a thread of its own.
    ///
    /// # Errors
    /// When the system gives no event fd, signal handler or thread.
    pub fn on_signals() -> Result<Arc<Self>, Failure> {
        Self::listening(&ENDING)
    }

    /// The same for a daemon, which nothing else is to end: all that would, but those
    /// signals that are `used` for something, are told and no more.
    ///
    /// # Errors
    /// As [`Stop::on_signals`].
    pub fn of_daemon(used: &[i32]) -> Result<Arc<Self>, Failure> {
        let all: Vec<_> = handled().filter(|signal| !used.contains(signal)).collect();
        Self::listening(&all)
    }

    fn listening(signals: &[i32]) -> Result<Arc<Self>, Failure> {
        let failed = |source| Failure::System {
            what: "handle signals",
            source,
        };
        let stop = Arc::new(Self {
            requested: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?,
            on_stop: Mutex::new(None),
        });
        let mut signals = Signals::new(signals).map_err(failed)?;
        let stopping = stop.clone();
        let listen = move || {
            for signal in signals.forever() {
                let name = signal_name(signal).unwrap_or("a signal");
                if ENDING.contains(&signal) {
                    log::info!("{name}: ending");
                    stopping.request();
                } else {
                    log::warn!("{name}: nothing is done about it; SIGTERM ends this daemon");
                }
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(listen)
            .map_err(failed)?;
        Ok(stop)
    }

    /// Ends the program in good order.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
        if let Err(error) = rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            log::error!("cannot wake the serving loop: {error}");
        }
        let on_stop = self.on_stop.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(tell) = on_stop.as_ref() {
            tell();
        }
    }

    /// `tell` is called at the request, at once if it was made already.
    pub fn tell(&self, tell: impl Fn() + Send + 'static) {
        let mut on_stop = self.on_stop.lock().unwrap_or_else(|e| e.into_inner());
        if self.is_requested() {
            tell();
        }
        *on_stop = Some(Box::new(tell));
    }

    /// Was the end asked for?
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// The same, to look at while something else is done.
    pub fn flag(&self) -> &AtomicBool {
        &self.requested
    }

    /// Waits for the request, at most for `limit`.
    pub fn wait(&self, limit: Duration) {
        let timeout = rustix::time::Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let mut wake = [PollFd::new(&self.wake, PollFlags::IN)];
        if let Err(error) = poll(&mut wake, Some(&timeout)) {
            // Interrupted by a signal: the caller looks what is wanted.
            log::debug!("waiting: {error}");
        }
    }

    /// Becomes readable at the request, and stays so.
    pub fn readable(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
