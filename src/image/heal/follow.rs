//! Healing one image for as long as its session lasts.
//!
//! A follower is given the way to a session ([`SessionLink`]), claims the right to
//! copy on its dirty map, and copies to each peer on a thread of its own, so that
//! none that is away or slow holds up another. A further thread speaks with the
//! session. It copies only to peers that the session holds and has marked. It
//! removes no marks (it asks the session to), finds no sessions, and knows no
//! command line.
//!
//! * `supervisor`: the thread that speaks with the session.
//! * `healer`: the thread of one peer.
//! * `board`: what these tell each other.
//! * `idle`, `meter`, `retry`: times and rates, pure.

mod board;
mod healer;
mod idle;
mod meter;
mod retry;
mod supervisor;

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::image::dirty_map::{DirtyMap, Healer, MapError, Peer};
use crate::image::local::error::LocalError;
use crate::image::scheduler::{Scheduler, Started};

use super::copies::Copies;
use super::link::{HealReport, Hint, Job, LinkError, SessionLink, Unmarked};
use super::pass::PassOptions;
use super::progress::Progress;
use super::throttle::Throttle;
use board::{Board, Switches};
use healer::PeerHealer;
use supervisor::{Shared, Supervisor};

/// How a follower works.
#[derive(Clone)]
pub struct FollowOptions {
    /// The bandwidth limit in bytes per second, of all peers together; 0 is none.
    /// May change at any time and counts within a second.
    pub bandwidth: Arc<AtomicU64>,
    /// The limit of all images of the host together. Whoever shares it shares `threads`.
    pub host: Arc<Throttle>,
    /// The most bytes on their way to one peer at one time.
    pub window: u64,
    /// See [`PassOptions::quiet`].
    pub quiet: Duration,
    /// Where it works, and the time.
    pub threads: Scheduler,
}

impl Default for FollowOptions {
    fn default() -> Self {
        let engine = PassOptions::default();
        Self {
            bandwidth: Arc::default(),
            host: Arc::default(),
            window: engine.window,
            quiet: engine.quiet,
            threads: Scheduler::default(),
        }
    }
}

/// What a follower last told its session, and heard from it.
#[derive(Clone, Debug, Default)]
pub struct FollowSnapshot {
    /// The last report.
    pub report: HealReport,
    /// The last hint.
    pub hint: Hint,
    /// The limit in force, in bytes per second, 0 for none: the operator's, or a
    /// lower one for the sake of the guest.
    pub limit: u64,
    /// The last answer about removing marks.
    pub unmarked: Option<Unmarked>,
}

/// Why a follower ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowEnd {
    /// It was told to.
    Stopped,
    /// The session ended, for this reason.
    SessionEnded(String),
}

/// Why an image cannot be healed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The session does not say what there is to heal.
    #[error("cannot heal")]
    Link(#[from] LinkError),
    /// The dirty map cannot be used; [`MapError::InUse`]: by another healer.
    #[error("cannot heal")]
    Map(#[from] MapError),
    /// The local copy cannot be opened.
    #[error("cannot heal from the local copy")]
    Local(#[from] LocalError),
    /// Session and map do not fit together.
    #[error(
        "the session names {named} peers, but its dirty map counts for {counted}. Start the healer anew"
    )]
    Peers {
        /// The session's.
        named: usize,
        /// The map's.
        counted: usize,
    },
    /// No more threads.
    #[error("cannot start a thread. Look at the limits of this process")]
    Thread(#[source] io::Error),
    /// A thread panicked.
    #[error(
        "a thread of the healer died, which is a bug; see the log. Start the healer anew: nothing is lost"
    )]
    Died,
}

/// Heals one image in the background.
pub struct Follower {
    stopper: Stopper,
    map: Arc<DirtyMap>,
    snapshot: Arc<Mutex<FollowSnapshot>>,
    /// Until it is joined.
    thread: Option<Started<Result<FollowEnd, FollowError>>>,
}

