//! `bypass-blk bandwidth`: changes the limit of this host's healer while it works.

use clap::Args;

use crate::control::socket::{self, Request};
use crate::daemon::failure::Failure;
use crate::daemon::heald::{self, rate::Rate};

use super::arguments::RunDirArgs;

/// Arguments of `bandwidth`.
#[derive(Args, Debug)]
pub struct BandwidthArgs {
    /// Bytes per second of each image, to all other bricks together, such as 100M, or
    /// unlimited
    #[arg(value_name = "RATE")]
    rate: Rate,

    /// The limit of all images of this host together, instead of each one
    #[arg(long)]
    host: bool,

    #[command(flatten)]
    run_dir: RunDirArgs,
}

pub(super) fn run(args: BandwidthArgs) -> Result<(), Failure> {
    let request = Request::Bandwidth {
        bytes_per_second: args.rate.0,
        host: args.host,
    };
    let path = heald::socket_path(&args.run_dir.run_dir);
    if socket::is_gone(&path) {
        let path = path.display().to_string();
        return Err(Failure::NoHealer { path });
    }
    socket::ask(&path, &request)?;
    let of = if args.host { " of the host" } else { "" };
    println!("bandwidth limit{of}: {}", args.rate);
    Ok(())
}
