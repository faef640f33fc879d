//! Following one session of this host, on a thread of its own: a daemon that does not
//! answer, or a follower that does not end, holds up nobody else.
//!
//! Started by [`super::host_healer`] for each control socket; it decides when to try again, and tells
//! the log and the session why nothing is healed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::control::remote::RemoteSession;
use crate::control::socket;
use crate::image::brick_client::heal_copies;
use crate::image::dirty_map::{MapError, Role};
use crate::image::error_chain::chain;
use crate::image::heal::{
    FollowError, FollowOptions, Follower, HealReport, LinkError, SessionLink, Stopper,
};

use super::folder_watch::Nudge;

/// The first pause before a session is tried again, doubled each time...
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// ...up to this, shorter than a report is believed.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often a session is looked at for which there is nothing to heal: it is read-only,
/// or its own process heals.
const NOTHING_PAUSE: Duration = Duration::from_secs(5);

/// A session that is followed, or tried to be, until its daemon is gone.
pub struct Following {
    thread: JoinHandle<()>,
    wish: Arc<Wish>,
    over: Arc<AtomicBool>,
}

/// Says at the thread's end, whatever it comes from, that it is over.
struct AtEnd(Arc<AtomicBool>, Arc<Nudge>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        self.1.nudge();
    }
}

/// What the thread is to do.
#[derive(Default)]
struct Wish {
    state: Mutex<(bool, Option<Stopper>)>,
    changed: Condvar,
}

impl Wish {
    /// The thread follows now. `false`: it is to end.
    fn follows(&self, stopper: Option<Stopper>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 = stopper;
        !state.0
    }

    fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = true;
        if let Some(stopper) = &state.1 {
            stopper.request_stop();
        }
        self.changed.notify_all();
    }

    /// `false`: it is to end.
    fn pause(&self, time: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(state, time, |(stop, _)| !*stop);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.0
    }
}

impl Following {
    /// Follows the session behind the control socket at `path`. At the end it nudges.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(path: &Path, options: FollowOptions, nudge: Arc<Nudge>) -> std::io::Result<Self> {
        let (wish, over) = (Arc::<Wish>::default(), Arc::<AtomicBool>::default());
        let (path, own) = (path.to_owned(), wish.clone());
        let at_end = AtEnd(over.clone(), nudge);
        let thread = std::thread::Builder::new().name("follow".to_owned());
        let thread = thread.spawn(move || {
            let _at_end = at_end;
            follow(&path, &options, &own);
        })?;
        Ok(Self { thread, wish, over })
    }

    /// Tells it to end soon.
    pub fn request_stop(&self) {
        self.wish.stop();
    }

    /// Its daemon is gone, or it has ended as it was told.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Waits for its end.
    pub fn join(self) {
        if self.thread.join().is_err() {
            log::error!("a thread panicked");
        }
    }
}

/// Why nothing is followed now.
enum Idle {
    /// There is nothing to heal.
    Nothing,
    /// It will be so in a moment, or another healer is at work.
    NotYet(String),
    /// Somebody has to know.
    Trouble(String),
}

fn follow(path: &Path, options: &FollowOptions, wish: &Wish) {
    let (mut pause, mut told) = (SHORTEST_PAUSE, None);
    loop {
        let link = RemoteSession::new(path);
        let idle = match start(&link, options) {
            Ok(follower) => {
                (pause, told) = (SHORTEST_PAUSE, None);
                if !wish.follows(Some(follower.stopper())) {
                    follower.request_stop();
                }
                if let Err(error) = follower.join() {
                    log::warn!("{}: {}", path.display(), chain(&error));
                }
                wish.follows(None);
                SHORTEST_PAUSE
            }
            Err(_) if socket::is_gone(path) => return,
            Err(Idle::Nothing) => NOTHING_PAUSE,
            Err(Idle::NotYet(why)) => {
                log::debug!("{}: {why}", path.display());
                pause
            }
            Err(Idle::Trouble(why)) => {
                tell(&link, &why);
                if told.as_ref() != Some(&why) {
                    log::warn!("{why}");
                    told = Some(why);
                }
                pause
            }
        };
        if !wish.pause(idle) {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn start(link: &RemoteSession, options: &FollowOptions) -> Result<Follower, Idle> {
    let job = match link.job() {
        Ok(job) if job.peers.is_empty() => return Err(Idle::Nothing),
        Ok(job) => job,
        // Opened by a healer for itself.
        Err(LinkError::Ended(_)) => return Err(Idle::Nothing),
        Err(error) => return Err(Idle::NotYet(error.to_string())),
    };
    match Follower::start(Arc::new(link.clone()), options, heal_copies::of_volume) {
        Ok(follower) => {
            log::info!("following {}{}", job.volume, job.image);
            Ok(follower)
        }
        Err(error) => {
            let why = format!("{}{}: {}", job.volume, job.image, chain(&error));
            let soon = match error {
                FollowError::Link(_) => true,
                FollowError::Map(MapError::InUse { role, .. }) => role == Role::Healer,
                _ => false,
            };
            Err(if soon {
                Idle::NotYet(why)
            } else {
                Idle::Trouble(why)
            })
        }
    }
}

/// So that `status` shows it.
fn tell(link: &RemoteSession, why: &str) {
    let report = HealReport {
        pid: std::process::id(),
        trouble: Some(why.to_owned()),
        ..HealReport::default()
    };
    if let Err(error) = link.report(&report, None) {
        log::debug!("{error}");
    }
}
