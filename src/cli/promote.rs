//! `bypass-blk promote`: makes this host's stale copy the fresh one, when the host with
//! the newer data is gone for good.

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;

use crate::daemon::failure::Failure;
use crate::daemon::logging;
use crate::daemon::promote::Candidate;
use crate::daemon::session_setup::{self, Place};
use crate::daemon::target::Target;
use crate::image::layout::FileIndex;
use crate::image::locate::Allowed;
use crate::image::replica::promotion::{ImagePlan, Plan};
use crate::image::state_dir::StateDir;

use super::arguments::{LogArgs, ServerArgs, StateDirArgs};

/// Arguments of `promote`.
#[derive(Args, Debug)]
pub struct PromoteArgs {
    /// The image whose copy on this host becomes the fresh one
    #[arg(value_name = "VOLUME/IMAGE")]
    target: Target,

    /// Yes: what only the lost copy had is given up
    #[arg(long, required = true)]
    accept_loss: bool,

    /// The image's name once more, instead of being asked for it
    #[arg(long, value_name = "VOLUME/IMAGE")]
    confirm: Option<String>,

    /// Which copy: this host's brick, as `gluster volume info` names it
    #[arg(long, value_name = "HOST:/PATH")]
    brick: Option<String>,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    state_dir: StateDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: PromoteArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level);
    let Target { volume, image } = &args.target;
    let brick = args.brick.as_deref();
    let server = &args.server.server;
    let place = session_setup::find(server, volume, &image.0, brick, Allowed::All, false)?;
    let names = place.located.names();
    let mut candidate = Candidate::lock(place)?;
    let plan = candidate.plan()?;
    println!("{}", loss(candidate.place(), &plan));
    confirm(&args, &args.target.to_string())?;
    let promoted = candidate.promote(&StateDir::new(&args.state_dir.state_dir))?;
    let promoted = promoted.all;
    println!(
        "{} is the fresh copy now. Serve the image from here; {} healed from it when reached.",
        names.one(candidate.place().local),
        match promoted.stale.is_empty() {
            true => format!("{} is", names.list(promoted.lost)),
            false => format!(
                "{} and {} are",
                names.list(promoted.stale),
                names.list(promoted.lost)
            ),
        }
    );
    Ok(())
}

/// All that is known of what is given up.
fn loss(place: &Place, plan: &ImagePlan) -> String {
    let names = place.located.names();
    let (local, layout) = (place.local_place(), place.located.layout());
    let changed = |(file, _): &(FileIndex, Plan)| {
        let path = local.file(*file);
        std::fs::metadata(&path).and_then(|meta| meta.modified())
    };
    // Of several files each got its last data at a time of its own.
    let changed = plan
        .files
        .iter()
        .map(changed)
        .collect::<Result<Vec<_>, _>>();
    let changed = changed.map(|times| times.into_iter().min().unwrap_or(std::time::UNIX_EPOCH));
    let bytes = plan.files.iter().map(|(file, _)| {
        let range = layout.range(*file);
        range.end - range.start
    });
    let what = match layout.is_whole() {
        true => "misses data".to_owned(),
        false => {
            let shards = plan.files.iter().map(|(file, _)| file.0.to_string());
            format!(
                "misses data of the shards {}",
                shards.collect::<Vec<_>>().join(" ")
            )
        }
    };
    let since = match changed {
        Ok(time) => format!("{}", humantime::format_rfc3339_seconds(time)),
        Err(error) => format!("(unknown: {error})"),
    };
    format!(
        "{volume}{image}: the copy on {here} {what}: {accusers} say so.\n\
         Not reached: {lost}. Only there is the newest data.\n\
         Known to be lost: whatever was written after this copy last received data, {since}. \
         How much that is, only {lost} knew: at least one write, at most {size} bytes of the image.\n\
         If that host ever writes again to its copy, this is lost too when it comes back.\n\
         Unless the image was clean, this copy is a mixture of old and new: it was being healed in the \
         disk's order. Check the guest's file systems before you trust it.",
        volume = names.volume,
        image = place.located.image,
        here = names.one(place.local),
        accusers = names.list(plan.all.accusers),
        lost = names.list(plan.all.lost),
        size = bytes.sum::<u64>(),
    )
}

fn confirm(args: &PromoteArgs, name: &str) -> Result<(), Failure> {
    let typed = match &args.confirm {
        Some(typed) => typed.clone(),
        None if !std::io::stdin().is_terminal() => {
            return Err(Failure::Usage(
                "not on a terminal: give --confirm VOLUME/IMAGE".to_owned(),
            ));
        }
        None => ask_for_name()?,
    };
    if typed.trim() == name {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "{:?} is not the image's name, {name:?}: nothing was changed",
        typed.trim()
    )))
}

fn ask_for_name() -> Result<String, Failure> {
    let failed = |source| Failure::System {
        what: "ask for the image's name",
        source,
    };
    print!("Type the image's name (VOLUME/IMAGE) to give that up: ");
    std::io::stdout().flush().map_err(failed)?;
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(failed)?;
    Ok(line)
}
