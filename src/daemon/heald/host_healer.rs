//! The healer of this host: it follows every session on it, and has the images of sessions
//! that have ended finished.
//!
//! Started by the command `heald`. What it does for one image is [`super::following`]'s and
//! [`super::finish_image`]'s.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::control::metrics::{Endpoint, Metrics, MetricsError};
use crate::control::socket::{self, Answer, ControlError, ControlSocket, HealQueue, Request};
use crate::control::survey::{Places, survey};
use crate::daemon::bus_error;
use crate::daemon::failure::Failure;
use crate::daemon::shutdown::Stop;
use crate::image::error_chain::chain;
use crate::image::heal::{FollowOptions, Throttle};
use crate::image::scheduler::Scheduler;
use crate::image::state_dir::{Entry, StateDir};

use super::finish_image::{self, Finishing};
use super::folder_watch::{FolderWatch, Nudge};
use super::following::Following;
use super::queue::Queue;
use super::rate::Rate;
use super::socket_path;

/// How soon it is tried again what could not be done.
const AGAIN: Duration = Duration::from_secs(1);

/// What the healer of a host is told.
#[derive(Debug)]
pub struct HealdOptions {
    /// The limit of each image, to all other bricks together.
    pub bandwidth: Rate,
    /// The limit of all images of this host together.
    pub host_bandwidth: Rate,
    /// Images without a session that are healed at one time.
    pub jobs: usize,
    /// Where metrics go.
    pub metrics: Option<Endpoint>,
    /// What this host remembers.
    pub state_dir: PathBuf,
    /// The folder of the control sockets.
    pub run_dir: PathBuf,
}

/// Heals until a signal ends it.
///
/// # Errors
/// Whatever forbids to start.
pub fn run(options: HealdOptions) -> Result<(), Failure> {
    bus_error::explain()?;
    let stop = Stop::of_daemon(&[])?;
    be_nice();
    let limits = Limits {
        image: Arc::new(AtomicU64::new(options.bandwidth.0)),
        host: Arc::new(Throttle::new(options.host_bandwidth.0)),
    };
    let shown = Arc::<Mutex<HealQueue>>::default();
    let _control = listen(&options.run_dir, limits.clone(), shown.clone())?;
    let _metrics = start_metrics(&options)?;
    let folders = [options.run_dir.clone(), options.state_dir.clone()];
    let mut watch = FolderWatch::new(folders)?;
    let mut heald = Heald {
        run_dir: options.run_dir,
        state: StateDir::new(&options.state_dir),
        limits,
        threads: Scheduler::default(),
        followed: HashMap::new(),
        leaving: Vec::new(),
        queue: Queue::new(options.jobs, shown),
        nudge: watch.nudge(),
    };
    log::info!(
        "healing the images of this host; sessions are found in {}",
        heald.run_dir.display()
    );
    let mut told = None;
    while !stop.is_requested() {
        let (next, trouble) = match heald.round() {
            Ok(next) => (next, None),
            Err(error) => (Some(Instant::now() + AGAIN), Some(chain(&error))),
        };
        if trouble != told {
            trouble.iter().for_each(|why| log::warn!("{why}"));
            told = trouble;
        }
        watch.wait(&stop, next);
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
fn start_metrics(options: &HealdOptions) -> Result<Option<Metrics>, MetricsError> {
    let start = |endpoint| {
        let places = Places {
            run_dir: options.run_dir.clone(),
            state: StateDir::new(&options.state_dir),
            healer: socket_path(&options.run_dir),
        };
        Metrics::start(endpoint, move || {
            let mut told = HashSet::new();
            let mut images = survey(&places).images;
            // No two samples may have the same labels.
            images.retain(|image| told.insert((image.volume.clone(), image.image.clone())));
            images
        })
    };
    options.metrics.as_ref().map(start).transpose()
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
    threads: Scheduler,
    /// By the session's control socket.
    followed: HashMap<PathBuf, Following>,
    /// Of sessions that are over.
    leaving: Vec<Following>,
    queue: Queue,
    /// For followers that have ended.
    nudge: Arc<Nudge>,
}

impl Heald {
    /// When the next one is due, whether anything changes or not.
    fn round(&mut self) -> Result<Option<Instant>, Failure> {
        let sockets = socket::list(&self.run_dir)?;
        let all_followed = self.follow(&sockets);
        let mut unfinished = self.state.entries()?;
        unfinished.retain(|entry| {
            let is_live = |(path, one): (&PathBuf, &Following)| {
                socket::is_of(path, entry.gfid) && !one.is_over()
            };
            let served = self.followed.iter().any(is_live);
            !entry.settled && !entry.handed_over && !served
        });
        let finisher = self.finisher();
        let now = Instant::now();
        self.queue.look(now, unfinished, finisher);
        let again = (!all_followed).then_some(now + AGAIN);
        Ok(self.queue.next_look(now).into_iter().chain(again).min())
    }

    /// Is each followed now? Nobody is asked or waited for here.
    fn follow(&mut self, sockets: &[PathBuf]) -> bool {
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
        let mut all = true;
        for path in sockets {
            let is_own = path.to_string_lossy().ends_with(&own);
            if is_own || self.followed.contains_key(path) {
                continue;
            }
            match Following::start(path, self.options(), self.nudge.clone()) {
                Ok(one) => drop(self.followed.insert(path.clone(), one)),
                Err(error) => {
                    log::warn!("cannot start a thread: {error}");
                    all = false;
                }
            }
        }
        all
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
                .spawn(move || finish_image::run(&finishing))
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
