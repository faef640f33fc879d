//! `bypass-blk heal`: heals one image in the foreground, with or without `heald`,
//! served or not.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::control::remote::RemoteSession;
use crate::control::socket::{self, ControlSocket};
use crate::control::status::Status;
use crate::daemon::failure::Failure;
use crate::daemon::heald::rate::Rate;
use crate::daemon::maintenance_session::{MaintenanceSession, Wanted};
use crate::daemon::shutdown::Stop;
use crate::daemon::target::Target;
use crate::daemon::{logging, open_files};
use crate::image::brick_client::heal_copies;
use crate::image::error_chain::chain;
use crate::image::heal::{Figures, FollowOptions, Follower, SessionLink};
use crate::image::state_dir::StateDir;

use super::arguments::{LogArgs, RunDirArgs, ServerArgs, StateDirArgs};
use super::heal_verdict::{HealProgress, HealVerdict, moved};

/// How often it looks how far it is.
const ROUND: Duration = Duration::from_millis(200);
/// How often it says so where there is no terminal.
const TELL: Duration = Duration::from_secs(10);

/// Arguments of `heal`.
#[derive(Args, Debug)]
#[command(
    after_help = "Ends with 0 when all copies are equal and no mark is left; with 70, and the reason, when everything \
that could be sent was sent and the image is still not clean"
)]
pub struct HealArgs {
    /// The image to heal
    #[arg(value_name = "VOLUME/IMAGE")]
    target: Target,

    /// Go on until the image is clean: wait for bricks that are away, and for the guest
    /// to pause
    #[arg(long)]
    wait: bool,

    /// Copy at most so many bytes per second, such as 100M. Not for an image that heald
    /// heals already: see `bypass-blk bandwidth`
    #[arg(long, value_name = "RATE", default_value = "unlimited")]
    bandwidth: Rate,

    /// Which copy to heal from, when the image is not served: this host's brick, as
    /// `gluster volume info` names it
    #[arg(long, value_name = "HOST:/PATH")]
    brick: Option<String>,

    /// How long to wait for an image that is locked or being healed by Gluster
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

pub(super) fn run(args: HealArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level.min(log::LevelFilter::Warn));
    open_files::allow_all();
    let stop = Stop::on_signals()?;
    let image = open(&args, &stop)?;
    let mut follower = image.healer(&args)?;
    let outcome = watch(&args, &image, &mut follower, &stop);
    if let Some(Err(error)) = follower.map(Follower::stop) {
        log::warn!("{}", chain(&error));
    }
    image.close();
    outcome
}

/// The image's session.
enum HealedImage {
    /// Somebody's on this host, by its control socket.
    Served(PathBuf),
    /// Our own.
    Own {
        session: Box<MaintenanceSession>,
        /// For status requests, and whoever wants to serve it.
        control: ControlSocket,
        give_way: Arc<AtomicBool>,
    },
}

fn open(args: &HealArgs, stop: &Stop) -> Result<HealedImage, Failure> {
    if let Some(socket) = served(args)? {
        return Ok(HealedImage::Served(socket));
    }
    let state = StateDir::new(&args.state_dir.state_dir);
    let wanted = Wanted {
        server: &args.server.server,
        volume: &args.target.volume,
        image: &args.target.image.0,
        brick: args.brick.as_deref(),
        state: &state,
        lock_timeout: Duration::from(args.lock_timeout),
    };
    let session = MaintenanceSession::open(&wanted, stop.flag())?;
    let give_way = Arc::new(AtomicBool::new(false));
    let control = session.listen(&args.run_dir.run_dir, give_way.clone())?;
    Ok(HealedImage::Own {
        session: Box::new(session),
        control,
        give_way,
    })
}

/// The control socket of the session that has the image on this host.
fn served(args: &HealArgs) -> Result<Option<PathBuf>, Failure> {
    let Target { volume, image } = &args.target;
    let run_dir = &args.run_dir.run_dir;
    Ok(socket::find(run_dir, volume, &image.0, |status| {
        status.heal.is_some()
    })?)
}

impl HealedImage {
    fn status(&self) -> Result<Status, Failure> {
        match self {
            Self::Served(socket) => Ok(socket::status(socket)?),
            Self::Own { session, .. } => Ok(session.status()),
        }
    }

    /// Somebody wants to serve the image.
    fn is_wanted_elsewhere(&self) -> bool {
        match self {
            Self::Served(_) => false,
            Self::Own { give_way, .. } => give_way.load(std::sync::atomic::Ordering::SeqCst),
        }
    }

