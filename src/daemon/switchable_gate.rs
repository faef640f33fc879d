//! The gate of a daemon whose session comes and goes: shut while the image is not
//! ours, else the session's own gate.
//!
//! Queue threads ask it as they ask a [`WriteGate`]; the ownership worker opens and shuts it. A
//! session is put in and taken out only while it is shut and nothing is under way; its
//! gate may be replaced while no write is in flight and none gets through the old one. It
//! tells its owner when the first ring starts and when the last one has stopped.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;
use vmm_sys_util::eventfd::EventFd;

use crate::device::gate::{Admission, Gate};
use crate::image::session::write_gate::WriteGate;

/// What the rings do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rings {
    /// The first one has started.
    Started,
    /// The last one has stopped, and all that was taken is done.
    Stopped,
}

/// See the module.
pub struct SwitchableGate {
    open: AtomicBool,
    leaving: AtomicBool,
    session: ArcSwapOption<WriteGate>,
    running: AtomicUsize,
    on_rings: Box<dyn Fn(Rings) + Send + Sync>,
    wakers: Mutex<Vec<Arc<EventFd>>>,
}

impl SwitchableGate {
    /// A shut one. `on_rings` is called from queue threads.
    pub fn new(on_rings: impl Fn(Rings) + Send + Sync + 'static) -> Self {
        Self {
            open: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            session: ArcSwapOption::empty(),
            running: AtomicUsize::new(0),
            on_rings: Box::new(on_rings),
            wakers: Mutex::default(),
        }
    }

    /// The session whose gate is asked from now on; `None` while the image is not ours.
    pub fn put(&self, session: Option<Arc<WriteGate>>) {
        let wakers = self.wakers.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(gate) = &session {
            wakers.iter().for_each(|wake| gate.subscribe(wake.clone()));
        }
        self.session.store(session);
    }

    /// Whether the image is given away when its rings stop: what they leave unanswered then
    /// would be lost.
    pub fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::SeqCst);
    }

    /// Lets the queues take requests, or not. What they took before goes on.
    pub fn set(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
        let wakers = self.wakers.lock().unwrap_or_else(|e| e.into_inner());
        for wake in wakers.iter() {
            if let Err(error) = wake.write(1) {
                log::error!("cannot wake a queue that waits for the image: {error}");
            }
        }
    }
}

/// A device subscribes once, with an event fd per queue for its whole life.
impl Gate for SwitchableGate {
    fn may_take(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    fn must_answer(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    fn ring_started(&self) {
        if self.running.fetch_add(1, Ordering::SeqCst) == 0 {
            (self.on_rings)(Rings::Started);
        }
    }

    fn ring_stopped(&self) {
        if self.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            (self.on_rings)(Rings::Stopped);
        }
    }

    fn admit_read(&self) -> Admission {
        match &*self.session.load() {
            Some(gate) => gate.admit_read(),
            None => Admission::Refuse,
        }
    }

    fn begin_write(&self, offset: u64, len: u64) -> Admission {
        match &*self.session.load() {
            Some(gate) => gate.begin_write(offset, len),
            None => Admission::Refuse,
        }
    }

    fn end_write(&self, offset: u64, len: u64) {
        if let Some(gate) = &*self.session.load() {
            gate.end_write(offset, len);
        }
    }

    fn begin_sync(&self) -> Admission {
        match &*self.session.load() {
            Some(gate) => gate.begin_sync(),
            None => Admission::Refuse,
        }
    }

    fn sync_failed(&self, errno: i32) {
        if let Some(gate) = &*self.session.load() {
            gate.sync_failed(errno);
        }
    }

    fn end_sync(&self) -> bool {
        self.session
            .load()
            .as_ref()
            .is_some_and(|gate| gate.end_sync())
    }

    fn subscribe(&self, wake: Arc<EventFd>) {
        let mut wakers = self.wakers.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(gate) = &*self.session.load() {
            gate.subscribe(wake.clone());
        }
        wakers.push(wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::session::state_machine::GateState;

    fn wake() -> Arc<EventFd> {
        Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
    }

    #[test]
    fn every_queue_is_woken_when_it_opens_and_by_the_session_s_gate_after() {
        let outer = SwitchableGate::new(|_| {});
        let queues = [wake(), wake(), wake()];
        queues
            .iter()
            .for_each(|queue| outer.subscribe(queue.clone()));
        assert!(!outer.may_take());
        assert_eq!(
            outer.admit_read(),
            Admission::Refuse,
            "nobody holds the image"
        );
        let gate = Arc::new(WriteGate::new(None, || {}));
        outer.put(Some(gate.clone()));
        outer.set(true);
        assert!(outer.may_take());
        assert_eq!(outer.admit_read(), Admission::Go);
        for queue in &queues {
            assert!(queue.read().is_ok());
        }
        gate.set(GateState::FailAll);
        for queue in &queues {
            assert!(queue.read().is_ok());
        }
        assert_eq!(outer.admit_read(), Admission::Refuse);
    }

    #[test]
    fn the_first_ring_and_the_last_one_are_told() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let gate = SwitchableGate::new(move |rings| tell.lock().unwrap().push(rings));
        gate.ring_started();
        gate.ring_started();
        gate.ring_stopped();
        assert_eq!(*told.lock().unwrap(), [Rings::Started]);
        gate.ring_stopped();
        gate.ring_started();
        let all = [Rings::Started, Rings::Stopped, Rings::Started];
        assert_eq!(*told.lock().unwrap(), all);
    }
}