impl Follower {
    /// Asks the session what to do and begins; `copies` says where the copies are.
    ///
    /// # Errors
    /// See [`FollowError`]; worth another attempt later.
    pub fn start(
        link: Arc<dyn SessionLink>,
        options: &FollowOptions,
        copies: impl FnOnce(&Job) -> Arc<dyn Copies>,
    ) -> Result<Self, FollowError> {
        let job = link.job()?;
        let map = Arc::new(DirtyMap::attach(&job.map)?);
        let peers: Vec<Peer> = map.geometry().all_peers().iter().collect();
        if peers.len() != job.peers.len() {
            return Err(FollowError::Peers {
                named: job.peers.len(),
                counted: peers.len(),
            });
        }
        let healer = Arc::new(Healer::claim(Arc::clone(&map))?);
        let copies = copies(&job);
        let files = Arc::new(copies.local(&map)?);
        let board = Arc::new(Board::new(peers.len(), options.threads.clone()));
        let throttle = Arc::new(Throttle::default());
        let snapshot = Arc::new(Mutex::new(FollowSnapshot::default()));
        let progress: Vec<_> = peers.iter().map(|_| Arc::<Progress>::default()).collect();
        // Ends the threads begun when a later one cannot be.
        let guard = StopAtEnd(Arc::clone(&board));
        let mut healers = Vec::new();
        for (&id, progress) in peers.iter().zip(&progress) {
            let engine = engine_options(options, board.switches(id), &throttle, progress);
            let peer = PeerHealer {
                id,
                image: format!("{}{}", job.volume, job.image),
                board: Arc::clone(&board),
                healer: Arc::clone(&healer),
                copies: Arc::clone(&copies),
                files: Arc::clone(&files),
                options: engine,
                state: healer::Connection::default(),
            };
            let started = options.threads.start("heal-peer", move || peer.run());
            healers.push(started.map_err(FollowError::Thread)?);
        }
        let shared = Shared {
            board: Arc::clone(&board),
            link: Arc::clone(&link),
            clock: options.threads.clock(),
            map: Arc::clone(&map),
            bandwidth: Arc::clone(&options.bandwidth),
            throttle,
            snapshot: Arc::clone(&snapshot),
        };
        let supervisor = Supervisor::new(shared, peers.into_iter().zip(progress));
        let threads = &options.threads;
        let thread = threads.start("heal", move || follow(supervisor, healers, guard));
        let thread = thread.map_err(FollowError::Thread)?;
        Ok(Self {
            stopper: Stopper { board, link },
            map,
            snapshot,
            thread: Some(thread),
        })
    }

    /// What was last said.
    pub fn snapshot(&self) -> FollowSnapshot {
        let snapshot = self.snapshot.lock();
        snapshot.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The dirty map: what is still to do.
    pub fn map(&self) -> &DirtyMap {
        &self.map
    }

    /// Has it ended? [`Follower::join`] then says why at once.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(Started::is_over)
    }

    /// Tells it to end soon: once what it sent was answered.
    pub fn request_stop(&self) {
        self.stopper.request_stop();
    }

    /// For another thread than the one that waits for its end.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Waits for its end. Its connections and its claim are gone then.
    ///
    /// # Errors
    /// [`FollowError::Died`].
    pub fn join(mut self) -> Result<FollowEnd, FollowError> {
        let ended = self.thread.take().and_then(Started::join);
        ended.unwrap_or(Err(FollowError::Died))
    }

    /// Ends it and waits for that.
    ///
    /// # Errors
    /// [`FollowError::Died`].
    pub fn stop(self) -> Result<FollowEnd, FollowError> {
        self.request_stop();
        self.join()
    }
}

/// Tells a follower to end, whether it lives or not.
#[derive(Clone)]
pub struct Stopper {
    board: Arc<Board>,
    link: Arc<dyn SessionLink>,
}

impl Stopper {
    /// As [`Follower::request_stop`].
    pub fn request_stop(&self) {
        self.board.stop();
        self.link.hurry();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.request_stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The healers never outlive the supervisor for long, whatever becomes of it.
struct StopAtEnd(Arc<Board>);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn follow(
    supervisor: Supervisor,
    healers: Vec<Started<()>>,
    guard: StopAtEnd,
) -> Result<FollowEnd, FollowError> {
    let end = supervisor.run(&healers);
    drop(guard);
    let joined: Vec<_> = healers.into_iter().map(Started::join).collect();
    match joined.iter().all(Option::is_some) {
        true => end,
        false => Err(FollowError::Died),
    }
}

fn engine_options(
    options: &FollowOptions,
    switches: Switches,
    throttle: &Arc<Throttle>,
    progress: &Arc<Progress>,
) -> PassOptions {
    PassOptions {
        window: options.window,
        compare_first: switches.compare_first,
        throttle: Arc::clone(throttle),
        host: Arc::clone(&options.host),
        stop: switches.halt,
        quiet: options.quiet,
        clock: options.threads.clock(),
        progress: Arc::clone(progress),
    }
}
