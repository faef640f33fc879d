//! `bypass-blk status`: the images served on this host, or one image anywhere.

use std::io::Write;

use clap::Args;

use crate::control::status::Status;
use crate::control::{render, socket};
use crate::gluster::Timeouts;

use super::brick_view::BrickView;
use super::{Failure, LogArgs, RunDirArgs, ServerArgs, Target, logging};

/// Arguments of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The image to look at: asked from its daemon when it is served on this
    /// host, else read from its bricks. Without it: every image served here
    #[arg(value_name = "VOLUME/IMAGE")]
    target: Option<Target>,

    /// Print the JSON document (described in docs/status.md): an array of images
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    run_dir: RunDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: StatusArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level.min(log::LevelFilter::Warn));
    let served = served_here(&args.run_dir.run_dir)?;
    let report = match &args.target {
        None => served,
        Some(target) => {
            let is_target =
                |status: &Status| status.volume == target.volume && status.image == target.image.0;
            match served.into_iter().find(is_target) {
                Some(status) => vec![status],
                None => vec![from_bricks(&args.server, target)?],
            }
        }
    };
    print(&report, args.json).map_err(|source| Failure::System {
        what: "print the status",
        source,
    })
}

/// The daemons of this host; one that does not answer is told and left out.
fn served_here(run_dir: &std::path::Path) -> Result<Vec<Status>, Failure> {
    let mut served = Vec::new();
    for path in socket::list(run_dir)? {
        if socket::is_dead(&path) {
            continue;
        }
        match socket::status(&path) {
            Ok(status) => served.push(status),
            Err(error) => log::warn!("{}", crate::image::error::chain(&error)),
        }
    }
    Ok(served)
}

fn from_bricks(server: &ServerArgs, target: &Target) -> Result<Status, Failure> {
    let mut view = BrickView::load(&server.server, target, Timeouts::default())?;
    let holder = view.holder();
    let copies = view.copies();
    Ok(Status::of_bricks(&view.identity(), copies, holder.as_ref()))
}

fn print(report: &[Status], json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        return writeln!(out);
    }
    if report.is_empty() {
        return writeln!(out, "no image is served on this host");
    }
    for status in report {
        write!(out, "{}", render::status(status))?;
    }
    Ok(())
}
