//! `bypass-blk heald`: its words; the healer is [`crate::daemon::heald`].

use clap::Args;

use crate::control::metrics::Endpoint;
use crate::daemon::failure::Failure;
use crate::daemon::heald::host_healer::{self, HealdOptions};
use crate::daemon::heald::rate::Rate;
use crate::daemon::{logging, open_files};

use super::arguments::{LogArgs, RunDirArgs, StateDirArgs};

/// Arguments of `heald`.
#[derive(Args, Debug)]
#[command(after_help = "Example: bypass-blk heald --bandwidth 200M --host-bandwidth 500M")]
pub struct HealdArgs {
    /// Copy at most so many bytes per second of each image, to all other bricks together,
    /// such as 100M or unlimited; `bypass-blk bandwidth` changes it later
    #[arg(long, value_name = "RATE", default_value = "unlimited")]
    bandwidth: Rate,

    /// The same for all images of this host together; `bypass-blk bandwidth --host`
    /// changes it later
    #[arg(long, value_name = "RATE", default_value = "unlimited")]
    host_bandwidth: Rate,

    /// Heal at most so many images at one time that nobody serves; the others wait for
    /// their turn. Images that are served are healed all the time
    #[arg(long, value_name = "COUNT", default_value = "2", value_parser = jobs)]
    jobs: usize,

    /// Give metrics of all images served on this host to Prometheus: unix:PATH answers
    /// HTTP on a unix socket, textfile:PATH.prom is for node_exporter's textfile collector
    #[arg(long, value_name = "WHERE")]
    metrics: Option<Endpoint>,

    #[command(flatten)]
    state_dir: StateDirArgs,

    #[command(flatten)]
    run_dir: RunDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=64) => Ok(jobs),
        _ => Err("expected a number from 1 to 64".to_owned()),
    }
}

pub(super) fn run(args: HealdArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level);
    open_files::allow_all();
    host_healer::run(HealdOptions {
        bandwidth: args.bandwidth,
        host_bandwidth: args.host_bandwidth,
        jobs: args.jobs,
        metrics: args.metrics,
        state_dir: args.state_dir.state_dir,
        run_dir: args.run_dir.run_dir,
    })
}
