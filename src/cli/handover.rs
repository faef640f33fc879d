//! `bypass-blk handover`: makes an image that is served here ready for a live
//! migration. The copies are brought together while the guest runs; then the daemon is
//! told to give the image away when its rings stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use clap::Args;

use crate::control::remote::RemoteSession;
use crate::control::serving_status::{OwnershipStatus, QueueStatus};
use crate::control::socket::{self, Answer, ControlError, FORCED, Request};
use crate::control::status::Status;
use crate::daemon::failure::Failure;
use crate::daemon::heald::{self, rate::Rate};
use crate::daemon::logging;
use crate::daemon::shutdown::Stop;
use crate::daemon::target::Target;
use crate::image::brick_client::heal_copies;
use crate::image::error_chain::chain;
use crate::image::heal::{FollowOptions, Follower};

use super::arguments::{LogArgs, RunDirArgs};
use super::handover_verdict::{FIXED, HandoverProgress, HandoverVerdict};

/// How often it looks how far it is.
const ROUND: Duration = Duration::from_millis(100);
/// How often it says so.
const TELL: Duration = Duration::from_secs(5);

/// What is so when the daemon has not got the image.
const NOT_HELD: &str = "this daemon does not hold it: it is given away, and taken again when a guest's rings start \
here. `bypass-blk status VOLUME/IMAGE` says who holds it now";

/// The image is to stay here.
const DISARM: Request = Request::HandOver {
    armed: false,
    to: None,
    no_guest: false,
};

/// Arguments of `handover`.
#[derive(Args, Debug)]
#[command(
    after_help = "Call it on the source's host, then `migrate` in QEMU (libvirt: before virsh migrate). The target's daemon \
runs with serve --incoming. Ends with 0 when the daemon is ready; with 74, and the reason, when it cannot be: the guest \
goes on unharmed. See docs/migration.md"
)]
pub struct HandoverArgs {
    /// The image to give away
    #[arg(value_name = "VOLUME/IMAGE")]
    target: Target,

    /// How long the guest may stand still for its disk
    #[arg(long, value_name = "TIME", default_value = "1s")]
    max_downtime: humantime::Duration,

    /// The host that takes it, or its brick, as `bypass-blk status` names it. Then the image
    /// is given away only when that copy is there and equal; without it, copies of bricks
    /// that are away are not waited for
    #[arg(long, value_name = "HOST[:/PATH]")]
    to: Option<String>,

    /// Stay until the image was given away. Without heald on this host, this command
    /// does the copying, and stays in any case
    #[arg(long)]
    wait: bool,

    /// No guest of this host uses the image or comes back to it: it is at the target already,
    /// and this daemon was only started again to send what is missing there. The image is
    /// given away at once, though a QEMU that was left behind may be connected
    #[arg(long)]
    no_guest: bool,

    /// Do not give the image away after all
    #[arg(long, conflicts_with_all = ["wait", "no_guest"])]
    cancel: bool,

    /// Copy at most so many bytes per second, such as 100M, where heald does not run
    #[arg(long, value_name = "RATE", default_value = "unlimited")]
    bandwidth: Rate,

    #[command(flatten)]
    run_dir: RunDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

impl HandoverArgs {
    /// For `migrate`.
    pub(super) fn of_migration(
        target: &Target,
        max_downtime: humantime::Duration,
        to: &str,
        run_dir: &RunDirArgs,
    ) -> Self {
        Self {
            target: target.clone(),
            max_downtime,
            to: Some(to.to_owned()),
            wait: false,
            no_guest: false,
            cancel: false,
            bandwidth: Rate(0),
            run_dir: run_dir.clone(),
            log: LogArgs {
                log_level: log::LevelFilter::Warn,
            },
        }
    }
}

pub(super) fn run(args: HandoverArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level.min(log::LevelFilter::Warn));
    if args.cancel {
        let image = HandoverImage::find(&args)?;
        image.keep()?;
        println!("{}: stays here", image.name);
        return Ok(());
    }
    let stop = Stop::on_signals()?;
    let prepared = Prepared::new(&args, &stop)?;
    let outcome = match prepared.armed && (args.wait || prepared.follower.is_some()) {
        true => prepared.image.wait(&stop),
        false => Ok(()),
    };
    prepared.end();
    outcome
}

/// An image that is ready to be given away, or has been. Where no healer of this host
/// does it, what the copies miss is sent as long as this is there.
pub(super) struct Prepared {
    image: HandoverImage,
    follower: Option<Follower>,
    /// It goes when the rings stop; else it is given away already.
    armed: bool,
}

