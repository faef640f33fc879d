//! What `serve` is told, as plain data: the command line fills it in, the daemon reads it.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::control::metrics::Endpoint;
use crate::device::{Config, Patience};
use crate::image::locate::Bypassable;

use super::session_setup::SessionSetup;
use super::target::GlusterdAddress;
use super::upgrade::Resume;

/// One image, and how to serve it.
#[derive(Debug)]
pub struct ServeOptions {
    /// The volume.
    pub volume: String,
    /// The image: its path in the volume.
    pub image: String,
    /// Where front-ends come from.
    pub front_ends: FrontEnds,
    /// Whom to ask for the volume's layout.
    pub server: GlusterdAddress,
    /// The copy to serve, as `HOST:/PATH`. Default: found by itself.
    pub brick: Option<String>,
    /// The shape of the device.
    pub config: Config,
    /// The disk's serial. Default: from the image's gfid.
    pub serial: Option<String>,
    /// The image is still another host's, and comes with its guest.
    pub incoming: bool,
    /// How to open the image.
    pub setup: SessionSetup,
    /// How long writes wait for room on the local disk. Default: for ever.
    pub full_timeout: Option<Duration>,
    /// What of the volume may be bypassed.
    pub allow: Vec<Bypassable>,
    /// Where metrics go.
    pub metrics: Option<Endpoint>,
    /// The program that takes this one's place at an upgrade.
    pub upgrade_binary: Option<PathBuf>,
    /// Go on with what the process before left.
    pub resume: Option<Resume>,
    /// What this host remembers.
    pub state_dir: PathBuf,
    /// The folder of the control sockets.
    pub run_dir: PathBuf,
}

/// Where front-ends come from.
#[derive(Debug)]
pub enum FrontEnds {
    /// They connect to a socket at this path, one after the other.
    At(PathBuf),
    /// One is connected to this descriptor already.
    Connected(RawFd),
}

impl ServeOptions {
    /// The guest cannot write.
    pub fn read_only(&self) -> bool {
        self.setup.terms.read_only
    }

    /// Behind a connection that was passed on nobody waits, and its QEMU may come late.
    pub fn patience(&self) -> Patience {
        let patience = Patience::default();
        let waits = matches!(self.front_ends, FrontEnds::At(_));
        let first = patience.first.filter(|_| waits);
        Patience { first, ..patience }
    }
}
