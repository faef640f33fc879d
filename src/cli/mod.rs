//! The command line: one file per command, their exit codes in
//! [`failure`](crate::daemon::failure).
//!
//! Each command puts the other modules together; none decides anything about an
//! image by itself.

mod arguments;
mod bandwidth;
mod forget;
mod handover;
mod handover_verdict;
mod heal;
mod heal_verdict;
mod heald;
mod migrate;
mod promote;
mod release;
mod resize;
mod serve;
mod status;
mod verify;
mod verify_report;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::daemon::failure;
use crate::daemon::failure::Failure;

/// Serves virtual machines' disks straight from the local brick of a GlusterFS
/// replica volume, over vhost-user-blk.
#[derive(Debug, Parser)]
#[command(version, after_help = failure::TABLE, propagate_version = true)]
struct Cli {
    /// Print what this backend can do, as QEMU's vhost-user conventions want it,
    /// and exit.
    #[arg(long)]
    print_capabilities: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one image to QEMU (or another vhost-user front-end)
    Serve(Box<serve::ServeArgs>),
    /// Show the images served on this host, or one image of a volume
    Status(status::StatusArgs),
    /// Heal the images of this host: follow every session, finish what ended ones left.
    /// One per host, always running
    Heald(heald::HealdArgs),
    /// Heal one image now, in the foreground
    Heal(heal::HealArgs),
    /// Make an image that is served here ready for a live migration to another host
    Handover(handover::HandoverArgs),
    /// Move a running guest to another host, its disk being the copies of one image there
    /// and here
    Migrate(Box<migrate::MigrateArgs>),
    /// How it is with a guest and its image on this host, for `migrate` on another
    #[command(hide = true)]
    MigrateLook(migrate::LookArgs),
    /// Compare all copies of an image, also while it is served
    Verify(verify::VerifyArgs),
    /// Change the bandwidth limit of this host's healer
    Bandwidth(bandwidth::BandwidthArgs),
    /// Make this host's stale copy the fresh one, when the host with the newer data is
    /// gone for good
    Promote(promote::PromoteArgs),
    /// Make an image larger, also while it is served: the guest sees it at once
    Resize(resize::ResizeArgs),
    /// Lift the fence that a killed daemon left on an image: needed when mounts get
    /// "Device or resource busy" though nobody serves it. Refused while somebody does
    Release(release::ReleaseArgs),
    /// Forget what this host remembers of an image that is gone for good, so that heald
    /// does not try to finish it any more. Changes nothing in the volume
    Forget(forget::ForgetArgs),
}

/// Runs the program: parses the command line, runs the command, prints its
/// error and turns it into the exit code.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    if cli.print_capabilities {
        return serve::print_capabilities();
    }
    let done = match cli.command {
        Some(Command::Serve(args)) if args.print_capabilities => {
            return serve::print_capabilities();
        }
        Some(Command::Serve(args)) => serve::run(*args),
        Some(Command::Status(args)) => status::run(args),
        Some(Command::Heald(args)) => heald::run(args),
        Some(Command::Heal(args)) => heal::run(args),
        Some(Command::Handover(args)) => handover::run(args),
        Some(Command::Migrate(args)) => migrate::run(*args),
        Some(Command::MigrateLook(args)) => migrate::run_look(args),
        Some(Command::Verify(args)) => verify::run(args),
        Some(Command::Bandwidth(args)) => bandwidth::run(args),
        Some(Command::Promote(args)) => promote::run(args),
        Some(Command::Resize(args)) => resize::run(args),
        Some(Command::Release(args)) => release::run(args),
        Some(Command::Forget(args)) => forget::run(args),
        None => Err(Failure::Usage(
            "a command is missing: see bypass-blk --help".to_owned(),
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
