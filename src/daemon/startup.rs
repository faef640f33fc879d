//! What `serve` begins with: the image found by asking Gluster, or everything from the
//! process before, at an upgrade.

use crate::control::socket::ControlSocket;
use crate::image::error_chain::chain;
use crate::image::local::{self, LocalFile};
use crate::image::locate::{Allowed, Located};
use crate::image::state_dir::StateDir;

use super::failure::Failure;
use super::listener::{self, FrontEndSource, Listener};
use super::options::{FrontEnds, ServeOptions};
use super::session_setup::{self, Place};
use super::upgrade::Resume;
use super::upgrade_state::{self, UpgradeState};

/// What a daemon begins with.
pub struct Startup {
    /// The image, and who has it.
    pub place: Place,
    /// Its file.
    pub local: LocalFile,
    /// Where front-ends come from.
    pub front_ends: FrontEndSource,
    /// What the process before left.
    pub kept: Option<UpgradeState>,
}

/// Finds the image, or takes over what the process before left. What would be refused
/// later, with the image open and its locks taken, is refused here as far as it shows.
///
/// # Errors
/// Whatever forbids to serve it.
pub fn begin(options: &ServeOptions, state: &StateDir) -> Result<Startup, Failure> {
    let from = match options.resume {
        Some(Resume::From(number)) => Some(upgrade_state::take(number)),
        _ => None,
    };
    match from {
        Some(Ok(kept)) => return resume(options, kept),
        // As after a crash: all of it is closed, and the front-end connects anew.
        Some(Err(why)) => log::error!("starting anew: {}", chain(&why)),
        None => {}
    }
    let front_ends = match &options.front_ends {
        FrontEnds::At(path) => {
            listener::check_path(path)?;
            FrontEndSource::At(path.clone())
        }
        FrontEnds::Connected(fd) => FrontEndSource::Ready(Listener::adopt(*fd)?),
    };
    if let Some(endpoint) = &options.metrics {
        endpoint.check()?;
    }
    let place = find(options)?;
    let Located { volume, gfid, .. } = &place.located;
    ControlSocket::check(&options.run_dir, volume, *gfid)?;
    let local = local::look_at_image(&place.local_place(), options.setup.local_terms());
    let local = local.map_err(|error| Failure::Open(error.into()))?;
    if options.incoming && !options.read_only() {
        session_setup::prepare(&place, &options.setup, state, local.size)?;
    }
    Ok(Startup {
        place,
        local,
        front_ends,
        kept: None,
    })
}

/// Goes on where the process before stopped.
fn resume(options: &ServeOptions, mut kept: UpgradeState) -> Result<Startup, Failure> {
    let place = kept.place.clone();
    let base = kept.local.try_clone().map_err(|source| Failure::System {
        what: "go on with the image's file",
        source,
    })?;
    // Nobody else has its other files meanwhile: whoever wants them claims the first one before.
    let local = local::go_on(base, &place.local_place(), options.setup.local_terms());
    let local = local.map_err(|error| Failure::Open(error.into()))?;
    let front_ends = match (kept.listener.take(), &options.front_ends) {
        (Some(listener), FrontEnds::At(path)) => {
            FrontEndSource::Ready(Listener::at(path, listener))
        }
        (None, FrontEnds::At(path)) => FrontEndSource::At(path.clone()),
        (_, FrontEnds::Connected(_)) => FrontEndSource::Ready(Listener::Fd(None)),
    };
    Ok(Startup {
        place,
        local,
        front_ends,
        kept: Some(kept),
    })
}

fn find(options: &ServeOptions) -> Result<Place, Failure> {
    session_setup::find(
        &options.server,
        &options.volume,
        &options.image,
        options.brick.as_deref(),
        Allowed::These(&options.allow),
        options.read_only(),
    )
}
