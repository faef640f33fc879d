//! Serves front-ends, one after the other.
//!
//! Owns what outlives a connection: the disk, the counters, the cache mode, and
//! the event fds that the gate knows. Everything else is made anew for each
//! connection and is gone, with all its I/O, before the next.

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use vhost_user_backend::VhostUserDaemon;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::device::cache_mode::CacheMode;
use crate::device::config::{Config, Idle};
use crate::device::error::DeviceError;
use crate::device::gate::Gate;
use crate::device::guest::memory::{Epoch, Memory, MemoryHandle, View};
use crate::device::io::disk::Disk;
use crate::device::queue::control::Control;
use crate::device::queue::shared::{Connection, Shared};
use crate::device::queue::work::Queue;
use crate::device::shared_memory::inflight::Inflight;
use crate::device::shared_memory::log_switch::Logging;
use crate::device::size_change::SizeChanges;
use crate::device::space::Space;
use crate::device::stats::Stats;

use super::backend::Backend;
use super::config_space;
use super::intercept::{Intercept, Offer};
use super::message_deadline::Patience;
use super::pause::{self, FrontEnd};
use super::relay::{RelayEnd, Wishes, forget, handler_channel, relay};
use super::transcript::Transcript;

/// Why [`Server::serve`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The front-end closed the connection.
    Disconnected,
    /// It did so before a guest's driver used the disk.
    Unused,
    /// [`StopHandle::stop`] was called.
    Stopped,
}

/// Ends [`Server::serve`] from another thread.
#[derive(Clone, Debug)]
pub struct StopHandle(Arc<OwnedFd>);

