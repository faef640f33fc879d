//! `bypass-blk release`: lifts the fence that a killed daemon left.
//!
//! It takes the session lock for that moment, so that it can only be done when
//! nobody holds the image.

use clap::Args;

use crate::daemon::brick_view::BrickView;
use crate::daemon::failure::Failure;
use crate::daemon::logging;
use crate::daemon::target::Target;
use crate::gluster::Timeouts;
use crate::image::replica::brick_port::BrickPort;
use crate::image::replica::session_lock::{Blocked, Claim, lock_session};
use crate::image::session::error::OpenError;

use super::arguments::{LogArgs, ServerArgs};

/// Arguments of `release`.
#[derive(Args, Debug)]
pub struct ReleaseArgs {
    /// The image whose fence to lift
    #[arg(value_name = "VOLUME/IMAGE")]
    target: Target,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: ReleaseArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level);
    let mut view = BrickView::load(&args.server.server, &args.target, Timeouts::default())?;
    let names = view.located.names();
    let claim = Claim {
        session: view.me.session,
        read_only: false,
        files: 1,
    };
    let connected = view.connected;
    let failed = |brick: usize, why: String| OpenError::BrickFailed {
        brick: names.one(brick),
        why,
    };
    // The lock on every brick first: a holder anywhere keeps its fence everywhere.
    for (brick, port) in reachable(&mut view.ports, connected) {
        lock_session(port, &claim).map_err(|blocked| match blocked {
            Blocked::Session(holder) => OpenError::Locked {
                brick: names.one(brick),
                holder,
            },
            Blocked::Busy(lock) => OpenError::Busy {
                volume: names.volume.clone(),
                lock,
                brick: names.one(brick),
            },
            Blocked::Port(error) => failed(brick, error.to_string()),
        })?;
    }
    let mut lifted = 0;
    for (brick, port) in reachable(&mut view.ports, connected) {
        let copy = port
            .probe()
            .map_err(|error| failed(brick, error.to_string()))?;
        if copy.fenced {
            port.lift_fence()
                .map_err(|error| failed(brick, error.to_string()))?;
            lifted += 1;
        }
    }
    for copy in view.copies().0.iter().filter(|copy| !copy.reachable) {
        log::warn!(
            "{} was not reached and may still be fenced: release again when it is back",
            copy.brick
        );
    }
    match lifted {
        0 => println!("no copy that was reached is fenced"),
        1 => println!("the fence is lifted from 1 copy"),
        count => println!("the fence is lifted from {count} copies"),
    }
    Ok(())
}

fn reachable(
    ports: &mut [Box<dyn BrickPort>],
    connected: crate::image::replica::brick_set::BrickSet,
) -> impl Iterator<Item = (usize, &mut dyn BrickPort)> {
    let ports = ports.iter_mut().enumerate();
    ports
        .filter(move |(brick, _)| connected.contains(*brick))
        .map(|(brick, port)| (brick, &mut **port as &mut dyn BrickPort))
}
