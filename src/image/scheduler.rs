//! Scheduler and waiting, as the session sees them: the system's, or those of a
//! simulator that lets one go on at a time and decides which.
//!
//! Used by the session, its workers and its healer for everything that blocks, but
//! calls of a brick. It knows nothing of what they do.

pub mod clock;

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use clock::{Clock, SystemClock};

/// Somebody who decides when each thread goes on, and what time it is.
pub trait Simulator: Clock {
    /// Starts a thread.
    ///
    /// # Errors
    /// When there is none to give.
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<()>;

    /// Comes back when `ready` has said yes, or after about this long. `ready` may be
    /// asked on another thread, while this one waits here.
    fn until(&self, ready: &mut dyn FnMut() -> bool, limit: Option<Duration>);
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Scheduler {
    clock: Arc<dyn Clock>,
    scheduler: Option<Arc<dyn Simulator>>,
}

impl Default for Scheduler {
    /// The system's.
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock::default()),
            scheduler: None,
        }
    }
}

impl Scheduler {
    /// Those of a simulator.
    pub fn simulated(scheduler: Arc<dyn Simulator>) -> Self {
        Self {
            clock: scheduler.clone(),
            scheduler: Some(scheduler),
        }
    }

    /// Their time.
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// The time since some fixed moment.
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Comes back after about this long.
    pub fn sleep(&self, time: Duration) {
        self.clock.sleep(time);
    }

    /// Starts a thread.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        if let Some(scheduler) = &self.scheduler {
            return scheduler.spawn(name, Box::new(body));
        }
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(body).map(drop)
    }

    /// Starts a thread that comes to something.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn start<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Started<T>> {
        let (result, receiver) = mpsc::channel();
        let alive = Arc::new(());
        let at_work = Arc::downgrade(&alive);
        self.spawn(name, move || {
            let _alive = alive;
            // Whoever started it may not want to know.
            let _ = result.send(work());
        })?;
        Ok(Started {
            receiver,
            at_work,
            threads: self.clone(),
        })
    }

    /// Waits until `over` says yes to what `state` protects, for at most `limit`.
    /// Whoever changes that notifies `changed`.
    pub fn wait<'a, T>(
        &self,
        state: &'a Mutex<T>,
        changed: &Condvar,
        limit: Duration,
        mut over: impl FnMut(&T) -> bool,
    ) -> MutexGuard<'a, T> {
        let locked = || state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scheduler) = &self.scheduler {
            scheduler.until(&mut || over(&locked()), Some(limit));
            return locked();
        }
        let wait = changed.wait_timeout_while(locked(), limit, |state| !over(state));
        wait.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for the next message, for at most `limit`.
    ///
    /// # Errors
    /// As the standard library's.
    pub fn receive<T>(
        &self,
        from: &Receiver<T>,
        limit: Option<Duration>,
    ) -> Result<T, RecvTimeoutError> {
        if let Some(scheduler) = &self.scheduler {
            let mut next = Err(RecvTimeoutError::Timeout);
            scheduler.until(
                &mut || {
                    next = from.try_recv().map_err(|error| match error {
                        TryRecvError::Empty => RecvTimeoutError::Timeout,
                        TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                    });
                    !matches!(next, Err(RecvTimeoutError::Timeout))
                },
                limit,
            );
            return next;
        }
        match limit {
            None => from.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(limit) => from.recv_timeout(limit),
        }
    }
}

/// A thread that was started, and what it comes to.
pub struct Started<T> {
    receiver: Receiver<T>,
    /// Gone when the thread is.
    at_work: Weak<()>,
    threads: Scheduler,
}

impl<T> Started<T> {
    /// Has it ended, in whatever way?
    pub fn is_over(&self) -> bool {
        self.at_work.strong_count() == 0
    }

    /// Waits for its result; `None`: it panicked.
    pub fn join(self) -> Option<T> {
        self.threads.receive(&self.receiver, None).ok()
    }
}
