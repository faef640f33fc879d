//! How the control plane stops a queue: it asks, the queue's own thread drains
//! and answers. And how it learns that a queue has adopted what is logged.
//!
//! Each request to drain is a ticket, a number that only grows; the queue answers
//! the newest it has seen. The last possible ticket closes the queue for good and
//! ends its thread. The asking thread may hold any lock of the protocol handler;
//! the queue's thread needs none of them to drain.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// The ticket after which there is none.
pub const CLOSED: u64 = u64::MAX;

/// The shared handle to one queue's thread, for one connection.
pub struct Control {
    /// Wakes the thread: the gate and this control use it.
    wake: Arc<EventFd>,
    asked: AtomicU64,
    answers: Mutex<Answers>,
    answer: Condvar,
}

#[derive(Default)]
struct Answers {
    /// The newest ticket of a drain.
    drained: u64,
    /// The newest epoch of the log.
    adopted: u64,
}

impl Control {
    /// A control that wakes its thread through `wake`.
    pub fn new(wake: Arc<EventFd>) -> Self {
        Self {
            wake,
            asked: AtomicU64::new(0),
            answers: Mutex::default(),
            answer: Condvar::new(),
        }
    }

    /// What wakes the thread.
    pub fn event(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    /// Makes the thread look at its queue again.
    pub fn wake(&self) {
        // It fails only when the counter is full, and then the thread is awake anyway.
        let _ = self.wake.write(1);
    }

    /// Takes the wake-up that brought the thread here.
    pub fn acknowledge_wake(&self) {
        if let Err(error) = self.wake.read()
            && error.kind() != io::ErrorKind::WouldBlock
        {
            log::error!("cannot read the wake-up event of a queue: {error}");
        }
    }

    /// Stops the queue and returns when nothing it took is in flight any more.
    /// It takes nothing more until its ring is started again.
    pub fn drain(&self) {
        // Saturates at CLOSED.
        let before = self
            .asked
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |asked| {
                asked.checked_add(1)
            });
        let ticket = before.map_or(CLOSED, |before| before + 1);
        self.wait_for(|answers| answers.drained >= ticket);
    }

    /// Like [`drain`](Self::drain); afterwards the queue's thread is about to end.
    pub fn close(&self) {
        self.asked.store(CLOSED, Ordering::Release);
        self.wait_for(|answers| answers.drained == CLOSED);
    }

    /// Returns when the queue has adopted `epoch` of what is logged, or is closed.
    pub fn wait_adopted(&self, epoch: u64) {
        self.wait_for(|answers| answers.adopted >= epoch || answers.drained == CLOSED);
    }

    fn wait_for(&self, answered: impl Fn(&Answers) -> bool) {
        self.wake();
        let mut answers = self.lock();
        while !answered(&answers) {
            answers = self
                .answer
                .wait(answers)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the queue's thread: the ticket to answer once nothing is in flight,
    /// if there is one after `last`, the last it answered.
    pub fn drain_asked(&self, last: u64) -> Option<u64> {
        let asked = self.asked.load(Ordering::Acquire);
        (asked != last).then_some(asked)
    }

    /// For the queue's thread: nothing is in flight, as asked by `ticket`.
    pub fn drained(&self, ticket: u64) {
        self.lock().drained = ticket;
        self.answer.notify_all();
    }

    /// For the queue's thread: what it writes from now on is logged as of `epoch`.
    pub fn adopted(&self, epoch: u64) {
        self.lock().adopted = epoch;
        self.answer.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> Arc<Control> {
        let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Arc::new(Control::new(Arc::new(wake)))
    }

    #[test]
    fn whoever_drains_waits_for_the_answer_to_its_own_ticket() {
        let control = control();
        let asking = Arc::clone(&control);
        let thread = std::thread::spawn(move || {
            asking.drain();
            asking.close();
            asking.drain();
        });
        let mut last = 0;
        while last != CLOSED {
            if let Some(ticket) = control.drain_asked(last) {
                assert!(ticket > last);
                last = ticket;
                control.drained(ticket);
            }
            std::thread::yield_now();
        }
        thread.join().unwrap();
        assert_eq!(control.drain_asked(CLOSED), None);
    }
}
