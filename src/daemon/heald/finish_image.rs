//! Finishing an image whose session has ended, for `heald`: a session of its own, for
//! as long as something can be healed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::daemon::failure::Failure;
use crate::daemon::maintenance_session::{MaintenanceSession, Wanted};
use crate::daemon::target::GlusterdAddress;
use crate::image::brick_client::heal_copies;
use crate::image::error_chain::chain;
use crate::image::heal::{FollowOptions, Follower};
use crate::image::local::{Name, name_of};
use crate::image::locate::LocateError;
use crate::image::session::snapshot::{CopySnapshot, Snapshot};
use crate::image::session::state_machine::Phase;
use crate::image::state_dir::{Entry, StateDir};

/// How often it looks how far it is.
const ROUND: Duration = Duration::from_millis(100);
/// An image is given back after nothing could be healed for so long: its peers are
/// away...
const HOPELESS: Duration = Duration::from_secs(5);
/// ...or refuse what they are sent.
const STUCK: Duration = Duration::from_secs(30);
/// How long another opening is waited for. The healers of all hosts begin, and try again, at the
/// same moments: without a wait one on a stale copy, which is refused a moment later, keeps that of
/// the fresh one away each time.
const LOCK_LIMIT: Duration = Duration::from_secs(3);

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
    let Entry { volume, .. } = &finishing.entry;
    let image = &name_now(&finishing.entry);
    let server = GlusterdAddress {
        host: finishing.entry.server.clone(),
        port: finishing.entry.port,
    };
    let wanted = Wanted {
        server: &server,
        volume,
        image,
        brick: Some(&finishing.entry.brick),
        state: &finishing.state,
        lock_timeout: LOCK_LIMIT,
    };
    let own = match MaintenanceSession::open(&wanted, &finishing.stop) {
        Ok(own) => own,
        Err(why) => {
            let hint = match &why {
                Failure::Locate(LocateError::NoImage { .. }) => {
                    format!(". If it is gone for good: bypass-blk forget {volume}{image}")
                }
                _ => String::new(),
            };
            log::info!("{volume}{image} is not finished yet: {}{hint}", chain(&why));
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
    let follower = match Follower::start(own.link(), &finishing.options, heal_copies::of_volume) {
        Ok(follower) => follower,
        Err(why) => {
            log::warn!("{volume}{image} is not finished: {}", chain(&why));
            return own.close();
        }
    };
    let mut useful = Instant::now();
    let mut most = 0;
    let mut progress = (progress_of(&own.snapshot(), &mut most), useful);
    while !finishing.stop.load(Ordering::SeqCst)
        && !give_way.load(Ordering::SeqCst)
        && !own.is_stopped()
    {
        let now = own.snapshot();
        if is_finished(&now) {
            break;
        }
        if can_heal(&now) {
            useful = Instant::now();
        }
        if useful.elapsed() > HOPELESS {
            log::info!("{volume}{image}: the copies that are left to heal are away");
            break;
        }
        let done = progress_of(&now, &mut most);
        if done != progress.0 {
            progress = (done, Instant::now());
        }
        if progress.1.elapsed() > STUCK {
            log::warn!(
                "{volume}{image} is not finished: nothing could be healed for {} s. It is tried again later",
                STUCK.as_secs()
            );
            break;
        }
        std::thread::sleep(ROUND);
    }
    if let Err(error) = follower.stop() {
        log::warn!("{volume}{image}: {}", chain(&error));
    }
    own.close();
    drop(socket);
}

/// The image's path in the volume, which may have changed since its session.
fn name_now(entry: &Entry) -> String {
    let Entry {
        volume,
        image,
        gfid,
        ..
    } = entry;
    let brick = entry
        .brick
        .find(":/")
        .map(|colon| &entry.brick[colon + 1..]);
    match name_of(Path::new(brick.unwrap_or_default()), *gfid, image) {
        Name::Other(now) => {
            log::info!("{volume}{image} was renamed: it is {volume}{now} now");
            now
        }
        Name::Same | Name::Gone | Name::Unknown => image.clone(),
    }
}

/// Nothing is marked, nothing is behind, and every brick says so.
fn is_finished(now: &Snapshot) -> bool {
    now.phase == Phase::Unmarked
        && now
            .copies
            .iter()
            .all(|copy| copy.locked && !is_marking(copy))
        && behind(now).next().is_none()
}

/// What there is to show: extents healed, bytes compared, and marks. To compare takes long on a
/// busy host, and clears nothing before a stretch is over. But what cannot be written to a peer
/// is compared again and again: so no more counts than was ever missed (`most`, in bytes).
fn progress_of(now: &Snapshot, most: &mut u64) -> (u64, u64, Vec<Option<Vec<i32>>>) {
    let behind = now.healing.iter().flat_map(|healing| &healing.behind);
    *most = (*most).max(behind.map(|peer| peer.bytes).sum());
    let healer = now
        .healing
        .iter()
        .filter_map(|healing| healing.healer.as_ref());
    let peers: Vec<_> = healer.flat_map(|report| &report.peers).collect();
    let healed = peers.iter().map(|peer| peer.figures.extents_cleared).sum();
    let compared: u64 = peers.iter().map(|peer| peer.figures.bytes_compared).sum();
    let marks = now.copies.iter().map(|copy| copy.pending.clone());
    (healed, compared.min(*most), marks.collect())
}

/// Some copy that is reached misses something, or some mark could go.
fn can_heal(now: &Snapshot) -> bool {
    let reached = |child: usize| now.copies.get(child).is_some_and(|copy| copy.locked);
    let misses: Vec<_> = behind(now).collect();
    if misses.iter().any(|&child| reached(child)) {
        return true;
    }
    let mut marked = now.copies.iter().filter_map(|copy| copy.pending.as_ref());
    let unjust = |(child, &count): (usize, &i32)| count != 0 && !misses.contains(&child);
    marked.any(|marks| marks.iter().enumerate().any(unjust))
}

fn is_marking(copy: &CopySnapshot) -> bool {
    let marks = copy.pending.iter().flatten();
    marks.copied().any(|count| count != 0)
}

/// The children that miss something.
fn behind(now: &Snapshot) -> impl Iterator<Item = usize> {
    let behind = now.healing.iter().flat_map(|healing| &healing.behind);
    behind
        .filter(|peer| peer.extents > 0)
        .map(|peer| peer.child)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::samples;
    use crate::image::heal::{Figures, HealReport, HealState, PeerReport};

    /// One peer misses so many bytes, and so many were compared for it.
    fn compared(missing: u64, bytes_compared: u64) -> Snapshot {
        let mut now = samples::clean();
        let healing = now.healing.as_mut().unwrap();
        healing.behind[0].bytes = missing;
        healing.healer = Some(HealReport {
            peers: vec![PeerReport {
                state: HealState::Copying,
                rate: 0,
                sent_before: None,
                failing_for: None,
                figures: Figures {
                    bytes_compared,
                    ..Figures::default()
                },
            }],
            ..HealReport::default()
        });
        now
    }

    #[test]
    fn a_slow_comparison_is_progress_and_one_that_begins_again_is_none() {
        let mut most = 0;
        let begun = progress_of(&compared(4096, 0), &mut most);
        let further = progress_of(&compared(4096, 1000), &mut most);
        assert_ne!(begun, further);
        let all = progress_of(&compared(4096, 4096), &mut most);
        assert_ne!(further, all);
        assert_eq!(progress_of(&compared(4096, 9000), &mut most), all);
        assert_eq!(progress_of(&compared(512, 90_000), &mut most), all);
    }
}
