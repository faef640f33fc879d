//! `bypass-blk verify`: compares all copies of an image, served or not.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::control::remote::RemoteSession;
use crate::control::render::bytes;
use crate::control::socket;
use crate::control::status::{State, Status};
use crate::daemon::brick_view::{host_name, lock_owner};
use crate::daemon::failure::Failure;
use crate::daemon::logging;
use crate::daemon::target::{GlusterdAddress, Target};
use crate::gluster::Timeouts;
use crate::image::brick_client::session_port::identity;
use crate::image::brick_client::shards;
use crate::image::brick_client::verify_brick::{GlusterBrick, Unheld};
use crate::image::error_chain::chain;
use crate::image::heal::LinkError;
use crate::image::locate::{Catalog, LocateError, Located};
use crate::image::replica::holder::Holder;
use crate::image::state_dir::{Entry, StateDir};
use crate::image::verify::{
    self, Repair, Report, Served, Situation, Subject, VerifyError, VerifyOptions, VerifyProgress,
};

use super::arguments::{LogArgs, RunDirArgs, ServerArgs, StateDirArgs};
use super::verify_report::{Subtitle, print};

/// How often the bar is drawn.
const DRAW: Duration = Duration::from_millis(100);

/// Arguments of `verify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Where the image is served on this host it is compared while the guest writes, with this \
host's copy as the truth. Anywhere else nobody may serve it: no session begins meanwhile, \
other clients go on. It reads every copy in full and changes nothing.\n\n\
Ends with 0 when all copies are equal, every byte of them; with 71 when copies differ where \
nothing says that they are behind; with 72 when none was found to differ, but not everything \
could be compared: a brick is away, a copy is behind, some bytes were busy all the time.")]
pub struct VerifyArgs {
    /// The image whose copies to compare
    #[arg(value_name = "VOLUME/IMAGE")]
    target: Target,

    /// Have what differs healed: OVERWRITTEN ON THE OTHER COPIES with this host's bytes,
    /// whichever are right. Only where the image is served on this host
    #[arg(long)]
    repair: bool,

    /// Print the outcome as a JSON document
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    run_dir: RunDirArgs,

    #[command(flatten)]
    state_dir: StateDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: VerifyArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level.min(log::LevelFilter::Warn));
    let options = VerifyOptions {
        stop: stop_flag()?,
        ..VerifyOptions::default()
    };
    let session = session_here(&args)?;
    let repair = match (&session, args.repair) {
        (Some(session), true) => Some(session as &dyn Repair),
        (None, true) => return Err(Failure::Usage(NOT_SERVED.to_owned())),
        (_, false) => None,
    };
    let served = match &session {
        Some(session) => Some(Served::attach(Box::new(session.clone()))?),
        None => None,
    };
    let server = match &served {
        Some(served) => GlusterdAddress {
            host: served.job().server.clone(),
            port: served.job().port,
        },
        None => args.server.server.clone(),
    };
    let (located, bricks) = connect(&server, &args.target, served.is_none())?;
    let subtitle = Subtitle {
        volume: located.volume.clone(),
        image: located.image.clone(),
        gfid: located.gfid,
        served: served.is_some(),
    };
    let situation = served.map_or(Situation::Unserved, |served| {
        Situation::Served(Box::new(served))
    });
    let report = with_bar(&options.progress, || {
        verify::verify(bricks, located.layout(), situation, &options, repair)
    })?;
    if !report.is_empty() {
        remember(&args, &located, &server, &report);
    }
    print(&subtitle, &report, args.json).map_err(|source| Failure::System {
        what: "print the outcome",
        source,
    })?;
    verdict(&args.target, &report)
}

/// Keeps the outcome for `status`. The comparison is good without that, too.
fn remember(args: &VerifyArgs, located: &Located, server: &GlusterdAddress, report: &Report) {
    let state = StateDir::new(&args.state_dir.state_dir);
    let unknown = || Entry {
        volume: located.volume.clone(),
        image: located.image.clone(),
        gfid: located.gfid,
        server: server.host.clone(),
        port: server.port,
        brick: String::new(),
        extent_size: None,
        // Nobody has served it on this host.
        settled: true,
        handed_over: false,
        promoted: None,
        verified: None,
    };
    let verified = Some(report.record());
    let kept = state.create().and_then(|()| {
        state.change(&located.volume, located.gfid, |known| {
            Some(Entry {
                verified,
                ..known.unwrap_or_else(unknown)
            })
        })
    });
    if let Err(error) = kept {
        log::warn!("{}", chain(&error));
    }
}