impl Prepared {
    /// Brings the copies together and has the daemon give the image away when the rings
    /// stop.
    ///
    /// # Errors
    /// Why not; the image stays here.
    pub fn new(args: &HandoverArgs, stop: &Stop) -> Result<Self, Failure> {
        let image = HandoverImage::find(args)?;
        let follower = image.follower(args)?;
        let armed = image.hand_over(args, stop);
        let mut prepared = Self {
            image,
            follower,
            armed: false,
        };
        match armed {
            Ok(armed) => {
                prepared.armed = armed;
                Ok(prepared)
            }
            Err(why) => {
                prepared.end();
                Err(why)
            }
        }
    }

    /// The image is not given away after all.
    ///
    /// # Errors
    /// It is not held here any more.
    pub fn keep(&self) -> Result<(), Failure> {
        self.image.keep()
    }

    /// Sends no more.
    pub fn end(self) {
        if let Some(Err(error)) = self.follower.map(Follower::stop) {
            log::warn!("{}", chain(&error));
        }
    }
}

/// The image, and the daemon that serves it.
struct HandoverImage {
    name: String,
    socket: PathBuf,
}

impl HandoverImage {
    fn find(args: &HandoverArgs) -> Result<Self, Failure> {
        let Target { volume, image } = &args.target;
        let name = args.target.to_string();
        let run_dir = &args.run_dir.run_dir;
        let socket = socket::find(run_dir, volume, &image.0, |status| status.serving.is_some())?;
        match socket {
            Some(socket) => Ok(Self { name, socket }),
            None => Err(Failure::NotHandedOver {
                image: name,
                why: "no daemon of this host serves it".to_owned(),
            }),
        }
    }

    fn status(&self) -> Result<Status, Failure> {
        Ok(socket::status(&self.socket)?)
    }

    /// Once it is known whether the daemon gets the image that its rings have asked for.
    fn first_status(&self, stop: &Stop) -> Result<Status, Failure> {
        loop {
            let status = self.status()?;
            if ownership(&status) != OwnershipStatus::Opening || stop.is_requested() {
                return Ok(status);
            }
            stop.wait(ROUND);
        }
    }

    /// Copies, unless another healer does: one that has reported, or `heald` of this
    /// host, which finds a session soon after it was opened and is to be waited for.
    fn follower(&self, args: &HandoverArgs) -> Result<Option<Follower>, Failure> {
        let status = self.status()?;
        let heald = heald::socket_path(&args.run_dir.run_dir);
        if ownership(&status) == OwnershipStatus::Vacant
            || status.heal.is_none_or(|heal| heal.healer.is_some())
            || !socket::is_gone(&heald)
        {
            return Ok(None);
        }
        let options = FollowOptions {
            bandwidth: Arc::new(AtomicU64::new(args.bandwidth.0)),
            ..FollowOptions::default()
        };
        let link = Arc::new(RemoteSession::new(&self.socket));
        Follower::start(link, &options, heal_copies::of_volume)
            .map(Some)
            .map_err(Failure::NotHealed)
    }

    /// Whether it is to be given away when the rings stop; else it is already.
    fn hand_over(&self, args: &HandoverArgs, stop: &Stop) -> Result<bool, Failure> {
        let begin = Instant::now();
        if *args.max_downtime < FIXED {
            return Err(self.failed(&format!(
                "with nothing left to copy the guest stands still for some {} ms, and {} are allowed. \
                 Give a longer --max-downtime",
                FIXED.as_millis(),
                args.max_downtime
            )));
        }
        let first = self.first_status(stop)?;
        if ownership(&first) == OwnershipStatus::Vacant {
            // It knows no copies then.
            return Ok(self.is_away());
        }
        let to = match &args.to {
            Some(to) => Some(self.copy(&first, to)?),
            None => None,
        };
        let mut watch = HandoverProgress::new(args.max_downtime.into(), to);
        let mut told = Instant::now();
        let mut forced = None;
        loop {
            if forced.is_none_or(|at: Instant| at.elapsed() > FORCED / 3) {
                forced = Some(Instant::now());
                self.force();
            }
            let status = self.status()?;
            match ownership(&status) {
                OwnershipStatus::Vacant => return Ok(self.is_away()),
                OwnershipStatus::Ended => return Err(self.failed("the session has stopped")),
                _ => {}
            }
            match watch.look(&status, begin.elapsed()) {
                HandoverVerdict::Ready(downtime) => {
                    if args.no_guest && answered(&status) != answered(&first) {
                        return Err(self.failed(
                            "a guest of this host uses the image, and --no-guest says that there is none",
                        ));
                    }
                    let ownership = self.ownership_after(Request::HandOver {
                        armed: true,
                        to,
                        no_guest: args.no_guest,
                    })?;
                    self.warn_of_absent(&status);
                    if ownership != OwnershipStatus::Armed {
                        // No ring runs, or none that counts.
                        return self.wait(stop).map(|()| false);
                    }
                    self.tell_ready(downtime, &status);
                    return Ok(true);
                }
                HandoverVerdict::TooLong(downtime) => {
                    return Err(self.failed(&format!(
                        "the guest writes as fast as is copied: it would stand still for {} ms, and {} are allowed. \
                         Give a longer --max-downtime, or more bandwidth",
                        downtime.as_millis(),
                        args.max_downtime
                    )));
                }
                HandoverVerdict::Hopeless(why) => return Err(self.failed(&why)),
                HandoverVerdict::GoOn => {}
            }
            if stop.is_requested() {
                return Err(self.failed("interrupted"));
            }
            if told.elapsed() >= TELL {
                eprintln!("{}: copying what the others miss", self.name);
                told = Instant::now();
            }
            stop.wait(ROUND);
        }
    }

