//! `bypass-blk heald`: the healer of this host. It follows every session on it, and
//! finishes the images of sessions that have ended.
//!
//! * [`following`]: one session, on a thread of its own.
//! * [`queue`]: images without a session, so many at one time.

mod following;
mod queue;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;

use crate::control::metrics::{Endpoint, Metrics, MetricsError};
use crate::control::socket::{self, Answer, ControlError, ControlSocket, HealQueue, Request};
use crate::control::survey::{Places, survey};
use crate::image::error::chain;
use crate::image::heal::{FollowOptions, Throttle};
use crate::image::state_dir::{Entry, StateDir};
use crate::image::threads::Threads;

use super::bandwidth::Rate;
use super::bus_error;
use super::finish::{self, Finishing};
use super::opening::StateDirArgs;
use super::stop::Stop;
use super::{Failure, LogArgs, RunDirArgs, logging};
use following::Following;
use queue::Queue;

/// How often sessions that came and went are looked for.
const ROUND: Duration = Duration::from_secs(1);

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

/// The healer's own socket in the run directory.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("heald.socket")
}

pub(super) fn run(args: HealdArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level);
    bus_error::explain()?;
    let stop = Stop::of_daemon(&[])?;
    be_nice();
    let limits = Limits {
        image: Arc::new(AtomicU64::new(args.bandwidth.0)),
        host: Arc::new(Throttle::new(args.host_bandwidth.0)),
    };
    let shown = Arc::<Mutex<HealQueue>>::default();
    let _control = listen(&args.run_dir.run_dir, limits.clone(), shown.clone())?;
    let _metrics = start_metrics(&args)?;
    let mut heald = Heald {
        run_dir: args.run_dir.run_dir,
        state: StateDir::new(&args.state_dir.state_dir),
        limits,
        threads: Threads::default(),
        followed: HashMap::new(),
        leaving: Vec::new(),
        queue: Queue::new(args.jobs, shown),
    };
    log::info!(
        "healing the images of this host; sessions are found in {}",
        heald.run_dir.display()
    );
    let mut told = None;
    while !stop.is_requested() {
        let trouble = heald.round().err().map(|error| chain(&error));
        if trouble != told {
            trouble.iter().for_each(|why| log::warn!("{why}"));
            told = trouble;
        }
        stop.wait(ROUND);
    }
    heald.end();
    Ok(())
}

/// May be changed at any time.
#[derive(Clone)]
struct Limits {
    /// In bytes per second, of each image; 0 is none.
    image: Arc<AtomicU64>,
    /// Of all together.
    host: Arc<Throttle>,
}

/// They end when this is dropped.
fn start_metrics(args: &HealdArgs) -> Result<Option<Metrics>, MetricsError> {
    let start = |endpoint| {
        let places = Places {
            run_dir: args.run_dir.run_dir.clone(),
            state: StateDir::new(&args.state_dir.state_dir),
            healer: socket_path(&args.run_dir.run_dir),
        };
        Metrics::start(endpoint, move || {
            let mut told = HashSet::new();
            let mut images = survey(&places).images;
            // No two samples may have the same labels.
            images.retain(|image| told.insert((image.volume.clone(), image.image.clone())));
            images
        })
    };
    args.metrics.as_ref().map(start).transpose()
}

/// The guests' processes come first.
fn be_nice() {
    if let Err(error) = rustix::process::nice(10) {
        log::debug!("cannot lower the priority: {error}");
    }
}

