//! Publishing who holds an image, with the fence that keeps other clients out.
//!
//! The last step of opening ([`super::open`]), once every lock is held and the
//! copy is known to be fresh. All bricks get the same fence: one on some copies
//! only would be hard to reason about. A brick that comes back later is the
//! session's business.

use crate::image::replica::brick_port::{CopyState, Fence, Publication};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::brick_worker::Worker;
use crate::image::replica::data_lock::wait;
use crate::image::replica::names::Names;

use super::error::OpenError;
use super::terms::{FenceWish, Terms};

/// Publishes on `bricks`, whose copies are `copies[i]`, in child order. Returns
/// the fence that stands now.
///
/// # Errors
/// [`OpenError::InUse`], [`OpenError::FenceUnavailable`], or a brick's failure; no
/// fence of ours is left then.
pub fn publish(
    names: &Names,
    workers: &[Worker],
    bricks: BrickSet,
    copies: &[Option<CopyState>],
    terms: &Terms,
) -> Result<Fence, OpenError> {
    let publish_as = |fence| publish_as(names, workers, bricks, fence, terms.read_only);
    let wanted = match terms.fence {
        // A fence shuts other readers out too: not what a reader is for.
        FenceWish::Auto if terms.read_only => Fence::Advisory,
        FenceWish::Auto => Fence::Mandatory,
        FenceWish::Exactly(fence) => fence,
    };
    if wanted == Fence::Advisory && !terms.read_only {
        // Left by a killed session: we hold its lock now, so it is ours to lift.
        let fenced = |&brick: &usize| matches!(copies.get(brick), Some(Some(copy)) if copy.fenced);
        lift(workers, bricks.iter().filter(fenced).collect());
    }
    match publish_as(wanted) {
        Ok(()) => Ok(wanted),
        Err(OpenError::FenceUnavailable { .. }) if terms.fence == FenceWish::Auto => {
            publish_as(Fence::Advisory).map(|()| Fence::Advisory)
        }
        Err(error) => Err(error),
    }
}

fn publish_as(
    names: &Names,
    workers: &[Worker],
    bricks: BrickSet,
    fence: Fence,
    read_only: bool,
) -> Result<(), OpenError> {
    let mut asked = BrickSet::EMPTY;
    for brick in bricks.iter() {
        let Some(worker) = workers.get(brick) else {
            continue;
        };
        // Also one that refuses: the fence comes before the locks that it may not get.
        asked.insert(brick);
        let refused = match wait(worker.ask(move |port| port.publish(fence, read_only))) {
            Ok(Publication::Done) => None,
            Ok(Publication::FenceUnavailable) => Some(OpenError::FenceUnavailable {
                volume: names.volume.clone(),
                brick: names.one(brick),
            }),
            Ok(Publication::InUse(conflict)) => Some(OpenError::InUse {
                brick: names.one(brick),
                conflict,
            }),
            Err(error) => Some(OpenError::BrickFailed {
                brick: names.one(brick),
                why: error.to_string(),
            }),
        };
        if let Some(error) = refused {
            if matches!(error, OpenError::FenceUnavailable { .. }) {
                // It takes no such attribute, nor its removal.
                asked.remove(brick);
            }
            if fence == Fence::Mandatory {
                lift(workers, asked);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Lifts the fence on these bricks. One that cannot be lifted now is told: it
/// outlives us until somebody opens or releases the image.
pub fn lift(workers: &[Worker], bricks: BrickSet) {
    for worker in bricks.iter().filter_map(|brick| workers.get(brick)) {
        if let Err(error) = wait(worker.ask(|port| port.lift_fence())) {
            log::warn!("a fence could not be lifted: {error}. `bypass-blk release` does it later");
        }
    }
}
