//! Promotion: a stale copy is made the fresh one, since the fresh one is gone for good.
//!
//! Under the locks of a quorum, in three stages, each durable before the next:
//! 1. every brick that is reached accuses every copy, the one that is away and its own
//!    included: nobody can open any, and AFR believes none of these bricks;
//! 2. those of other copies accuse the one that is away only;
//! 3. the promoted copy's own accuses all others.
//!
//! XATTROP and FSYNC are one step; between bricks it can be killed.

use bypass_blk::image::bricks::BrickSet;

use super::rim::decision;
use super::setting::{Protection, Setting};
use super::steps::Step;
use super::world::{Daemon, Promotion, Stage, World};

/// What can be promoted, or how a promotion goes on.
pub fn promotion_steps(setting: &Setting, world: &World, slot: usize, steps: &mut Vec<Step>) {
    if let Daemon::Promoting(promotion) = &world.daemons[slot] {
        let due = promotion.left.iter();
        steps.extend(due.map(|brick| Step::PromoteOn(slot, brick)));
        steps.push(Step::Kill {
            slot,
            landed: false,
        });
    } else if world.promotes_left > 0 {
        let sets = setting.reachable(world, slot, false).into_iter();
        let sets = sets.filter(|&reached| away(setting, world, slot, reached).is_some());
        steps.extend(sets.map(|reached| Step::Promote(slot, reached)));
    }
}

/// The copies with newer data, if none of them is reached and the local one is stale.
fn away(setting: &Setting, world: &World, slot: usize, reached: BrickSet) -> Option<BrickSet> {
    decision(setting, world, slot, reached).err()?;
    let accused = |&copy: &usize| reached.iter().any(|i| world.bricks[i].stored[copy] != 0);
    let copies = setting.shape(slot).copies();
    let stale: BrickSet = copies.iter().filter(accused).collect();
    let fresh = copies.without(stale);
    let reached_fresh = reached.iter().any(|i| fresh.contains(i));
    (stale.contains(setting.locals[slot]) && !fresh.is_empty() && !reached_fresh).then_some(fresh)
}

/// Locks, and records what is overruled.
pub fn begin(setting: &Setting, world: &mut World, slot: usize, reached: BrickSet) {
    let Some(away) = away(setting, world, slot, reached) else {
        return;
    };
    world.promotes_left -= 1;
    setting.rim(world, slot).take_locks(reached);
    let local = setting.locals[slot];
    let accusations = reached.iter().map(|i| world.bricks[i].stored[local]);
    let accusation = accusations.max().unwrap_or_default();
    world.overruled[slot] = away.iter().next().map(|brick| (brick, accusation));
    let data = world.bricks[local].data;
    let lost = world.acked & !data;
    world.acked &= data;
    let stamp = world.fresh_stamp();
    let first = match setting.lacks(Protection::AllAccusedFirst) {
        true => Stage::Others,
        false => Stage::All,
    };
    world.daemons[slot] = Daemon::Promoting(Promotion {
        stage: first,
        reached,
        left: BrickSet::EMPTY,
        away,
        stamp,
        lost,
    });
    begin_stage(setting, world, slot, first);
}

fn begin_stage(setting: &Setting, world: &mut World, slot: usize, stage: Stage) {
    let Daemon::Promoting(promotion) = &mut world.daemons[slot] else {
        return;
    };
    let local = BrickSet::only(setting.locals[slot]);
    promotion.stage = stage;
    promotion.left = match stage {
        Stage::All => promotion.reached,
        Stage::Others => promotion.reached.without(local),
        Stage::Own => local,
    };
    if promotion.left.is_empty() {
        begin_stage(setting, world, slot, Stage::Own);
    }
}

/// Changes one brick. With the last one the promotion is done, and the locks go.
pub fn change(setting: &Setting, world: &mut World, slot: usize, brick: usize) {
    let Daemon::Promoting(promotion) = &mut world.daemons[slot] else {
        return;
    };
    promotion.left.remove(brick);
    let promotion = *promotion;
    let shape = setting.shape(slot);
    let at = &mut world.bricks[brick];
    for copy in shape.copies().iter() {
        let accused = match (promotion.away.contains(copy), promotion.stage) {
            (true, _) => !setting.lacks(Protection::OldCopyAccused),
            (false, Stage::All) => true,
            (false, Stage::Others) => false,
            (false, Stage::Own) => copy != shape.local,
        };
        at.stored[copy] = if accused { promotion.stamp } else { 0 };
    }
    at.witness = brick == shape.local && !setting.lacks(Protection::PromotedWitness);
    at.fsync();
    if !promotion.left.is_empty() {
        return;
    }
    match promotion.stage {
        Stage::All => begin_stage(setting, world, slot, Stage::Others),
        Stage::Others => begin_stage(setting, world, slot, Stage::Own),
        Stage::Own => {
            world.given_up |= promotion.lost;
            world.daemon_gone(slot);
        }
    }
}
