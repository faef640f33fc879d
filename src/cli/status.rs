//! `bypass-blk status`: the images served on this host, or one image anywhere.

use std::time::Duration;

use clap::Args;

use crate::control::status::Status;
use crate::control::{render, socket};
use crate::gluster::Timeouts;

use super::brick_view::BrickView;
use super::{Failure, LogArgs, RunDirArgs, ServerArgs, Target, logging, watch};

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

    /// Show it again and again, every so many seconds (0.1 or more), until Ctrl-C: in
    /// place on a terminal; into a pipe one after the other, with --json one a line
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = watch::period
    )]
    watch: Option<Duration>,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    run_dir: RunDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: StatusArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level.min(log::LevelFilter::Warn));
    let next = |form| look(&args).and_then(|report| text(&report, form));
    match (args.watch, args.json) {
        (None, false) => watch::print(&next(Form::Screen)?),
        (None, true) => watch::print(&next(Form::Json)?),
        (Some(period), false) => watch::watch(period, true, "\n", || next(Form::Screen)),
        (Some(period), true) => watch::watch(period, false, "", || next(Form::JsonLine)),
    }
}

/// How a report is written.
#[derive(Clone, Copy)]
enum Form {
    /// For people.
    Screen,
    /// The document.
    Json,
    /// The document in one line.
    JsonLine,
}

fn look(args: &StatusArgs) -> Result<Vec<Status>, Failure> {
    let served = served_here(&args.run_dir.run_dir)?;
    let Some(target) = &args.target else {
        return Ok(served);
    };
    // A daemon that does not have its image now knows less than the bricks.
    let is_target = |status: &Status| {
        let held = status.holder.is_some();
        held && status.volume == target.volume && status.image == target.image.0
    };
    match served.into_iter().find(is_target) {
        Some(status) => Ok(vec![status]),
        None => Ok(vec![from_bricks(&args.server, target)?]),
    }
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

fn text(report: &[Status], form: Form) -> Result<String, Failure> {
    let document = match form {
        Form::Screen if report.is_empty() => {
            return Ok("no image is served on this host\n".to_owned());
        }
        Form::Screen => return Ok(report.iter().map(render::status).collect()),
        Form::Json => serde_json::to_string_pretty(report),
        Form::JsonLine => serde_json::to_string(report),
    };
    let document = document.map_err(|error| Failure::System {
        what: "write the document",
        source: error.into(),
    })?;
    Ok(document + "\n")
}