    fn tell_ready(&self, downtime: Duration, status: &Status) {
        println!(
            "{}: ready, the guest will stand still for about {} ms. Migrate it now",
            self.name,
            downtime.as_millis()
        );
        if answered(status) == 0 {
            eprintln!(
                "{}: no guest has asked for anything since this daemon was started. If it has gone to the other host \
                 already, a QEMU that it left behind is connected here: end it, or say --no-guest",
                self.name
            );
        }
    }

    /// There is nothing to give away.
    fn is_away(&self) -> bool {
        println!("{}: {NOT_HELD}", self.name);
        false
    }

    /// The image is not given away after all, if it is still here.
    fn keep(&self) -> Result<(), Failure> {
        match self.ownership_after(DISARM)? {
            OwnershipStatus::Held => Ok(()),
            _ => Err(self.failed(NOT_HELD)),
        }
    }

    /// Until the image is another's, or stays here after all.
    fn wait(&self, stop: &Stop) -> Result<(), Failure> {
        loop {
            match ownership(&self.status()?) {
                OwnershipStatus::Vacant => {
                    println!("{}: given away", self.name);
                    return Ok(());
                }
                OwnershipStatus::Held => return Err(self.failed("the guest goes on here")),
                OwnershipStatus::Ended => return Err(self.failed("the session has stopped")),
                _ if stop.is_requested() => {
                    self.keep()?;
                    return Err(self.failed("interrupted: it stays here"));
                }
                _ => stop.wait(ROUND),
            }
        }
    }

    /// Healing does not hold back for the guest as long as this is said.
    fn force(&self) {
        // It takes longer without.
        if let Err(error) = self.ask(Request::Force) {
            log::warn!("{}: is not healed faster: {}", self.name, chain(&error));
        }
    }

    /// The child index of the copy of this host or brick.
    fn copy(&self, status: &Status, to: &str) -> Result<usize, Failure> {
        let is_it =
            |brick: &str| brick == to || brick.split_once(":/").is_some_and(|(host, _)| host == to);
        let mut copies = status.copies.iter().enumerate();
        match copies.find(|(_, copy)| is_it(&copy.brick)) {
            Some((_, copy)) if copy.local => Err(self.failed(&format!("{to} is where it is now"))),
            Some((_, copy)) if copy.arbiter => Err(self.failed(&format!("{to} has an arbiter"))),
            Some((child, _)) => Ok(child),
            None => Err(self.failed(&format!("no copy is on {to}: see bypass-blk status"))),
        }
    }

    /// They are given away as they are: marked.
    fn warn_of_absent(&self, status: &Status) {
        for copy in status.copies.iter().filter(|copy| !copy.reachable) {
            eprintln!(
                "{}: {} is away, its copy stays behind",
                self.name, copy.brick
            );
        }
    }

    /// Whose the image is once this was asked.
    fn ownership_after(&self, request: Request) -> Result<OwnershipStatus, Failure> {
        match self.ask(request)? {
            Answer::Ownership { ownership } => Ok(ownership),
            other => Err(ControlError::unexpected(&self.socket, &other).into()),
        }
    }

    fn ask(&self, request: Request) -> Result<Answer, Failure> {
        match socket::ask(&self.socket, &request) {
            Err(ControlError::Refused { why, .. } | ControlError::Ended { why, .. }) => {
                Err(self.failed(&why))
            }
            other => Ok(other?),
        }
    }

    fn failed(&self, why: &str) -> Failure {
        Failure::NotHandedOver {
            image: self.name.clone(),
            why: why.to_owned(),
        }
    }
}

/// How many requests were answered since the daemon was started.
fn answered(status: &Status) -> u64 {
    let queues = status.serving.iter().flat_map(|serving| &serving.queues);
    let all =
        |q: &QueueStatus| q.reads + q.writes + q.flushes + q.discards + q.write_zeroes + q.errors;
    queues.map(all).sum()
}

fn ownership(status: &Status) -> OwnershipStatus {
    let serving = status.serving.as_ref();
    serving.map_or(OwnershipStatus::Ended, |serving| serving.ownership)
}
