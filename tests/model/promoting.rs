//! Promotion: a stale copy is made the fresh one, since the fresh one is gone for good.
//!
//! Under the locks of a quorum, on every brick that is reached: the copies that are away
//! are accused; the other stale copies are accused on the promoted copy's brick only, so
//! that they do not accuse themselves and are believed; the promoted copy is accused no
//! more. XATTROP and FSYNC are one step; between bricks it can be killed.

use bypass_blk::image::bricks::BrickSet;

use super::rim::decision;
use super::setting::{Protection, Setting};
use super::steps::Step;
use super::world::{Daemon, Promotion, World};

/// What can be promoted, or how a promotion goes on.
pub fn promotion_steps(setting: &Setting, world: &World, slot: usize, steps: &mut Vec<Step>) {
    if let Daemon::Promoting(promotion) = &world.daemons[slot] {
        let local = setting.locals[slot];
        let others = promotion.left.without(BrickSet::only(local));
        let last = others.is_empty() || setting.lacks(Protection::PromotedLast);
        let due = promotion.left.iter().filter(|&i| i != local || last);
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
    world.daemons[slot] = Daemon::Promoting(Promotion {
        left: reached,
        away,
        stamp,
        lost,
    });
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
        let old = promotion.away.contains(copy) && !setting.lacks(Protection::OldCopyAccused);
        let stale = brick == shape.local && copy != shape.local;
        at.stored[copy] = match old || (stale && !promotion.away.contains(copy)) {
            true => promotion.stamp,
            false => 0,
        };
    }
    at.witness = brick == shape.local && !setting.lacks(Protection::PromotedWitness);
    at.fsync();
    if promotion.left.is_empty() {
        world.given_up |= promotion.lost;
        world.daemon_gone(slot);
    }
}