const NOT_SERVED: &str = "--repair needs the image to be served on this host, so that it is known which copy is the truth: serve it here, then verify again";

impl Repair for RemoteSession {
    fn mark_differing(
        &self,
        child: usize,
        ranges: &[std::ops::Range<u64>],
    ) -> Result<(), LinkError> {
        self.repair(child, ranges)
    }
}

/// Set by SIGINT and SIGTERM: the run then ends with what it has.
fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).map_err(|source| Failure::System {
            what: "handle signals",
            source,
        })?;
    }
    Ok(stop)
}

/// The session of this host that writes to the image, if there is one. One that only
/// reads counts for none: it changes nothing, and shares the lock.
fn session_here(args: &VerifyArgs) -> Result<Option<RemoteSession>, Failure> {
    let Some((path, status)) = find(args)? else {
        return Ok(None);
    };
    match &status.serving {
        _ if status.state == State::Stopped => Ok(None),
        Some(serving) if serving.read_only => Ok(None),
        Some(_) => Ok(Some(RemoteSession::new(&path))),
        None => Err(VerifyError::Healing.into()),
    }
}

fn find(args: &VerifyArgs) -> Result<Option<(PathBuf, Status)>, Failure> {
    for path in socket::list(&args.run_dir.run_dir)? {
        if socket::is_dead(&path) {
            continue;
        }
        match socket::status(&path) {
            Ok(status)
                if status.volume == args.target.volume && status.image == args.target.image.0 =>
            {
                return Ok(Some((path, status)));
            }
            Ok(_) => {}
            Err(error) => log::warn!("{}", chain(&error)),
        }
    }
    Ok(None)
}

/// Finds the image and connects to its bricks, and keeps sessions from beginning where
/// that is asked for.
fn connect(
    server: &GlusterdAddress,
    target: &Target,
    hold: bool,
) -> Result<(Located, Vec<Subject>), Failure> {
    let timeouts = Timeouts::default();
    let owner = lock_owner(&Holder::here(&host_name()))?;
    let catalog = Catalog::load(&server.host, server.port, &target.volume, &timeouts)?;
    let identity = identity(owner.clone());
    let located = catalog.find(&target.image.0, &identity, &timeouts)?;
    let located = shards::seen(located, &identity, &timeouts).map_err(LocateError::from)?;
    let mut subjects = Vec::new();
    for (child, spec) in located.set.bricks.iter().enumerate() {
        let connected = GlusterBrick::connect(&located, spec, owner.clone(), &timeouts);
        let held = match connected {
            Ok(brick) if hold => brick.hold().map(|()| brick),
            connected => connected.map_err(Unheld::from),
        };
        let brick: Result<Box<dyn verify::VerifyBrick>, String> = match held {
            Ok(brick) => Ok(Box::new(brick)),
            Err(Unheld::By(error)) => return Err(error.into()),
            Err(Unheld::Failed(error)) => Err(chain(&error)),
        };
        subjects.push(Subject {
            child,
            name: spec.to_string(),
            has_data: located.arbiter() != Some(child),
            brick,
        });
    }
    Ok((located, subjects))
}

/// Draws how far `work` is while it runs; only on a terminal.
fn with_bar<T>(progress: &VerifyProgress, work: impl FnOnce() -> T) -> T {
    const STYLE: &str = "{bar:30} {binary_bytes} of {binary_total_bytes}, \
                         {binary_bytes_per_sec}, {eta} left";
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(STYLE) {
        bar.set_style(style);
    }
    let done = AtomicBool::new(false);
    let draw = || {
        while !done.load(Ordering::Relaxed) {
            bar.set_length(progress.total());
            bar.set_position(progress.done());
            std::thread::park_timeout(DRAW);
        }
    };
    std::thread::scope(|scope| {
        let drawing = scope.spawn(draw);
        let result = work();
        done.store(true, Ordering::Relaxed);
        drawing.thread().unpark();
        bar.finish_and_clear();
        result
    })
}

fn verdict(target: &Target, report: &Report) -> Result<(), Failure> {
    let image = format!("{}{}", target.volume, target.image.0);
    if report.differs() {
        return Err(Failure::Differ {
            image,
            repaired: report.repaired,
        });
    }
    match (report.is_equal(), report.is_complete()) {
        (true, _) => Ok(()),
        (false, true) => Err(Failure::Behind {
            behind: bytes(report.behind()),
            image,
        }),
        (false, false) => Err(Failure::NotVerified { image }),
    }
}
