//! Finishing an image whose session has ended, for `heald`: a session of its own, for
//! as long as something can be healed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::control::status::{CopyStatus, State, Status};
use crate::image::error::chain;
use crate::image::heal::{FollowOptions, Follower};
use crate::image::state_dir::{Entry, StateDir};

use super::Server;
use super::own_session::{OwnSession, Wanted};

/// How often it looks how far it is.
const ROUND: Duration = Duration::from_millis(100);
/// An image is given back after nothing could be healed for so long: its peers are
/// away.
const HOPELESS: Duration = Duration::from_secs(5);

/// What to finish.
pub struct Finishing {
    /// The image.
    pub entry: Entry,
    /// Its state directory.
    pub state: StateDir,
    /// Where the control socket goes.
    pub run_dir: PathBuf,
    /// How to copy.
    pub options: FollowOptions,
    /// Set to end early.
    pub stop: Arc<AtomicBool>,
}

/// Heals until nothing is left, nothing can be done, or somebody wants the image.
pub fn run(finishing: &Finishing) {
    let Entry { volume, image, .. } = &finishing.entry;
    let server = Server {
        host: finishing.entry.server.clone(),
        port: finishing.entry.port,
    };
    let wanted = Wanted {
        server: &server,
        volume,
        image,
        brick: Some(&finishing.entry.brick),
        state: &finishing.state,
        lock_timeout: Duration::ZERO,
    };
    let own = match OwnSession::open(&wanted, &finishing.stop) {
        Ok(own) => own,
        Err(why) => {
            log::info!("{volume}{image} is not finished yet: {}", chain(&why));
            return;
        }
    };
    let give_way = Arc::new(AtomicBool::new(false));
    let socket = match own.listen(&finishing.run_dir, give_way.clone()) {
        Ok(socket) => socket,
        Err(why) => {
            log::warn!("{volume}{image} is not finished: {}", chain(&why));
            return own.close();
        }
    };
    log::info!("finishing {volume}{image}, whose session has ended");
    let follower = Follower::start(own.link(), finishing.options.clone());
    let mut useful = Instant::now();
    while !finishing.stop.load(Ordering::SeqCst)
        && !give_way.load(Ordering::SeqCst)
        && !own.is_stopped()
    {
        let status = own.status();
        if is_finished(&status) {
            break;
        }
        if can_heal(&status) {
            useful = Instant::now();
        }
        if useful.elapsed() > HOPELESS {
            log::info!("{volume}{image}: the copies that are left to heal are away");
            break;
        }
        std::thread::sleep(ROUND);
    }
    follower.stop();
    own.close();
    drop(socket);
}

/// Nothing is marked, nothing is behind.
pub fn is_finished(status: &Status) -> bool {
    status.state == State::Clean && status.copies.iter().all(|copy| !is_behind(copy))
}

/// Some copy that is reached has something to be healed or unmarked.
pub fn can_heal(status: &Status) -> bool {
    let mut reached = status.copies.iter().filter(|copy| copy.reachable);
    reached.any(|copy| copy.stale || is_behind(copy))
}

fn is_behind(copy: &CopyStatus) -> bool {
    copy.behind.is_some_and(|behind| behind.extents > 0)
}
