//! `bypass-blk heald`: the healer of this host. It follows every session on it, and
//! finishes the images of sessions that have ended.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;
use uuid::Uuid;

use crate::control::metrics::{Endpoint, Metrics, MetricsError};
use crate::control::remote::RemoteSession;
use crate::control::socket::{self, Answer, ControlError, ControlSocket, Request};
use crate::control::survey::{Places, survey};
use crate::image::error::chain;
use crate::image::heal::{FollowOptions, Follower};
use crate::image::heal::{LinkError, SessionLink};
use crate::image::state_dir::{Entry, StateDir};

use super::bandwidth::Rate;
use super::bus_error;
use super::finish::{self, Finishing};
use super::opening::StateDirArgs;
use super::stop::Stop;
use super::{Failure, LogArgs, RunDirArgs, logging};

/// How often sessions that came and went are looked for.
const ROUND: Duration = Duration::from_millis(250);
/// How long an image without a session is left alone: whoever served it may be
/// starting again.
const GRACE: Duration = Duration::from_secs(5);
/// The longest pause between two attempts to finish an image.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Arguments of `heald`.
#[derive(Args, Debug)]
#[command(after_help = "Example: bypass-blk heald --bandwidth 200M")]
pub struct HealdArgs {
    /// Copy at most so many bytes per second of each image, to all other bricks together,
    /// such as 100M or unlimited; `bypass-blk bandwidth` changes it later
    #[arg(long, value_name = "RATE", default_value = "unlimited")]
    bandwidth: Rate,

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

/// The healer's own socket in the run directory.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("heald.socket")
}

pub(super) fn run(args: HealdArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level);
    bus_error::explain()?;
    let stop = Stop::of_daemon(&[])?;
    be_nice();
    let bandwidth = Arc::new(AtomicU64::new(args.bandwidth.0));
    let _control = listen(&args.run_dir.run_dir, bandwidth.clone())?;
    let _metrics = start_metrics(&args)?;
    let mut heald = Heald {
        run_dir: args.run_dir.run_dir,
        state: StateDir::new(&args.state_dir.state_dir),
        bandwidth,
        followed: HashMap::new(),
        finishing: HashMap::new(),
        waiting: HashMap::new(),
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

fn listen(run_dir: &Path, bandwidth: Arc<AtomicU64>) -> Result<ControlSocket, Failure> {
    let control = ControlSocket::bind_at(&socket_path(run_dir)).map_err(|error| match error {
        ControlError::InUse(path) => Failure::SecondHealer {
            path: path.display().to_string(),
        },
        error => error.into(),
    })?;
    let answer = move |request| match request {
        Request::Bandwidth { bytes_per_second } => {
            bandwidth.store(bytes_per_second, Ordering::Relaxed);
            log::info!("bandwidth limit: {}", Rate(bytes_per_second));
            Answer::Done
        }
        _ => Answer::Refused {
            why: "the healer's socket takes bandwidth limits only".to_owned(),
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
    bandwidth: Arc<AtomicU64>,
    /// By the session's control socket; `None`: nothing to heal there.
    followed: HashMap<PathBuf, Option<Follower>>,
    finishing: HashMap<Uuid, Finish>,
    /// Images without a session, and when to try them next.
    waiting: HashMap<Uuid, Waiting>,
}

struct Finish {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

#[derive(Clone, Copy)]
struct Waiting {
    next: Instant,
    pause: Duration,
}

impl Heald {
    fn round(&mut self) -> Result<(), Failure> {
        let mut live = socket::list(&self.run_dir)?;
        live.retain(|path| !socket::is_dead(path));
        self.follow(&live);
        self.finishing
            .retain(|_, finish| !finish.thread.is_finished());
        for entry in self.state.entries()? {
            let served = live.iter().any(|path| socket::is_of(path, entry.gfid));
            if entry.settled
                || entry.handed_over
                || served
                || self.finishing.contains_key(&entry.gfid)
            {
                if !self.finishing.contains_key(&entry.gfid) {
                    self.waiting.remove(&entry.gfid);
                }
                continue;
            }
            self.finish_in_time(entry);
        }
        Ok(())
    }

    fn follow(&mut self, live: &[PathBuf]) {
        self.followed.retain(|path, follower| {
            let over = follower.as_ref().is_some_and(Follower::is_over);
            live.contains(path) && !over
        });
        for path in live {
            if self.followed.contains_key(path) {
                continue;
            }
            let link = RemoteSession::new(path);
            let follower = match link.job() {
                Ok(job) if job.peers.is_empty() => None,
                Ok(job) => match Follower::start(Arc::new(link), &self.options()) {
                    Ok(follower) => {
                        log::info!("following {}{}", job.volume, job.image);
                        Some(follower)
                    }
                    // Another healer may be at work; the next round tries again.
                    Err(error) => {
                        log::debug!("{}{}: {}", job.volume, job.image, chain(&error));
                        continue;
                    }
                },
                // Opened by a healer for itself.
                Err(LinkError::Ended(_)) => None,
                Err(error) => {
                    log::debug!("{}: {error}", path.display());
                    continue;
                }
            };
            self.followed.insert(path.clone(), follower);
        }
    }

    fn options(&self) -> FollowOptions {
        FollowOptions {
            bandwidth: self.bandwidth.clone(),
            ..FollowOptions::default()
        }
    }

    /// An image that is not settled and has no session: after a while it is healed
    /// without one.
    fn finish_in_time(&mut self, entry: Entry) {
        let now = Instant::now();
        let gfid = entry.gfid;
        let waiting = self.waiting.entry(gfid).or_insert(Waiting {
            next: now + GRACE,
            pause: GRACE,
        });
        if now < waiting.next {
            return;
        }
        waiting.pause = (waiting.pause * 2).min(LONGEST_PAUSE);
        waiting.next = now + waiting.pause;
        let stop = Arc::new(AtomicBool::new(false));
        let finishing = Finishing {
            entry,
            state: self.state.clone(),
            run_dir: self.run_dir.clone(),
            options: self.options(),
            stop: stop.clone(),
        };
        let spawned = std::thread::Builder::new()
            .name("finish".to_owned())
            .spawn(move || finish::run(&finishing));
        match spawned {
            Ok(thread) => {
                self.finishing.insert(gfid, Finish { stop, thread });
            }
            Err(error) => log::warn!("cannot start a thread: {error}"),
        }
    }

    /// Ends in good order: what was sent is waited for.
    fn end(self) {
        for finish in self.finishing.values() {
            finish.stop.store(true, Ordering::SeqCst);
        }
        let followers: Vec<_> = self.followed.into_values().flatten().collect();
        followers.iter().for_each(Follower::request_stop);
        for follower in followers {
            if let Err(error) = follower.stop() {
                log::warn!("{}", chain(&error));
            }
        }
        for finish in self.finishing.into_values() {
            if finish.thread.join().is_err() {
                log::error!("a thread panicked");
            }
        }
    }
}