impl StopHandle {
    /// Makes `serve` return soon, and every later call at once. The rings are
    /// drained before the front-end's connection is closed.
    pub fn stop(&self) {
        // It fails only when the counter is full, and then it has been said already.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// Interrupts [`Server::serve_on`] so that the front-end can go on elsewhere.
#[derive(Clone, Debug)]
pub struct PauseHandle(Arc<OwnedFd>);

impl PauseHandle {
    /// Makes `serve_on` return [`Served::Paused`] soon, or at its next call. It goes on
    /// instead if that cannot be now, and says why in the log.
    pub fn pause(&self) {
        // It fails only when the counter is full, and then it has been said already.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Takes the wish back.
    pub fn forget(&self) {
        forget(self.0.as_fd());
    }

    /// Readable while it is wished.
    pub fn readable(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How [`Server::serve_on`] ended.
#[derive(Debug)]
pub enum Served {
    /// The front-end's connection is closed.
    Ended(EndReason),
    /// It can go on, here or with another server of the same disk and shape.
    Paused(FrontEnd),
}

/// A vhost-user-blk device over one disk.
pub struct Server<G> {
    shared: Arc<Shared<G>>,
    /// One per queue, subscribed to the gate for good.
    wakes: Vec<Arc<EventFd>>,
    stop: StopHandle,
    pause: PauseHandle,
    patience: Patience,
    idle: Idle,
    /// One front-end at a time.
    serving: Mutex<()>,
}

impl<G: Gate> Server<G> {
    /// A device over `disk`, which asks `gate` before each read and each change.
    ///
    /// # Errors
    /// A limit of `config`, or no event fds.
    pub fn new(disk: Disk, gate: Arc<G>, config: Config) -> Result<Self, DeviceError> {
        config.validate()?;
        let wakes = (0..config.num_queues)
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(DeviceError::Engine)?;
        let event = || {
            eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
                .map_err(|errno| DeviceError::Engine(errno.into()))
        };
        for wake in &wakes {
            gate.subscribe(Arc::clone(wake));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                disk,
                gate,
                stats: Arc::new(Stats::new(config.num_queues)),
                config,
                cache: Arc::new(CacheMode::new()),
                size_changes: SizeChanges::default(),
                space: Arc::default(),
            }),
            wakes,
            stop: StopHandle(Arc::new(event()?)),
            pause: PauseHandle(Arc::new(event()?)),
            patience: Patience::default(),
            idle: Idle::default(),
            serving: Mutex::new(()),
        })
    }

    /// With other limits of how long a front-end may owe a message.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// With a limit of how long requests wait for room on a full disk before they fail.
    #[must_use]
    pub fn with_full_timeout(self, limit: std::time::Duration) -> Self {
        self.shared.space.set_limit(limit);
        self
    }

    /// Has the queues' threads wait elsewhere than at the best place.
    #[must_use]
    pub fn with_idle(self, idle: Idle) -> Self {
        Self { idle, ..self }
    }

    /// Serves the front-end at the other end of `stream` until it goes away or
    /// [`StopHandle::stop`] is called, and as [`Self::serve_on`].
    ///
    /// # Errors
    /// As [`Self::serve_on`].
    pub fn serve(&self, stream: UnixStream) -> Result<EndReason, DeviceError> {
        match self.serve_on(stream.into())? {
            Served::Ended(reason) => Ok(reason),
            Served::Paused(_) => Ok(EndReason::Stopped),
        }
    }

    /// Serves a front-end, a new one or one that was paused, until it goes away or one of
    /// the handles is used. When this returns, with or without an error, no I/O is in
    /// flight, every request taken has been answered or put back, the guest's memory is
    /// unmapped, and the next front-end can be served.
    ///
    /// # Errors
    /// The front-end broke the protocol, or what serving it takes cannot be had.
    pub fn serve_on(&self, front_end: FrontEnd) -> Result<Served, DeviceError> {
        let _serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let FrontEnd {
            stream,
            said: before,
            writeback,
        } = front_end;
        let mut transcript = Transcript::new(self.shared.config.num_queues);
        for message in before {
            transcript
                .note(message.code, &message.body, &message.fds)
                .map_err(DeviceError::Connection)?;
        }
        let memory = MemoryHandle::new(Memory::new());
        let controls: Vec<_> = self
            .wakes
            .iter()
            .map(|wake| Arc::new(Control::new(Arc::clone(wake))))
            .collect();
        let connection = Connection {
            inflight: Arc::new(Inflight::new(self.shared.config.num_queues)),
            logging: Arc::new(Logging::new(controls.clone())),
            idle: self.idle,
        };
        let backend = Arc::new(self.backend(&memory, &controls, &connection)?);
        if let Some(writeback) = writeback {
            self.shared.cache.goes_on(writeback);
        }
        let wake_event = backend.wake_event();
        let Connection {
            inflight, logging, ..
        } = connection;
        self.shared.size_changes.connected();
        let mut intercept = Intercept::new(
            self.offer(),
            inflight,
            logging,
            memory.clone(),
            self.shared.size_changes.clone(),
        );
        let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), backend, memory)
            .map_err(|error| DeviceError::Start(error.into()))?;
        let threads = daemon.get_epoll_handlers();
        for (handler, wake) in threads.iter().zip(&self.wakes) {
            let registered = handler.register_listener(wake.as_raw_fd(), EventSet::IN, wake_event);
            if let Err(error) = registered {
                // It waits for its threads, and one that cannot be woken cannot be ended.
                std::mem::forget(daemon);
                return Err(DeviceError::Engine(error));
            }
        }
        // Dropped before the daemon, which waits for the threads that this ends.
        let closing = Closing(&controls);
        let (near, mut listener) = handler_channel().map_err(DeviceError::Channel)?;
        daemon
            .start(&mut listener)
            .map_err(|error| DeviceError::Start(error.into()))?;
        let wishes = Wishes {
            stop: self.stop.0.as_fd(),
            pause: self.pause.readable(),
            patience: self.patience,
        };
        let end = match transcript.is_empty() {
            true => Ok(()),
            false => pause::tell(&transcript, &near, &mut intercept),
        };
        let end = end
            .and_then(|()| relay(&stream, &near, &wishes, &mut intercept, &mut transcript))
            .and_then(|end| match end {
                RelayEnd::Paused => pause::stop_rings(&mut transcript, &near).map(|()| end),
                _ => Ok(end),
            });
        drop(closing);
        // The handler may have closed it already.
        let _ = near.shutdown(Shutdown::Both);
        let verdict = daemon.wait();
        drop(daemon);
        match end? {
            RelayEnd::FrontEndClosed if intercept.used() => {
                Ok(Served::Ended(EndReason::Disconnected))
            }
            RelayEnd::FrontEndClosed => Ok(Served::Ended(EndReason::Unused)),
            RelayEnd::Stopped => Ok(Served::Ended(EndReason::Stopped)),
            RelayEnd::Paused => Ok(Served::Paused(FrontEnd {
                stream,
                said: transcript.into_messages(),
                writeback: self.shared.cache.known(),
            })),
            RelayEnd::HandlerClosed => {
                Err(verdict.err().map_or(DeviceError::HandlerGone, |error| {
                    DeviceError::Protocol(error.into())
                }))
            }
        }
    }

