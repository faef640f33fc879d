//! Making a stale copy the fresh one, when the copy with the newer data is gone for good.
//!
//! [`plan`] decides, over what the reachable bricks say under their locks, whether that
//! may be done at all, and what every counter becomes; [`carry_out`] changes them. The
//! lost copy, when it comes back, still accuses this one; the counters are such that
//! AFR makes it a sink all the same, for it is accused by a quorum of bricks that do not
//! accuse themselves (`afr_selfheal_post_op_failure_accounting`), and sessions on
//! this host overrule the accusation by the [`Promotion`]'s stamps.

use serde::{Deserialize, Serialize};

use crate::image::layout::FileIndex;

use super::brick_port::{BrickPort, CopyState, Counter, FileCopies, PortError};
use super::brick_set::{BrickSet, Shape};
use super::names::Names;

/// Added to AFR's own counter of writes under way on the promoted copy: it makes this
/// copy the source of a heal in which no accuser is believed
/// (`afr_mark_biggest_witness_as_source`), and tells sessions elsewhere that the lost
/// copy may still come back. Clients that write count by one.
pub const WITNESS: i32 = 1 << 20;

/// Was the copy with this counter of writes under way promoted, and the lost one not
/// healed yet?
pub fn is_promoted(dirty: i32) -> bool {
    dirty >= WITNESS
}

/// What was promoted, kept for the day when the lost copy comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// When, in seconds since the epoch.
    pub at: u64,
    /// Child indices of the copies that were given up.
    pub lost: Vec<usize>,
    /// The values with which they accuse the promoted copy. Any other accusation of
    /// theirs is about something else and counts.
    pub stamps: Vec<i32>,
}

impl Promotion {
    /// Is a brick's counter against the promoted copy one that was given up?
    pub fn overrules(&self, child: usize, counter: i32) -> bool {
        self.lost.contains(&child) && self.stamps.contains(&counter)
    }
}

/// What to do; nothing is changed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Copies that were not reached: their newer data is given up.
    pub lost: BrickSet,
    /// Copies that were reached and are to be healed from the promoted one.
    pub stale: BrickSet,
    /// Who accuses the copy now.
    pub accusers: BrickSet,
    /// With which values.
    pub stamps: Vec<i32>,
}

/// Why a copy is not promoted; [`PromotionRefusal::told`] is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromotionRefusal {
    /// Fewer bricks than a quorum were reached: these were not.
    NoQuorum(BrickSet),
    /// The local brick was not reached.
    LocalAway(usize),
    /// These bricks have another file there than the local one.
    IdentitiesDiffer(BrickSet),
    /// Nobody says that the copy misses anything.
    NotStale(usize),
    /// Copies with everything are there.
    FreshReached(BrickSet),
    /// All copies are there, each accused by another.
    NobodyLost,
}

impl PromotionRefusal {
    /// What is wrong, where, and what to do.
    pub fn told(self, names: &Names) -> String {
        match self {
            Self::NoQuorum(away) => format!(
                "fewer bricks than a quorum are reached: {} may know more. Start them first",
                names.list(away)
            ),
            Self::LocalAway(local) => format!(
                "the process of the local brick {} is not reached. Start it: gluster volume start {} force",
                names.one(local),
                names.volume
            ),
            Self::IdentitiesDiffer(others) => format!(
                "{} has another file under the image's path (another gfid): resolve that with Gluster first",
                names.list(others)
            ),
            Self::NotStale(local) => {
                format!("the local copy {} is not stale: serve it", names.one(local))
            }
            Self::FreshReached(fresh) => format!(
                "the fresh copy is reached, on {}: serve the image there, or heal from it, and nothing is lost",
                names.list(fresh)
            ),
            Self::NobodyLost => format!(
                "no copy is lost: they accuse each other (split-brain). Choose one: gluster volume heal {} split-brain",
                names.volume
            ),
        }
    }
}

/// Decides over what the bricks said, `copies[i]` being child `i`'s answer.
///
/// # Errors
/// The [`PromotionRefusal`] that forbids it.
pub fn plan(shape: &Shape, copies: &[Option<CopyState>]) -> Result<Plan, PromotionRefusal> {
    let reached: BrickSet = (0..copies.len()).filter(|&i| copies[i].is_some()).collect();
    if !shape.is_quorum(reached) {
        let all: BrickSet = (0..copies.len()).collect();
        return Err(PromotionRefusal::NoQuorum(all.without(reached)));
    }
    let local = copies.get(shape.local).and_then(Option::as_ref);
    let local = local.ok_or(PromotionRefusal::LocalAway(shape.local))?;
    let is_other = |copy: &CopyState| copy.gfid != local.gfid;
    let others = (0..copies.len()).filter(|&i| copies[i].as_ref().is_some_and(is_other));
    let others: BrickSet = others.collect();
    if !others.is_empty() {
        return Err(PromotionRefusal::IdentitiesDiffer(others));
    }
    let accused: BrickSet = copies
        .iter()
        .flatten()
        .flat_map(|copy| copy.accuses().iter().collect::<Vec<_>>())
        .collect();
    if !accused.contains(shape.local) {
        return Err(PromotionRefusal::NotStale(shape.local));
    }
    let fresh = both(shape.copies(), reached).without(accused);
    if !fresh.is_empty() {
        return Err(PromotionRefusal::FreshReached(fresh));
    }
    let lost = shape.copies().without(reached);
    if lost.is_empty() {
        return Err(PromotionRefusal::NobodyLost);
    }
    let accusing = |copy: &CopyState| copy.pending.get(shape.local).copied().unwrap_or_default();
    let mut stamps: Vec<_> = copies.iter().flatten().map(accusing).collect();
    stamps.retain(|&counter| counter != 0);
    stamps.sort_unstable();
    stamps.dedup();
    let accuses = |i: &usize| copies[*i].as_ref().is_some_and(|copy| accusing(copy) != 0);
    Ok(Plan {
        lost,
        stale: both(shape.peers(), reached),
        accusers: (0..copies.len()).filter(accuses).collect(),
        stamps,
    })
}