fn listen(
    run_dir: &Path,
    limits: Limits,
    shown: Arc<Mutex<HealQueue>>,
) -> Result<ControlSocket, Failure> {
    let control = ControlSocket::bind_at(&socket_path(run_dir)).map_err(|error| match error {
        ControlError::InUse(path) => Failure::SecondHealer {
            path: path.display().to_string(),
        },
        error => error.into(),
    })?;
    let answer = move |request| match request {
        Request::Bandwidth {
            bytes_per_second,
            host,
        } => {
            match host {
                true => limits.host.set_rate(bytes_per_second),
                false => limits.image.store(bytes_per_second, Ordering::Relaxed),
            }
            let of = if host { "the host" } else { "each image" };
            log::info!("bandwidth limit of {of}: {}", Rate(bytes_per_second));
            Answer::Done
        }
        Request::Queue => {
            let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            Answer::Queue(shown.clone())
        }
        _ => Answer::Refused {
            why: "the healer's socket takes bandwidth limits and tells its queue only".to_owned(),
        },
    };
    control.answer(answer).map_err(|source| Failure::System {
        what: "start the control thread",
        source,
    })?;
    Ok(control)
}

struct Heald {
    run_dir: PathBuf,
    state: StateDir,
    limits: Limits,
    /// Of all followers: they share a limit, and so a clock.
    threads: Threads,
    /// By the session's control socket.
    followed: HashMap<PathBuf, Following>,
    /// Of sessions that are over.
    leaving: Vec<Following>,
    queue: Queue,
}

impl Heald {
    fn round(&mut self) -> Result<(), Failure> {
        let sockets = socket::list(&self.run_dir)?;
        self.follow(&sockets);
        let mut unfinished = self.state.entries()?;
        unfinished.retain(|entry| {
            let is_live = |(path, one): (&PathBuf, &Following)| {
                socket::is_of(path, entry.gfid) && !one.is_over()
            };
            let served = self.followed.iter().any(is_live);
            !entry.settled && !entry.handed_over && !served
        });
        let finisher = self.finisher();
        self.queue.look(Instant::now(), unfinished, finisher);
        Ok(())
    }

    /// Nobody is asked or waited for here.
    fn follow(&mut self, sockets: &[PathBuf]) {
        self.leaving.retain(|one| !one.is_over());
        let gone = |path: &PathBuf| !sockets.contains(path);
        let gone: Vec<_> = self
            .followed
            .keys()
            .filter(|path| gone(path))
            .cloned()
            .collect();
        for one in gone.iter().filter_map(|path| self.followed.remove(path)) {
            one.request_stop();
            self.leaving.push(one);
        }
        // In this process.
        let own = format!("-{}.control", std::process::id());
        for path in sockets {
            let is_own = path.to_string_lossy().ends_with(&own);
            if is_own || self.followed.contains_key(path) {
                continue;
            }
            match Following::start(path, self.options()) {
                Ok(one) => drop(self.followed.insert(path.clone(), one)),
                Err(error) => log::warn!("cannot start a thread: {error}"),
            }
        }
    }

    fn options(&self) -> FollowOptions {
        FollowOptions {
            bandwidth: self.limits.image.clone(),
            host: self.limits.host.clone(),
            threads: self.threads.clone(),
            ..FollowOptions::default()
        }
    }

    /// An image that is not settled and has no session is healed without one.
    fn finisher(&self) -> impl Fn(Entry, Arc<AtomicBool>) -> Option<JoinHandle<()>> + use<> {
        let (state, run_dir) = (self.state.clone(), self.run_dir.clone());
        let options = self.options();
        move |entry, stop| {
            let finishing = Finishing {
                entry,
                state: state.clone(),
                run_dir: run_dir.clone(),
                options: options.clone(),
                stop,
            };
            std::thread::Builder::new()
                .name("finish".to_owned())
                .spawn(move || finish::run(&finishing))
                .inspect_err(|error| log::warn!("cannot start a thread: {error}"))
                .ok()
        }
    }

    /// Ends in good order: what was sent is waited for.
    fn end(self) {
        self.queue.request_stop();
        let following = self.followed.into_values().chain(self.leaving);
        let following: Vec<_> = following.collect();
        following.iter().for_each(Following::request_stop);
        following.into_iter().for_each(Following::join);
        self.queue.join();
    }
}
