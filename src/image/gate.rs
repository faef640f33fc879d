//! The gate between the guest's requests and the session.
//!
//! Queue threads ask it before every request, and it answers from one atomic.
//! The session thread is its only operator. It keeps no request: a queue whose
//! write has to wait keeps that request itself and is woken when the answer may
//! have changed.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::machine::GateState;
use crate::device::gate::{Admission, Gate};

/// Told once when a write is waiting at a held gate.
type OnWanted = Box<dyn Fn() + Send + Sync>;

/// See the module.
pub struct WriteGate {
    state: AtomicU8,
    wanted: AtomicBool,
    on_wanted: OnWanted,
    wakers: Mutex<Vec<Arc<EventFd>>>,
}

impl WriteGate {
    /// A held gate. `on_wanted` is called from a queue thread when the first
    /// write waits, and again after each change to [`GateState::Hold`].
    pub fn new(on_wanted: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            state: AtomicU8::new(encode(GateState::Hold)),
            wanted: AtomicBool::new(false),
            on_wanted: Box::new(on_wanted),
            wakers: Mutex::new(Vec::new()),
        }
    }

    /// Changes the answer and wakes every queue.
    pub fn set(&self, state: GateState) {
        if state == GateState::Hold {
            self.wanted.store(false, Ordering::SeqCst);
        }
        self.state.store(encode(state), Ordering::SeqCst);
        let wakers = self.wakers.lock().unwrap_or_else(|e| e.into_inner());
        for wake in wakers.iter() {
            if let Err(error) = wake.write(1) {
                log::error!("cannot wake a queue that waits at the gate: {error}");
            }
        }
    }

    /// The present answer.
    pub fn state(&self) -> GateState {
        decode(self.state.load(Ordering::SeqCst))
    }

    /// Is a write waiting now?
    pub fn is_wanted(&self) -> bool {
        self.state() == GateState::Hold && self.wanted.load(Ordering::SeqCst)
    }
}

impl Gate for WriteGate {
    fn admit_read(&self) -> Admission {
        match decode(self.state.load(Ordering::Acquire)) {
            GateState::FailAll => Admission::Refuse,
            GateState::Hold | GateState::Open | GateState::FailWrites => Admission::Go,
        }
    }

    fn begin_write(&self, _offset: u64, _len: u64) -> Admission {
        match decode(self.state.load(Ordering::Acquire)) {
            GateState::Open => Admission::Go,
            GateState::Hold => {
                if !self.wanted.swap(true, Ordering::SeqCst) {
                    (self.on_wanted)();
                }
                Admission::Wait
            }
            GateState::FailWrites | GateState::FailAll => Admission::Refuse,
        }
    }

    fn end_write(&self, _offset: u64, _len: u64) {}

    fn subscribe(&self, wake: Arc<EventFd>) {
        let mut wakers = self.wakers.lock().unwrap_or_else(|e| e.into_inner());
        // A queue that is gone holds its event fd no longer.
        wakers.retain(|known| Arc::strong_count(known) > 1);
        wakers.push(wake);
    }
}

fn encode(state: GateState) -> u8 {
    match state {
        GateState::Hold => 0,
        GateState::Open => 1,
        GateState::FailWrites => 2,
        GateState::FailAll => 3,
    }
}

fn decode(state: u8) -> GateState {
    match state {
        0 => GateState::Hold,
        1 => GateState::Open,
        2 => GateState::FailWrites,
        _ => GateState::FailAll,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_held_gate_asks_for_marks_once_and_again_after_it_was_held_anew() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let gate = WriteGate::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(gate.begin_write(0, 512), Admission::Wait);
        assert_eq!(gate.begin_write(0, 512), Admission::Wait);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        gate.set(GateState::FailWrites);
        assert_eq!(gate.begin_write(0, 512), Admission::Refuse);
        gate.set(GateState::Hold);
        assert_eq!(gate.begin_write(0, 512), Admission::Wait);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn reads_go_on_in_every_state_but_the_stopped_one() {
        let gate = WriteGate::new(|| {});
        for state in [GateState::Hold, GateState::Open, GateState::FailWrites] {
            gate.set(state);
            assert_eq!(gate.admit_read(), Admission::Go);
        }
        gate.set(GateState::FailAll);
        assert_eq!(gate.admit_read(), Admission::Refuse);
        assert_eq!(gate.begin_write(0, 1), Admission::Refuse);
    }

    #[test]
    fn a_change_wakes_every_subscribed_queue_and_forgets_those_that_are_gone() {
        let gate = WriteGate::new(|| {});
        let (kept, gone) = (
            Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
            Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
        );
        gate.subscribe(gone.clone());
        drop(gone);
        gate.subscribe(kept.clone());
        gate.set(GateState::Open);
        assert_eq!(kept.read().unwrap(), 1);
        assert_eq!(gate.wakers.lock().unwrap().len(), 1);
    }
}
