//! `bypass-blk migrate`: moves a running guest to another host, its disk being copies of
//! one image there and here. `qemu/migrate` is this command.
//!
//! What is done in which order, and what came of it, is decided in [`story`]; how a host is
//! looked at is in [`look`], QEMU's machine protocol in [`qmp`]. This file is the command
//! line, and the story's world as it is. It touches no image: `handover` does.

mod look;
mod qmp;
mod story;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::arguments::{LogArgs, RunDirArgs};
use super::handover::{HandoverArgs, Prepared};
use crate::daemon::failure::Failure;
use crate::daemon::logging;
use crate::daemon::shutdown::Stop;
use crate::daemon::target::Target;
use look::Remote;
use story::{Outcome, Plan, Seen, World};

pub use look::LookArgs;
pub(super) use look::run as run_look;

/// Arguments of `migrate`.
#[derive(Args, Debug)]
#[command(
    after_help = "Run it as root on the source's host. On the target's host must wait already:\n  \
bypass-blk serve --incoming --lock-timeout 60s --volume … --image … --socket-path S\n  \
qemu/attach --socket S --memory (the same) -- (the same) -qmp unix:/run/vm1.qmp,server=on,wait=off -incoming tcp:0:4444\n\n\
Ends with 0: it moved. 74: not begun, the copy cannot be brought up to date. 3: it failed and the guest goes on here. \
4: nobody can say from here where it is; what to do is printed, and in docs/migration.md. 2: something is not as it must \
be; nothing was done.\n\n\
At 3 a.m.: never `cont` a QEMU by hand before you know who holds the image (bypass-blk status VOLUME/IMAGE on any host). \
One daemon holds it at any moment; a guest whose daemon does not is stuck, not wrong."
)]
pub struct MigrateArgs {
    /// The image, as in `bypass-blk status`
    #[arg(long, value_name = "VOLUME/IMAGE")]
    image: Target,

    /// The host of the target's copy, as `bypass-blk status` names it
    #[arg(long, value_name = "HOST")]
    to: String,

    /// Where the target's QEMU waits, for QEMU, such as tcp:gfs2:4444
    #[arg(long, value_name = "URI")]
    uri: String,

    /// The source QEMU's QMP socket; nobody else may be connected to it
    #[arg(long, value_name = "PATH")]
    qmp: PathBuf,

    /// The target QEMU's QMP socket, on its host (default: as --qmp)
    #[arg(long, value_name = "PATH")]
    target_qmp: Option<PathBuf>,

    /// What runs a command on the target's host (default: ssh HOST)
    #[arg(long, value_name = "COMMAND")]
    remote: Option<String>,

    /// How long the guest may stand still for its disk
    #[arg(long, value_name = "TIME", default_value = "1s")]
    max_downtime: humantime::Duration,

    /// How long for the rest of its memory: QEMU's downtime-limit
    #[arg(long, value_name = "MS", default_value_t = 300)]
    memory_downtime: u64,

    /// Give up after so long, and cancel
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,

    /// Do not end the source's QEMU when the guest has moved
    #[arg(long)]
    keep: bool,

    /// bypass-blk on the target's host (default: found by name)
    #[arg(long, value_name = "PATH", default_value = "bypass-blk")]
    program: String,

    /// The target's folder of control sockets (default: as this command's own default)
    #[arg(long, value_name = "DIR")]
    target_run_dir: Option<PathBuf>,

    #[command(flatten)]
    run_dir: RunDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: MigrateArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level.min(log::LevelFilter::Warn));
    let plan = Plan {
        image: format!("{}{}", args.image.volume, args.image.image.0),
        to: args.to.clone(),
        uri: args.uri.clone(),
        memory_downtime: args.memory_downtime,
        timeout: Duration::from_secs(args.timeout),
        keep: args.keep,
    };
    let mut world = Real {
        begin: Instant::now(),
        stop: Stop::on_signals()?,
        there: Remote::new(&args),
        args,
        prepared: None,
    };
    let outcome = story::migrate(&mut world, &plan);
    if let Some(prepared) = world.prepared.take() {
        prepared.end();
    }
    let outcome = outcome?;
    println!("{}", outcome.verdict(&plan));
    match outcome {
        Outcome::Moved { .. } => Ok(()),
        Outcome::Stays { why } => Err(Failure::NotMoved {
            image: plan.image,
            why,
        }),
        Outcome::Unclear { why } => Err(Failure::MovedUnclear {
            image: plan.image,
            why,
        }),
    }
}

struct Real {
    begin: Instant,
    stop: Arc<Stop>,
    there: Remote,
    args: MigrateArgs,
    /// From when the image is ready to be given away.
    prepared: Option<Prepared>,
}

impl World for Real {
    fn here(&mut self) -> Seen {
        look::look(&self.args.run_dir.run_dir, &self.args.image, &self.args.qmp)
    }

    fn there(&mut self) -> Seen {
        self.there.look()
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        qmp::ask(&self.args.qmp, command, arguments).map_err(|error| error.to_string())
    }

    fn hand_over(&mut self) -> Result<(), Failure> {
        let MigrateArgs {
            image,
            max_downtime,
            to,
            run_dir,
            ..
        } = &self.args;
        let args = HandoverArgs::of_migration(image, *max_downtime, to, run_dir);
        self.prepared = Some(Prepared::new(&args, &self.stop)?);
        Ok(())
    }

    fn keep(&mut self) -> Result<(), String> {
        match &self.prepared {
            Some(prepared) => prepared.keep().map_err(|why| why.to_string()),
            None => Ok(()),
        }
    }

    fn tell(&mut self, line: &str) {
        println!("{line}");
    }

    fn pause(&mut self, time: Duration) {
        match self.stop.is_requested() {
            // Waiting for the wish would not wait any more.
            true => std::thread::sleep(time),
            false => self.stop.wait(time),
        }
    }

    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    fn interrupted(&self) -> bool {
        self.stop.is_requested()
    }
}