    /// Heals, unless another healer does.
    fn healer(&self, args: &HealArgs) -> Result<Option<Follower>, Failure> {
        if has_healer(&self.status()?) {
            return Ok(None);
        }
        let link: Arc<dyn SessionLink> = match self {
            Self::Served(socket) => Arc::new(RemoteSession::new(socket)),
            Self::Own { session, .. } => session.link(),
        };
        let options = FollowOptions {
            bandwidth: Arc::new(AtomicU64::new(args.bandwidth.0)),
            ..FollowOptions::default()
        };
        match Follower::start(link, &options, heal_copies::of_volume) {
            Ok(follower) => Ok(Some(follower)),
            // A healer that has just begun has not reported yet.
            Err(_) if matches!(self, Self::Served(_)) && self.is_healed_soon() => Ok(None),
            Err(error) => Err(Failure::NotHealed(error)),
        }
    }

    fn is_healed_soon(&self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(3) {
            if self.status().is_ok_and(|status| has_healer(&status)) {
                return true;
            }
            std::thread::sleep(ROUND);
        }
        false
    }

    fn close(self) {
        if let Self::Own {
            session, control, ..
        } = self
        {
            session.close();
            drop(control);
        }
    }
}

/// Is a healer at work, as far as the session knows?
fn has_healer(status: &Status) -> bool {
    let heal = status.heal.as_ref();
    heal.is_some_and(|heal| heal.healer.is_some())
}

/// Shows how far it is until it is over.
fn watch(
    args: &HealArgs,
    image: &HealedImage,
    follower: &mut Option<Follower>,
    stop: &Stop,
) -> Result<(), Failure> {
    let name = format!("{}{}", args.target.volume, args.target.image.0);
    let begin = Instant::now();
    let first = image.status()?;
    let before = moved(&first);
    let display = Display::new();
    let mut watch = HealProgress::new(args.wait);
    let mut told = Instant::now();
    loop {
        let status = image.status()?;
        display.show(&status);
        if follower.as_ref().is_some_and(Follower::is_over) {
            // As when the image was resized.
            *follower = None;
        }
        if follower.is_none() && !has_healer(&status) {
            // The healer that was at work when we began has ended.
            *follower = image.healer(args)?;
        }
        match watch.look(&status, begin.elapsed()) {
            HealVerdict::GoOn => {}
            HealVerdict::Clean => {
                display.end();
                println!(
                    "{name}: {}",
                    summary(before, moved(&status), begin.elapsed())
                );
                return Ok(());
            }
            HealVerdict::NotClean(why) => {
                display.end();
                return Err(Failure::NotClean { image: name, why });
            }
        }
        let interrupted = match (stop.is_requested(), image.is_wanted_elsewhere()) {
            (true, _) => Some("interrupted"),
            (_, true) => Some("given up to a daemon that serves the image"),
            _ => None,
        };
        if let Some(why) = interrupted {
            display.end();
            let why = why.to_owned();
            return Err(Failure::NotClean { image: name, why });
        }
        if display.is_silent() && told.elapsed() >= TELL {
            eprintln!("{name}: {}", line(&status));
            told = Instant::now();
        }
        stop.wait(ROUND);
    }
}

fn summary(before: Figures, after: Figures, took: Duration) -> String {
    let bytes = |count: fn(&Figures) -> u64| {
        indicatif::BinaryBytes(count(&after).saturating_sub(count(&before)))
    };
    format!(
        "clean: all copies are equal. Sent {}, zeroed {}, compared {} in {}",
        bytes(|f| f.bytes_sent),
        bytes(|f| f.bytes_zeroed),
        bytes(|f| f.bytes_compared),
        humantime::format_duration(Duration::from_millis(
            u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
        )),
    )
}

/// How far it is, in one line.
fn line(status: &Status) -> String {
    let Some(heal) = &status.heal else {
        return "unknown".to_owned();
    };
    let eta = match heal.eta_seconds {
        Some(0) | None => String::new(),
        Some(seconds) => format!(
            ", {} left",
            indicatif::HumanDuration(Duration::from_secs(seconds))
        ),
    };
    format!(
        "{} behind, {}/s{eta}",
        indicatif::BinaryBytes(behind(status)),
        indicatif::BinaryBytes(heal.rate.unwrap_or(0)),
    )
}

fn behind(status: &Status) -> u64 {
    let copies = status.copies.iter().filter_map(|copy| copy.behind);
    copies.map(|behind| behind.bytes).sum()
}

/// A progress bar, on a terminal only.
struct Display(Option<ProgressBar>);

impl Display {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let style = ProgressStyle::with_template("{bar:40} {percent:>3}%  {msg}");
        let bar = ProgressBar::new(0);
        // The template is a constant that is right; a plain bar would do as well.
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(Some(bar))
    }

    fn is_silent(&self) -> bool {
        self.0.is_none()
    }

    fn show(&self, status: &Status) {
        let Some(bar) = &self.0 else { return };
        let peers = status.heal.iter().flat_map(|heal| &heal.peers);
        let most: u64 = peers.map(|peer| peer.most_behind_bytes).sum();
        bar.set_length(most);
        bar.set_position(most.saturating_sub(behind(status)));
        bar.set_message(line(status));
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
