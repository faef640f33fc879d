//! `bypass-blk resize`: makes an image larger. The daemon of this host that serves it does
//! so while its guest runs; without one the command opens the image itself for that
//! moment.

use std::path::Path;
use std::time::Duration;

use clap::Args;

use crate::control::socket::{self, Answer, ControlError, Request};
use crate::daemon::failure::Failure;
use crate::daemon::maintenance_session::{MaintenanceSession, Wanted};
use crate::daemon::shutdown::Stop;
use crate::daemon::target::Target;
use crate::daemon::{logging, serve, session_setup};
use crate::image::error_chain::chain;
use crate::image::local::{self, LocalTerms};
use crate::image::locate::Allowed;
use crate::image::session::resize::{Insist, NewSize};
use crate::image::state_dir::StateDir;

use super::arguments::{LogArgs, RunDirArgs, ServerArgs, StateDirArgs};

/// Arguments of `resize`.
#[derive(Args, Debug)]
#[command(
    after_help = "Example: bypass-blk resize vms/vm1.img +10G\n\nEnds with 75, and the reason, when the image keeps its size. QEMU's and libvirt's own \
commands for it (block_resize, virsh blockresize) do not work on a vhost-user disk. See docs/resize.md"
)]
pub struct ResizeArgs {
    /// The image
    #[arg(value_name = "VOLUME/IMAGE")]
    target: Target,

    /// How large: bytes, or with K, M, G or T; +SIZE for so much more. An image is never
    /// made smaller
    #[arg(value_name = "SIZE", allow_hyphen_values = true)]
    size: NewSize,

    /// Also while copies are away: they are healed when they are back
    #[arg(long)]
    force: bool,

    /// Also by more than the disk of this host's copy has free: there is no way back, and
    /// a disk that is full stops its guests
    #[arg(long)]
    overcommit: bool,

    /// Which copy to open when nobody serves the image, as `gluster volume info` names
    /// this host's brick
    #[arg(long, value_name = "HOST:/PATH")]
    brick: Option<String>,

    /// How long to wait for an image that is locked or being healed
    #[arg(long, value_name = "TIME", default_value = "10s")]
    lock_timeout: humantime::Duration,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    state_dir: StateDirArgs,

    #[command(flatten)]
    run_dir: RunDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: ResizeArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level.min(log::LevelFilter::Warn));
    let Target { volume, image } = &args.target;
    let name = args.target.to_string();
    let run_dir = &args.run_dir.run_dir;
    match socket::find(run_dir, volume, &image.0, |status| status.serving.is_some())? {
        Some(socket) => resize_served(&args, &name, &socket),
        None => resize_alone(&args, &name),
    }
}

fn resize_served(args: &ResizeArgs, name: &str, socket: &Path) -> Result<(), Failure> {
    let request = Request::Resize {
        size: args.size,
        force: args.force,
        overcommit: args.overcommit,
    };
    match socket::ask(socket, &request) {
        Ok(Answer::Resized { resized, told }) => {
            println!("{name}: {resized}");
            if !told {
                println!("no front-end could be told: it sees the size when it starts next");
            }
            Ok(())
        }
        Ok(other) => Err(ControlError::unexpected(socket, &other).into()),
        Err(ControlError::Refused { why, .. }) => Err(kept(name, why)),
        Err(error) => Err(error.into()),
    }
}

/// With a session of its own, which ends with the marks removed if the copies are equal.
fn resize_alone(args: &ResizeArgs, name: &str) -> Result<(), Failure> {
    let stop = Stop::on_signals()?;
    let Target { volume, image } = &args.target;
    let server = &args.server.server;
    let brick = args.brick.as_deref();
    let place = session_setup::find(server, volume, &image.0, brick, Allowed::All, false)?;
    session_setup::take_over(&args.run_dir.run_dir, place.located.gfid)?;
    let terms = LocalTerms {
        read_only: true,
        force_raw: false,
    };
    let local = local::look_at_image(&place.local_place(), terms)
        .map_err(|error| Failure::Open(error.into()))?;
    let block = serve::disk_over(&local, &place.located, "")?
        .block_size()
        .into();
    let state = StateDir::new(&args.state_dir.state_dir);
    let wanted = Wanted {
        server,
        volume,
        image: &image.0,
        brick,
        state: &state,
        lock_timeout: Duration::from(args.lock_timeout),
    };
    let insist = Insist {
        away: args.force,
        overcommit: args.overcommit,
    };
    let session = MaintenanceSession::open(&wanted, stop.flag())?;
    let resized = session.grow(args.size, block, insist);
    session.close();
    let resized = resized.map_err(|error| kept(name, chain(&error)))?;
    println!("{name}: {resized}");
    Ok(())
}

fn kept(name: &str, why: String) -> Failure {
    Failure::NotResized {
        image: name.to_owned(),
        why,
    }
}
