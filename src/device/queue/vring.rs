//! A virtqueue's state as the protocol handler sets it.
//!
//! [`Vring`] is what `vhost-user-backend` asks for; the stock state inside is
//! only its store. The queue's thread locks it once per wake-up ([`Vring::open`])
//! and works on the open [`Ring`]. The lock is shared with the protocol handler
//! alone, never between queues.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::{ReadWriteFlags, preadv2};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};

use super::control::Control;
use super::ring::Ring;
use crate::device::guest::memory::MemoryHandle;

/// One virtqueue, shared by the protocol handler and the queue's thread.
#[derive(Clone)]
pub struct Vring {
    state: VringMutex<MemoryHandle>,
    beside: Arc<Beside>,
}

/// What the handler and the queue's thread have in common without the lock on the state.
#[derive(Default)]
struct Beside {
    /// How many calls of the handler are at work on the state or wait for it.
    handlers: AtomicUsize,
    /// How many event fds for kicks there have been.
    kicks: AtomicU64,
    parties: Mutex<Parties>,
}

#[derive(Default)]
struct Parties {
    /// The handler's event fd for kicks, once more.
    kick: Option<Arc<File>>,
    /// The queue's thread, once it has introduced itself.
    thread: Option<Arc<Control>>,
}

impl Vring {
    /// Locks the ring for a round.
    pub fn open(&self) -> Ring<'_> {
        Ring::new(self.state.get_mut())
    }

    /// Lets the handler have the ring if it waits for it: whoever locks it again at once
    /// would always be first.
    pub fn give_way(&self) {
        while self.beside.handlers.load(Ordering::Acquire) > 0 {
            std::thread::yield_now();
        }
    }

    /// For the queue's thread: it does not wait in its event loop alone from now on, and is to
    /// be woken through `thread` whenever the handler changes what it may do.
    pub fn introduce(&self, thread: &Arc<Control>) {
        self.parties().thread = Some(Arc::clone(thread));
    }

    /// The event fd for kicks, if it is another one than `seen` says, which then says so.
    pub fn changed_kick(&self, seen: &mut u64) -> Option<Option<Arc<File>>> {
        let kicks = self.beside.kicks.load(Ordering::Acquire);
        (std::mem::replace(seen, kicks) != kicks).then(|| self.parties().kick.clone())
    }

    /// Takes the guest's kick, if there is one, and never waits for it.
    pub fn take_kick(&self) -> bool {
        self.parties().kick.as_ref().is_some_and(|kick| {
            let mut count = [0; 8];
            let mut room = [IoSliceMut::new(&mut count)];
            // Not by the fd's own mode, which it shares with the front-end.
            preadv2(kick, &mut room, u64::MAX, ReadWriteFlags::NOWAIT).is_ok()
        })
    }

    fn parties(&self) -> MutexGuard<'_, Parties> {
        let parties = self.beside.parties.lock();
        parties.unwrap_or_else(PoisonError::into_inner)
    }

    /// The handler has changed whether the ring may be used. (If the thread introduces itself
    /// only after this, it has not looked at the ring yet.)
    fn wake_thread(&self) {
        if let Some(thread) = &self.parties().thread {
            thread.wake();
        }
    }

    fn running(&self) -> bool {
        self.handle(|state| state.get_ref().get_queue().ready())
    }

    /// For the handler: what it does with the state.
    fn handle<'a, R>(&'a self, act: impl FnOnce(&'a VringMutex<MemoryHandle>) -> R) -> R {
        self.beside.handlers.fetch_add(1, Ordering::AcqRel);
        let result = act(&self.state);
        self.beside.handlers.fetch_sub(1, Ordering::AcqRel);
        result
    }
}

impl<'a> VringStateGuard<'a, MemoryHandle> for Vring {
    type G = MutexGuard<'a, VringState<MemoryHandle>>;
}

impl<'a> VringStateMutGuard<'a, MemoryHandle> for Vring {
    type G = MutexGuard<'a, VringState<MemoryHandle>>;
}

impl VringT<MemoryHandle> for Vring {
    fn new(mem: MemoryHandle, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            state: VringMutex::new(mem, max_queue_size)?,
            beside: Arc::default(),
        })
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<MemoryHandle>> {
        self.handle(|state| state.get_ref())
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<MemoryHandle>> {
        self.handle(|state| state.get_mut())
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.handle(|state| state.add_used(desc_index, len))
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.handle(|state| state.signal_used_queue())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.handle(|state| state.enable_notification())
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.handle(|state| state.disable_notification())
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.handle(|state| state.needs_notification())
    }

    fn set_enabled(&self, enabled: bool) {
        self.handle(|state| state.set_enabled(enabled));
        self.wake_thread();
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.handle(|state| state.set_queue_info(desc, avail, used))
    }

    fn queue_next_avail(&self) -> u16 {
        self.handle(|state| state.queue_next_avail())
    }

    /// Only while the ring is stopped: a running one knows better.
    fn set_queue_next_avail(&self, base: u16) {
        if self.running() {
            log::warn!("the front-end set the base of a running ring: ignored");
        } else {
            self.handle(|state| state.set_queue_next_avail(base));
        }
    }

    /// The handler reads the used index from the guest's memory and sets it here,
    /// in two steps. On a running ring (QEMU sends the addresses again when
    /// migration logging starts) used elements may have been published between
    /// the two, so only a stopped ring takes it.
    fn set_queue_next_used(&self, idx: u16) {
        if !self.running() {
            self.handle(|state| state.set_queue_next_used(idx));
        }
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.handle(|state| state.queue_used_idx())
    }

    fn set_queue_size(&self, num: u16) {
        self.handle(|state| state.set_queue_size(num));
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.handle(|state| state.set_queue_event_idx(enabled));
    }

    fn set_queue_ready(&self, ready: bool) {
        self.handle(|state| state.set_queue_ready(ready));
        self.wake_thread();
    }

    /// A second kick on a running ring replaces the first: not being ready makes
    /// the handler register it, and say that the ring is ready again, which wakes the thread.
    fn set_kick(&self, file: Option<File>) {
        if let Some(file) = &file {
            never_wait_for(file);
            self.handle(|state| state.set_queue_ready(false));
        }
        // The event loop may still wait for the one before, but nobody would read it.
        self.take_kick();
        // Without a second one the thread leaves each kick to its event loop.
        let second = file.as_ref().and_then(|file| file.try_clone().ok());
        self.parties().kick = second.map(Arc::new);
        self.beside.kicks.fetch_add(1, Ordering::AcqRel);
        self.handle(|state| state.set_kick(file));
    }

    /// Never an error, which would silently end the thread: a kick that cannot be
    /// read is still a reason to look at the ring.
    fn read_kick(&self) -> io::Result<bool> {
        match self.handle(|state| state.read_kick()) {
            Ok(enabled) => Ok(enabled),
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    log::warn!("cannot read the kick of a ring: {error}");
                }
                Ok(self.handle(|state| state.get_ref().is_enabled()))
            }
        }
    }

    /// An event fd that holds all it can hold must not stop the queue's thread.
    fn set_call(&self, file: Option<File>) {
        file.iter().for_each(never_wait_for);
        self.handle(|state| state.set_call(file));
    }

    fn set_err(&self, file: Option<File>) {
        self.handle(|state| state.set_err(file));
    }
}

/// Reading and writing the front-end's event fd never waits for the front-end.
pub fn never_wait_for(event: &File) {
    if let Err(error) = rustix::io::ioctl_fionbio(event, true) {
        log::warn!("cannot make an event fd of a ring non-blocking: {error}");
    }
}

#[cfg(test)]
mod tests;
