//! What `serve` begins with: the image found by asking Gluster, or everything from the
//! process before, at an upgrade.

use std::sync::Arc;

use crate::control::socket::ControlSocket;
use crate::image::error::chain;
use crate::image::local::{self, LocalFile};
use crate::image::locate::{Allowed, Located};
use crate::image::state_dir::StateDir;

use super::Failure;
use super::kept::{self, Kept};
use super::listen::{self, Listener};
use super::opening::{self, Opening, Place};
use super::serve::ServeArgs;
use super::upgrade::Resume;

/// What a daemon begins with.
pub struct Begin {
    /// The image, and who has it.
    pub place: Place,
    /// Its file.
    pub local: LocalFile,
    /// Where front-ends come from, if that is known already.
    pub front_ends: Option<Listener>,
    /// What the process before left.
    pub kept: Option<Kept>,
}

/// Finds the image, or takes over what the process before left. What would be refused
/// later, with the image open and its locks taken, is refused here as far as it shows.
///
/// # Errors
/// Whatever forbids to serve it.
pub fn begin(args: &ServeArgs, opening: &Opening, state: &StateDir) -> Result<Begin, Failure> {
    let from = match args.resume {
        Some(Resume::From(number)) => Some(kept::take(number)),
        _ => None,
    };
    match from {
        Some(Ok(kept)) => return resume(args, kept),
        // As after a crash: all of it is closed, and the front-end connects anew.
        Some(Err(why)) => log::error!("starting anew: {}", chain(&why)),
        None => {}
    }
    let front_ends = match (&args.socket_path, args.fd) {
        (Some(path), _) => listen::check_path(path).map(|()| None)?,
        (None, Some(fd)) => Some(Listener::adopt(fd)?),
        (None, None) => return Err(no_socket()),
    };
    if let Some(endpoint) = &args.metrics {
        endpoint.check()?;
    }
    let place = find(args)?;
    let Located { volume, gfid, .. } = &place.located;
    ControlSocket::check(&args.run_dir.run_dir, volume, *gfid)?;
    let local = local::look_at(
        &place.local_path(),
        place.located.gfid,
        opening.local_terms(),
    )
    .map_err(|error| Failure::Open(error.into()))?;
    if args.incoming && !args.read_only {
        opening::prepare(&place, opening, state, local.size)?;
    }
    Ok(Begin {
        place,
        local,
        front_ends,
        kept: None,
    })
}

/// Goes on where the process before stopped.
fn resume(args: &ServeArgs, mut kept: Kept) -> Result<Begin, Failure> {
    let place = kept.place.clone();
    let path = place.local_path();
    let local = kept.local.try_clone().and_then(|file| {
        let size = file.metadata()?.len();
        Ok(LocalFile {
            file,
            path,
            size,
            // Nobody upgrades after a failure.
            durability: Arc::default(),
        })
    });
    let front_ends = match (kept.listener.take(), &args.socket_path) {
        (Some(listener), Some(path)) => Some(Listener::at(path, listener)),
        (None, Some(_)) => None,
        _ => Some(Listener::Fd(None)),
    };
    Ok(Begin {
        place,
        local: local.map_err(|source| Failure::System {
            what: "go on with the image's file",
            source,
        })?,
        front_ends,
        kept: Some(kept),
    })
}

fn find(args: &ServeArgs) -> Result<Place, Failure> {
    let (Some(volume), Some(image)) = (&args.volume, &args.image) else {
        return Err(Failure::Usage("--volume and --image are needed".to_owned()));
    };
    opening::find(
        &args.server.server,
        volume,
        &image.0,
        args.brick.as_deref(),
        Allowed::These(&args.allow),
        args.read_only,
    )
}

/// Neither a path nor a socket was given.
pub fn no_socket() -> Failure {
    Failure::Usage("one of --socket-path and --fd is needed".to_owned())
}
