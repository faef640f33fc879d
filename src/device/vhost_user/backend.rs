//! The device as `vhost-user-backend` sees it, for one connection: what it
//! offers, and where its events go.
//!
//! The control plane only: messages change shared state or ask a queue to
//! drain; every request is handled by the queue of the thread it arrives on.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::config_space;
use crate::device::gate::Gate;
use crate::device::guest::memory::{DirtyBitmap, Epoch, MemoryHandle};
use crate::device::queue::control::Control;
use crate::device::queue::shared::Shared;
use crate::device::queue::vring::Vring;
use crate::device::queue::work::Queue;
use crate::device::shared_memory::log_switch::Logging;

/// One connection's device.
pub struct Backend<G> {
    shared: Arc<Shared<G>>,
    epoch: Arc<Epoch>,
    logging: Arc<Logging>,
    controls: Vec<Arc<Control>>,
    /// Each is locked by its own thread alone, for as long as it is busy.
    queues: Vec<Mutex<Queue<G>>>,
}

impl<G: Gate> Backend<G> {
    /// A device of `queues`, each stopped through the control of the same index.
    pub fn new(
        shared: Arc<Shared<G>>,
        epoch: Arc<Epoch>,
        logging: Arc<Logging>,
        controls: Vec<Arc<Control>>,
        queues: Vec<Queue<G>>,
    ) -> Self {
        Self {
            shared,
            epoch,
            logging,
            controls,
            queues: queues.into_iter().map(Mutex::new).collect(),
        }
    }

    /// The event number of the queues' own wake-ups; the handler uses the ones
    /// up to the number of queues.
    pub fn wake_event(&self) -> u64 {
        self.queues.len() as u64 + 1
    }
}

impl<G: Gate> VhostUserBackend for Backend<G> {
    type Bitmap = DirtyBitmap;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.shared.config.num_queues.into()
    }

    fn max_queue_size(&self) -> usize {
        self.shared.config.queue_size.into()
    }

    fn features(&self) -> u64 {
        config_space::features(&self.shared.disk)
    }

    fn acked_features(&self, features: u64) {
        self.shared.cache.negotiated(features);
        let log_all = VhostUserVirtioFeatures::LOG_ALL.bits();
        self.logging.set_all(features & log_all != 0);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        config_space::protocol_features()
    }

    /// The handler has disabled all rings; in-flight requests end before the reply.
    fn reset_device(&self) {
        for control in &self.controls {
            control.drain();
        }
        self.logging.set_all(false);
    }

    /// Kept by each ring.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let writeback = self.shared.cache.tell_writeback();
        self.shared.size_changes.told(self.shared.disk.size());
        config_space::read(
            &self.shared.disk,
            &self.shared.config,
            writeback,
            offset,
            size,
        )
    }

    /// Only the cache mode can be set. Anything else is ignored, as an error would
    /// end the connection for what a guest may have caused. So does a mode that
    /// cannot be kept: the guest is told that it has not changed, and reconnects.
    fn set_config(&self, offset: u32, buf: &[u8]) -> io::Result<()> {
        let Some(writeback) = config_space::written_writeback(offset, buf) else {
            log::warn!(
                "ignored a write of {} bytes at {offset} of the config space",
                buf.len()
            );
            return Ok(());
        };
        let name = if writeback { "back" } else { "through" };
        log::info!("the guest sets its disk to write-{name}");
        let set = self.shared.cache.set_writeback(writeback);
        set.inspect_err(|error| log::error!("the disk stays write-back: {error}"))
    }

    /// Wakes the queues so that they let go of the old map. During a migration the
    /// log must have been enlarged before.
    fn update_memory(&self, memory: MemoryHandle) -> io::Result<()> {
        self.logging
            .check(&memory.memory())
            .map_err(io::Error::other)?;
        self.epoch.advance();
        for control in &self.controls {
            control.wake();
        }
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.shared.config.num_queues)
            .map(|queue| 1 << queue)
            .collect()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        self.controls
            .get(queue as usize)
            .ok_or(io::ErrorKind::InvalidInput)?
            .drain();
        Ok(())
    }

    /// An error silently ends the thread, so it is how a closed queue's thread
    /// ends, and nothing else is one. (The crate's own exit event costs a file
    /// descriptor per thread and connection that is never closed.)
    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        vrings: &[Vring],
        thread: usize,
    ) -> io::Result<()> {
        let _abort = AbortOnPanic;
        if u64::from(event) == self.wake_event()
            && let Some(control) = self.controls.get(thread)
        {
            control.acknowledge_wake();
        }
        if let (Some(queue), Some(vring)) = (self.queues.get(thread), vrings.first()) {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.work(vring) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        Ok(())
    }
}

/// Ends the process if a queue's thread panics: a bug has then left requests
/// half done, and a dead daemon is a case that is provided for, a silent queue is not.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("a queue's thread panicked; ending the process");
            std::process::abort();
        }
    }
}
