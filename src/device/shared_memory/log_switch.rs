//! What of the guest's memory is logged, and where: told by the front-end, obeyed
//! by the queues.
//!
//! The front-end may begin, move and end the log while requests are in flight.
//! Each change is a new epoch, which a queue adopts between two rounds, and
//! [`Logging`] returns from a change only when every queue has. So once the
//! front-end is answered, everything written so far is in its memory to be seen,
//! and everything written later is marked in the new log and no other. Data that
//! the kernel is still putting into the guest's memory is marked when its request
//! is answered, whenever that was submitted.
//!
//! Without a log this costs each round of a queue one load.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::dirty_log::{DirtyLog, LogError};
use crate::device::guest::memory::{Epoch, Memory};
use crate::device::queue::control::Control;

/// As the front-end has it, for one connection.
pub struct Logging {
    state: Mutex<SwitchState>,
    epoch: Epoch,
    controls: Vec<Arc<Control>>,
}

#[derive(Default)]
struct SwitchState {
    /// The last log given; kept when logging ends, as it may begin again.
    log: Option<Arc<DirtyLog>>,
    /// `VHOST_F_LOG_ALL`: writes of data are logged.
    all: bool,
    /// Of each queue whose used ring is logged (`VHOST_VRING_F_LOG`): the address
    /// that its first byte has in the log.
    used: Vec<Option<u64>>,
    /// Told when something was marked.
    listener: Option<Arc<File>>,
}

impl Logging {
    /// Nothing is logged yet, by the queues behind `controls`.
    pub fn new(controls: Vec<Arc<Control>>) -> Self {
        let state = SwitchState {
            used: vec![None; controls.len()],
            ..SwitchState::default()
        };
        Self {
            state: Mutex::new(state),
            epoch: Epoch::default(),
            controls,
        }
    }

    /// Logs to `log` from now on; the one before is not touched any more.
    ///
    /// # Errors
    /// It does not cover `memory`.
    pub fn set_log(&self, log: DirtyLog, memory: &Memory) -> Result<(), LogError> {
        log.check(memory)?;
        self.change(|state| state.log = Some(Arc::new(log)));
        Ok(())
    }

    /// Begins or ends the logging of data (`VHOST_F_LOG_ALL`).
    pub fn set_all(&self, all: bool) {
        if self.lock().all != all {
            self.change(|state| state.all = all);
        }
    }

    /// Begins or ends the logging of the used ring of queue `index`, whose first
    /// byte has the address `used` in the log.
    pub fn set_used(&self, index: usize, used: Option<u64>) {
        let known = self.lock().used.get(index).copied();
        if known.is_some_and(|known| known != used) {
            self.change(|state| {
                if let Some(now) = state.used.get_mut(index) {
                    *now = used;
                }
            });
        }
    }

    /// Tells `listener`, an event fd that never waits, from now on when something was marked.
    pub fn set_listener(&self, listener: File) {
        self.change(|state| state.listener = Some(Arc::new(listener)));
    }