    fn offer(&self) -> Offer {
        Offer {
            features: config_space::features(&self.shared.disk),
            queues: self.shared.config.num_queues,
            queue_size: self.shared.config.queue_size,
        }
    }

    fn backend(
        &self,
        memory: &MemoryHandle,
        controls: &[Arc<Control>],
        connection: &Connection,
    ) -> Result<Backend<G>, DeviceError> {
        self.shared.cache.connected();
        let epoch = Arc::new(Epoch::default());
        let queues = controls
            .iter()
            .enumerate()
            .map(|(index, control)| {
                let view = View::new(memory.clone(), Arc::clone(&epoch));
                let shared = Arc::clone(&self.shared);
                Queue::new(index, shared, Arc::clone(control), connection, view)
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(DeviceError::Engine)?;
        let shared = Arc::clone(&self.shared);
        let logging = Arc::clone(&connection.logging);
        Ok(Backend::new(
            shared,
            epoch,
            logging,
            controls.to_vec(),
            queues,
        ))
    }

    /// Ends [`serve`](Self::serve) from another thread.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Interrupts [`serve_on`](Self::serve_on) from another thread.
    pub fn pause_handle(&self) -> PauseHandle {
        self.pause.clone()
    }

    /// The cache mode that the guest has chosen.
    pub fn cache_mode(&self) -> Arc<CacheMode> {
        Arc::clone(&self.shared.cache)
    }

    /// Offers a larger disk, once the file has `size` bytes and the gate lets writes go
    /// there. The answer: whether the front-end is told at once, or else when its rings
    /// start.
    pub fn growth(&self) -> impl Fn(u64) -> bool + Send + 'static
    where
        G: 'static,
    {
        let shared = Arc::clone(&self.shared);
        move |size| {
            shared.disk.grow(size);
            shared.size_changes.grown()
        }
    }

    /// Offers a larger disk that needs more files (none are needed where its last one
    /// becomes longer), once the gate lets writes go there: [`Disk::over_files`] says what they
    /// must be. One call at a time. The answer is as of [`Self::growth`].
    ///
    /// # Errors
    /// Of the call: the files do not fit, and the disk is as it was.
    pub fn growth_by_files(
        &self,
    ) -> impl Fn(Vec<File>, u64) -> Result<bool, DeviceError> + Send + 'static
    where
        G: 'static,
    {
        let shared = Arc::clone(&self.shared);
        move |files, size| {
            shared.disk.grow_by(files, size)?;
            Ok(shared.size_changes.grown())
        }
    }

    /// What is known of a full disk.
    pub fn space(&self) -> Arc<Space> {
        Arc::clone(&self.shared.space)
    }

    /// What the queues have done, over all connections.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.shared.stats)
    }
}

/// Closes the queues when dropped, which drains them and ends their threads.
struct Closing<'a>(&'a [Arc<Control>]);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        for control in self.0 {
            control.close();
        }
    }
}
