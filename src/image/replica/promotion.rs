//! Making a stale copy the fresh one, when the copy with the newer data is gone for good.
//!
//! [`plan`] decides, over what the reachable bricks say under their locks, whether that
//! may be done at all, and what every counter becomes; [`carry_out`] changes them. The
//! lost copy, when it comes back, still accuses this one; the counters are such that
//! AFR makes it a sink all the same, for it is accused by a quorum of bricks that do not
//! accuse themselves (`afr_selfheal_post_op_failure_accounting`), and sessions on
//! this host overrule the accusation by the [`Promotion`]'s stamps.

use serde::{Deserialize, Serialize};

use super::brick_port::{BrickPort, CopyState, Counter, PortError};
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
mod tests {
    use super::*;
    use crate::image::replica::brick_set::SetChange;
    use crate::image::replica::recording_port::{Change, Journal, RecordingPort};

    /// Brick 1 is to be promoted, 0 is gone, 2 is stale too.
    const SHAPE: Shape = Shape {
        bricks: 3,
        local: 1,
        arbiter: None,
        since: SetChange::NONE,
    };
    const OLD: i32 = 9;
    const NEW: i32 = 7;

    fn copy(pending: [i32; 3]) -> Option<CopyState> {
        Some(CopyState {
            gfid: uuid::Uuid::nil(),
            size: 0,
            pending: pending.to_vec(),
            dirty: 0,
            fenced: false,
        })
    }

    fn left_behind() -> [Option<CopyState>; 3] {
        [None, copy([0, OLD, OLD]), copy([0, OLD, OLD])]
    }

    fn apply(copy: &mut CopyState, changes: &[(Counter, i32)]) {
        for (counter, change) in changes {
            match counter {
                Counter::Pending(child) => copy.pending[*child] += change,
                Counter::Dirty => copy.dirty += change,
            }
        }
    }

    #[test]
    fn only_a_stale_copy_whose_fresh_one_is_gone_is_promoted() {
        assert!(plan(&SHAPE, &left_behind()).is_ok());
        let refused = |copies: [Option<CopyState>; 3]| plan(&SHAPE, &copies).unwrap_err();
        let accusing = || copy([0, OLD, OLD]);
        let away = [0, 2].into_iter().collect();
        assert_eq!(
            refused([None, accusing(), None]),
            PromotionRefusal::NoQuorum(away)
        );
        assert_eq!(
            refused([accusing(), None, accusing()]),
            PromotionRefusal::LocalAway(1)
        );
        assert_eq!(
            refused([None, copy([0; 3]), copy([0; 3])]),
            PromotionRefusal::NotStale(1)
        );
        let mut other = accusing();
        other.as_mut().unwrap().gfid = uuid::Uuid::from_u128(1);
        assert_eq!(
            refused([None, accusing(), other]),
            PromotionRefusal::IdentitiesDiffer(BrickSet::only(2))
        );
        assert_eq!(
            refused([accusing(), accusing(), accusing()]),
            PromotionRefusal::FreshReached(BrickSet::only(0))
        );
        assert_eq!(
            refused([None, copy([0, OLD, 0]), copy([0; 3])]),
            PromotionRefusal::FreshReached(BrickSet::only(2))
        );
        let split = || copy([OLD, OLD, OLD]);
        assert_eq!(
            refused([split(), split(), split()]),
            PromotionRefusal::NobodyLost
        );
    }

    #[test]
    fn afterwards_a_quorum_that_does_not_accuse_itself_accuses_the_lost_copy_alone() {
        let mut copies = left_behind();
        let plan = plan(&SHAPE, &copies).unwrap();
        assert_eq!(plan.stamps, [OLD]);
        for (brick, copy) in copies.iter_mut().enumerate() {
            if let Some(copy) = copy {
                let changes = changes(&SHAPE, &plan, NEW, brick, copy);
                apply(copy, &changes.accuse);
                assert!(
                    copy.accuses().contains(1),
                    "not acquitted before all accuse"
                );
                assert!(copy.accuses().contains(0));
                apply(copy, &changes.acquit);
            }
        }
        let mut promoted = copy([NEW, 0, NEW]).unwrap();
        promoted.dirty = WITNESS;
        assert_eq!(copies, [None, Some(promoted), copy([NEW, 0, 0])]);
    }

    #[test]
    fn nobody_is_believed_until_all_have_accused() {
        // The other stale copy's brick accuses only the promoted one so far.
        let mut copies = [None, copy([0, OLD, OLD]), copy([0, OLD, 0])];
        let plan = plan(&SHAPE, &copies).unwrap();
        for (brick, copy) in copies.iter_mut().enumerate() {
            if let Some(copy) = copy {
                let changes = changes(&SHAPE, &plan, NEW, brick, copy);
                apply(copy, &changes.accuse);
                assert!(copy.accuses().contains(brick));
                apply(copy, &changes.acquit);
            }
        }
        assert_eq!(copies[2], copy([NEW, 0, 0]));
    }

    #[test]
    fn every_counter_that_matters_to_the_index_is_named_each_time() {
        let copies = left_behind();
        let plan = plan(&SHAPE, &copies).unwrap();
        for (brick, copy) in copies.iter().enumerate() {
            let Some(copy) = copy else { continue };
            let changes = changes(&SHAPE, &plan, NEW, brick, copy);
            for step in [changes.accuse, changes.acquit] {
                let named = |child| step.iter().any(|(c, _)| *c == Counter::Pending(child));
                assert!(named(0) && named(1), "{step:?}");
            }
        }
    }

    #[test]
    fn only_the_lost_copy_s_old_accusation_is_overruled() {
        let promotion = Promotion {
            at: 0,
            lost: vec![0],
            stamps: vec![OLD],
        };
        assert!(promotion.overrules(0, OLD));
        assert!(!promotion.overrules(0, OLD + 1), "it wrote on");
        assert!(!promotion.overrules(2, OLD));
        assert!(!promotion.overrules(0, 0));
    }

    #[test]
    fn each_step_changes_all_bricks_durably_and_ends_at_the_first_that_fails() {
        let copies = left_behind();
        let plan = plan(&SHAPE, &copies).unwrap();
        let all: Vec<_> = copies
            .iter()
            .enumerate()
            .filter_map(|(i, copy)| Some((i, changes(&SHAPE, &plan, NEW, i, copy.as_ref()?))))
            .collect();
        let run = |step, failing| {
            let journal = Journal::default();
            let port = |brick| -> Box<dyn BrickPort> {
                Box::new(RecordingPort {
                    brick,
                    journal: journal.clone(),
                    fails: failing == Some(brick),
                    ..RecordingPort::default()
                })
            };
            let done = carry_out(step, &all, &mut [0, 1, 2].map(port));
            (
                done.map_err(|(brick, _)| brick),
                journal.lock().unwrap().clone(),
            )
        };
        let [(_, first), (_, second)] = &all[..] else {
            panic!("{all:?}");
        };
        let steps = [
            (Step::Accuse, &first.accuse, &second.accuse),
            (Step::Acquit, &first.acquit, &second.acquit),
        ];
        for (step, first, second) in steps {
            let on = |brick, changes: &Vec<_>| {
                [
                    (brick, Change::Add(changes.clone())),
                    (brick, Change::Durable),
                ]
            };
            let (done, journal) = run(step, None);
            assert_eq!(done, Ok(()));
            assert_eq!(journal, [on(1, first), on(2, second)].concat());
            assert_eq!(run(step, Some(1)), (Err(1), Vec::new()));
        }
    }
}