    /// The guest's memory is now `memory`.
    ///
    /// # Errors
    /// The log in use does not cover it.
    pub fn check(&self, memory: &Memory) -> Result<(), LogError> {
        let mut state = self.lock();
        match state.log.as_ref().map(|log| log.check(memory)) {
            Some(Err(error)) if state.all => Err(error),
            // Of a migration that is over; one that begins brings a new one.
            Some(Err(_)) => {
                state.log = None;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn change(&self, change: impl FnOnce(&mut SwitchState)) {
        let epoch = {
            let mut state = self.lock();
            change(&mut state);
            self.epoch.advance();
            self.epoch.now()
        };
        for control in &self.controls {
            control.wait_adopted(epoch);
        }
    }

    fn lock(&self) -> MutexGuard<'_, SwitchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one queue logs.
#[derive(Clone, Default)]
pub struct QueueLog {
    data: Option<Arc<DirtyLog>>,
    used: Option<(Arc<DirtyLog>, u64)>,
    listener: Option<Arc<File>>,
}

impl QueueLog {
    /// The log of writes to the data and status of requests.
    pub fn data(&self) -> Option<&DirtyLog> {
        self.data.as_deref()
    }

    /// Logs a write of `len` bytes at `offset` of the used ring.
    pub fn mark_used(&self, offset: u64, len: u64) {
        if let Some((log, base)) = &self.used {
            log.mark(base.saturating_add(offset), len);
        }
    }

    /// Whether all writes to a used ring of `len` bytes can be logged, or none need be.
    pub fn covers_used(&self, len: u64) -> bool {
        self.used
            .as_ref()
            .is_none_or(|(log, base)| log.covers(*base, len))
    }

    /// Something was written.
    pub fn tell(&self) {
        if let Some(listener) = &self.listener
            && (self.data.is_some() || self.used.is_some())
        {
            // It fails only when the counter is full, and then it has been told.
            let _ = rustix::io::write(listener, &1u64.to_ne_bytes());
        }
    }
}

/// One queue's view of the [`Logging`].
pub struct LogView {
    logging: Arc<Logging>,
    index: usize,
    seen: u64,
    current: QueueLog,
}

impl LogView {
    /// The view of queue `index`.
    pub fn new(logging: Arc<Logging>, index: usize) -> Self {
        Self {
            logging,
            index,
            seen: 0,
            current: QueueLog::default(),
        }
    }

    /// Adopts what is logged from now on. Returns the new epoch, if there is one,
    /// for [`Control::adopted`].
    pub fn refresh(&mut self) -> Option<u64> {
        let now = self.logging.epoch.now();
        if now == self.seen {
            return None;
        }
        self.seen = now;
        let state = self.logging.lock();
        let used = state.used.get(self.index).copied().flatten();
        self.current = QueueLog {
            data: state.log.clone().filter(|_| state.all),
            used: state.log.clone().zip(used),
            listener: state.listener.clone(),
        };
        Some(now)
    }

    /// As of the last [`refresh`](Self::refresh).
    pub fn current(&self) -> &QueueLog {
        &self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    use vmm_sys_util::eventfd::EventFd;

    fn control() -> Arc<Control> {
        let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Arc::new(Control::new(Arc::new(wake)))
    }

    #[test]
    fn a_change_is_over_when_every_queue_has_adopted_it() {
        let controls = vec![control(), control()];
        let logging = Arc::new(Logging::new(controls.clone()));
        let mut views: Vec<_> = (0..2)
            .map(|index| LogView::new(Arc::clone(&logging), index))
            .collect();
        // Often, as it is a race that is lost if nobody waits.
        for round in 1..=200 {
            let over = Arc::new(AtomicBool::new(false));
            let thread = std::thread::spawn({
                let (logging, over) = (Arc::clone(&logging), Arc::clone(&over));
                move || {
                    logging.set_used(1, Some(4096 * round));
                    over.store(true, Ordering::SeqCst);
                }
            });
            for (view, control) in views.iter_mut().zip(&controls) {
                let epoch = loop {
                    match view.refresh() {
                        Some(epoch) => break epoch,
                        None => std::thread::yield_now(),
                    }
                };
                // The work of a round.
                for _ in 0..10 {
                    assert!(!over.load(Ordering::SeqCst), "round {round}");
                    std::thread::yield_now();
                }
                control.adopted(epoch);
            }
            thread.join().unwrap();
            assert_eq!(views[0].refresh(), None);
        }
    }

    #[test]
    fn what_is_said_again_is_no_change_and_a_closed_queue_is_not_waited_for() {
        let controls = vec![control()];
        let logging = Arc::new(Logging::new(controls.clone()));
        let mut view = LogView::new(Arc::clone(&logging), 0);
        logging.set_all(false);
        logging.set_used(0, None);
        logging.set_used(77, Some(1));
        assert_eq!(view.refresh(), None);
        controls[0].drained(crate::device::queue::control::CLOSED);
        logging.set_all(true);
        assert!(view.refresh().is_some());
        assert!(view.current().data().is_none(), "there is no log yet");
        assert!(view.current().covers_used(u64::MAX));
    }
}