/// The same for an image that may be several files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePlan {
    /// The files whose copy here is promoted, and how; of the others it misses nothing.
    pub files: Vec<(FileIndex, Plan)>,
    /// All of it as of one file.
    pub all: Plan,
}

/// Decides file by file over what the bricks said, in the layout's order. What forbids it for
/// one file does so for the image.
///
/// # Errors
/// The file, and why not.
pub fn plan_image(
    shape: &Shape,
    copies: &[FileCopies],
) -> Result<ImagePlan, (FileIndex, PromotionRefusal)> {
    let mut files = Vec::new();
    for (file, copies) in (0..).map(FileIndex).zip(copies) {
        match plan(shape, copies) {
            Ok(plan) => files.push((file, plan)),
            Err(PromotionRefusal::NotStale(_)) => {}
            Err(why) => return Err((file, why)),
        }
    }
    let plans = || files.iter().map(|(_, plan)| plan);
    let union = |of: fn(&Plan) -> BrickSet| plans().flat_map(|plan| of(plan).iter()).collect();
    let mut stamps: Vec<_> = plans()
        .flat_map(|plan| plan.stamps.iter().copied())
        .collect();
    stamps.sort_unstable();
    stamps.dedup();
    let all = Plan {
        lost: union(|plan| plan.lost),
        stale: union(|plan| plan.stale),
        accusers: union(|plan| plan.accusers),
        stamps,
    };
    match files.is_empty() {
        true => Err((FileIndex::BASE, PromotionRefusal::NotStale(shape.local))),
        false => Ok(ImagePlan { files, all }),
    }
}

fn both(a: BrickSet, b: BrickSet) -> BrickSet {
    a.iter().filter(|&brick| b.contains(brick)).collect()
}

/// The counters that a brick gets: first everybody else is accused, then the promoted
/// copy is not any more. Cut short in between, no copy is fresh, and none is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Added first, on every brick.
    pub accuse: Vec<(Counter, i32)>,
    /// Added when that is durable everywhere.
    pub acquit: Vec<(Counter, i32)>,
}

/// What to add to the counters of `brick`, which said `copy`. A stale copy is accused by
/// the promoted one's brick alone, so that no brick accuses itself: AFR would not believe
/// it about the lost copy.
pub fn changes(shape: &Shape, plan: &Plan, stamp: i32, brick: usize, copy: &CopyState) -> Changes {
    let now = |child: usize| copy.pending.get(child).copied().unwrap_or_default();
    let to = |child: usize, value: i32| (Counter::Pending(child), value.wrapping_sub(now(child)));
    let holds_data = shape.copies().contains(brick);
    let mut accuse: Vec<_> = plan.lost.iter().map(|child| to(child, stamp)).collect();
    // Named for the index, which looks at those named only.
    accuse.push((Counter::Pending(shape.local), 0));
    let mut acquit = vec![to(shape.local, 0)];
    acquit.extend(plan.lost.iter().map(|child| (Counter::Pending(child), 0)));
    for child in plan.stale.iter() {
        if brick == shape.local {
            accuse.push(to(child, stamp));
            acquit.push((Counter::Pending(child), 0));
        } else {
            acquit.push(to(child, 0));
        }
    }
    if holds_data && now(brick) == 0 {
        // AFR believes none of the bricks until all have accused.
        accuse.push((Counter::Pending(brick), stamp));
        let own = |(counter, _): &(Counter, i32)| *counter == Counter::Pending(brick);
        acquit.retain(|change| !own(change));
        acquit.push((Counter::Pending(brick), stamp.wrapping_neg()));
    }
    if brick == shape.local && !is_promoted(copy.dirty) {
        accuse.push((Counter::Dirty, WITNESS));
    }
    Changes { accuse, acquit }
}

/// Which of [`Changes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Everybody is accused.
    Accuse,
    /// The promoted copy is not any more. The [`Promotion`] has to be on record by then,
    /// and not before: what it overrules would be believed.
    Acquit,
}

/// Changes the counters of every reached brick, durably. Under the session's, the heal's
/// and the data lock.
///
/// # Errors
/// The first brick that failed, with its child index. All can be done again then.
pub fn carry_out(
    step: Step,
    all: &[(usize, Changes)],
    ports: &mut [Box<dyn BrickPort>],
) -> Result<(), (usize, PortError)> {
    for (brick, changes) in all {
        let changes = match step {
            Step::Accuse => &changes.accuse,
            Step::Acquit => &changes.acquit,
        };
        let Some(port) = ports.get_mut(*brick) else {
            continue;
        };
        port.add_to_counters(changes)
            .and_then(|()| port.fsync())
            .map_err(|error| (*brick, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
