//! How the control plane stops a queue: it asks, the queue's own thread drains
//! and answers.
//!
//! The asking thread may hold any lock of the protocol handler; the queue's
//! thread needs none of them to drain.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// The shared handle to one queue's thread, for one connection.
pub struct Control {
    /// Wakes the thread: completions, the gate and this control all use it.
    wake: Arc<EventFd>,
    asked: AtomicU64,
    answered: Mutex<u64>,
    answer: Condvar,
    closed: AtomicBool,
}

impl Control {
    /// A control that wakes its thread through `wake`.
    pub fn new(wake: Arc<EventFd>) -> Self {
        Self {
            wake,
            asked: AtomicU64::new(0),
            answered: Mutex::new(0),
            answer: Condvar::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// The event fd that wakes the thread.
    pub fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    /// Makes the thread look at its queue again.
    pub fn wake(&self) {
        // It fails only when the counter is full, and then the thread is awake anyway.
        let _ = self.wake.write(1);
    }

    /// Takes the wake-up that brought the thread here.
    pub fn acknowledge_wake(&self) {
        match self.wake.read() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => log::error!("cannot read the wake-up event of a queue: {error}"),
        }
    }

    /// Stops the queue and returns when nothing it took is in flight any more.
    /// It takes nothing more until its ring is started again.
    pub fn drain(&self) {
        let ticket = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake();
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        while *answered < ticket {
            answered = self
                .answer
                .wait(answered)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Like [`drain`](Self::drain), and nothing starts the queue again.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.drain();
    }

    /// For the queue's thread: the ticket to answer once nothing is in flight,
    /// if there is one after `last`, the last it answered.
    pub fn drain_asked(&self, last: u64) -> Option<u64> {
        let asked = self.asked.load(Ordering::Acquire);
        (asked != last).then_some(asked)
    }

    /// For the queue's thread: whether nothing must be taken any more.
    pub fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// For the queue's thread: nothing is in flight, as asked by `ticket`.
    pub fn drained(&self, ticket: u64) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = ticket;
        self.answer.notify_all();
    }
}
