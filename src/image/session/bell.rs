//! Wakes whoever waits for a session to have something new to say. Rung by the session's
//! thread after everything that it does, and for good at its end; what is new is for who
//! waits to find out.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::image::scheduler::Scheduler;

/// See the module.
pub struct Bell {
    state: Mutex<State>,
    changed: Condvar,
    threads: Scheduler,
}

#[derive(Default)]
struct State {
    /// How often it was rung.
    rung: u64,
    /// Nobody rings it any more.
    over: bool,
}

impl Bell {
    /// Heard by threads of this kind.
    pub fn new(threads: Scheduler) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            threads,
        }
    }

    /// Something may be new.
    pub fn ring(&self) {
        self.state().rung += 1;
        self.changed.notify_all();
    }

    /// The session is over.
    pub fn end(&self) {
        self.state().over = true;
        self.ring();
    }

    /// Is it?
    pub fn is_over(&self) -> bool {
        self.state().over
    }

    /// What `look` finds: now, or whenever it is rung within `limit`.
    pub fn wait<T>(&self, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let end = self.threads.now() + limit;
        loop {
            let seen = self.state().rung;
            let found = look();
            let left = end.saturating_sub(self.threads.now());
            if found.is_some() || left.is_zero() {
                return found;
            }
            let rung = |state: &State| state.rung != seen;
            drop(self.threads.wait(&self.state, &self.changed, left, rung));
        }
    }

    /// Every change is one assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
