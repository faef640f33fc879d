//! Where `serve` serves front-ends, one after the other, and where an upgrade has them
//! all at rest: the front-end, the session, then the process is replaced.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::control::socket::ControlSocket;
use crate::device::{Config, EndReason, FrontEnd, Served, Server};
use crate::image::error_chain::chain;

use super::failure::Failure;
use super::listener::{Listener, Next};
use super::served_image::ServedImage;
use super::shutdown::Stop;
use super::switchable_gate::SwitchableGate;
use super::upgrade::{Upgrade, UpgradeError};
use super::upgrade_state::Leaving;

/// Where front-ends are served, one after the other.
pub struct FrontendLoop<'a> {
    /// The device.
    pub server: &'a Server<SwitchableGate>,
    /// Where they come from.
    pub listener: Listener,
    /// The wish to end.
    pub stop: &'a Stop,
    /// Whether one is there, for the status.
    pub connected: &'a AtomicBool,
    /// The image.
    pub served: &'a ServedImage,
    /// How to be replaced.
    pub upgrade: &'a Upgrade,
    /// The image's file, claimed.
    pub local: &'a File,
    /// The control socket.
    pub control: &'a ControlSocket,
    /// The device's shape.
    pub config: Config,
}

impl FrontendLoop<'_> {
    /// Until the end is wished for, or no more come. `first` is one that the process before
    /// had.
    ///
    /// # Errors
    /// [`Failure::Socket`].
    pub fn serve_front_ends(&mut self, mut first: Option<FrontEnd>) -> Result<(), Failure> {
        let pause = self.server.pause_handle();
        // A session that stopped by itself fails the guest's requests for as long as
        // the front-end stays, so that the guest sees errors and not silence.
        while !self.stop.is_requested() && (first.is_some() || self.served.now().stopped.is_none())
        {
            let front_end = match first.take() {
                Some(front_end) => front_end,
                None => match self.listener.next(self.stop, pause.readable())? {
                    Next::FrontEnd(stream) => {
                        log::info!("front-end connected");
                        stream.into()
                    }
                    Next::End => break,
                    Next::Interrupted => {
                        pause.forget();
                        self.replace(None);
                        continue;
                    }
                },
            };
            self.connected.store(true, Ordering::SeqCst);
            let served = self.server.serve_on(front_end);
            if let Ok(Served::Paused(front_end)) = served {
                pause.forget();
                self.replace(Some(&front_end));
                first = Some(front_end);
                continue;
            }
            self.connected.store(false, Ordering::SeqCst);
            self.served.front_end_gone();
            match served {
                Ok(Served::Ended(EndReason::Unused)) => log::info!(
                    "front-end gone before a guest used the disk. If QEMU comes and goes again and again, its own log \
                     says why; mostly serve has fewer --num-queues than QEMU"
                ),
                Ok(Served::Ended(reason)) => log::info!("front-end gone: {reason:?}"),
                Ok(Served::Paused(_)) => {}
                Err(error) => {
                    let why = chain(&error);
                    log::warn!("front-end dropped: {why}");
                    self.server.stats().front_end_dropped(why);
                }
            }
        }
        Ok(())
    }

    /// Becomes the new program, or goes on as if nothing had been.
    fn replace(&self, front_end: Option<&FrontEnd>) {
        let since = monotonic();
        if self.stop.is_requested() {
            return;
        }
        let why = match self.served.rest() {
            Err(why) => UpgradeError::NotNow(why),
            Ok(resting) => self.upgrade.replace(&Leaving {
                resting: &resting,
                local: self.local,
                listener: self.listener.socket(),
                control: self.control.listener(),
                front_end,
                config: self.config,
                since,
            }),
        };
        log::error!("not upgraded: {}", chain(&why));
    }
}

/// Nanoseconds of the clock that goes on over an upgrade.
pub fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanoseconds = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    u64::try_from(nanoseconds).unwrap_or_default()
}
