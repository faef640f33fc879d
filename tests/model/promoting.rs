//! Promotion: a stale copy is made the fresh one, since the fresh one is gone for good.
//! The plan and the changes of each brick are the real ones (`promote.rs`).
//!
//! Under the locks of a quorum: first every brick that is reached accuses, then the
//! promoted copy is acquitted. XATTROP and FSYNC are one step; between bricks, in any
//! order, it can be killed. The holder of the copy that is away is gone, as the operator
//! says; it may come back later.

use bypass_blk::image::replica::brick_port::Counter as Named;
use bypass_blk::image::replica::brick_set::BrickSet;
use bypass_blk::image::replica::promotion::{Changes, Plan, changes, plan};

use super::daemon::{Daemon, Promotion};
use super::debt::copy_state;
use super::setting::{Protection, Setting};
use super::steps::Step;
use super::world::{BRICKS, Counter, World};

/// What can be promoted, or how a promotion goes on.
pub fn promotion_steps(setting: &Setting, world: &World, slot: usize, steps: &mut Vec<Step>) {
    if let Daemon::Promoting(promotion) = &world.daemons[slot] {
        let due = promotion.left.iter();
        steps.extend(due.map(|brick| Step::PromoteOn(slot, brick)));
        let landed = false;
        steps.push(Step::Kill { slot, landed });
    } else if world.promotes_left > 0 {
        for reached in setting.reachable(world, slot, false) {
            let Some(plan) = plan_of(setting, world, slot, reached) else {
                continue;
            };
            let lives = |s: &usize| {
                plan.lost.contains(setting.locals[*s]) && world.daemons[*s] != Daemon::Closed
            };
            if !(0..2).any(|s| lives(&s)) {
                steps.push(Step::Promote(slot, reached));
            }
        }
    }
}

fn plan_of(setting: &Setting, world: &World, slot: usize, reached: BrickSet) -> Option<Plan> {
    let rows = world.rows();
    let read = |i| reached.contains(i).then(|| copy_state(setting, &rows[i]));
    let copies: Vec<_> = (0..setting.bricks).map(read).collect();
    plan(&setting.shape(slot), &copies).ok()
}

/// Locks, plans and begins.
pub fn begin(setting: &Setting, world: &mut World, slot: usize, reached: BrickSet) {
    let Some(plan) = plan_of(setting, world, slot, reached) else {
        return;
    };
    world.promotes_left -= 1;
    setting.rim(world, slot).take_locks(reached);
    let data = world.bricks[setting.locals[slot]].data;
    let lost = world.acked & !data;
    world.acked &= data;
    let stamp = world.fresh_stamp();
    world.daemons[slot] = Daemon::Promoting(Promotion {
        acquits: false,
        reached,
        left: reached,
        read: world.rows(),
        stamp,
        lost,
    });
    if setting.lacks(Protection::RecordedLate) {
        record(world, slot, &plan);
    }
}

/// The accusations of the lost copy, there is one of them here, are overruled.
fn record(world: &mut World, slot: usize, plan: &Plan) {
    let stamp = plan
        .stamps
        .last()
        .and_then(|&stamp| Counter::try_from(stamp).ok());
    world.overruled[slot] = plan.lost.iter().next().zip(stamp);
}

/// Changes one brick. With the last one the promotion is done, and the locks go.
pub fn change(setting: &Setting, world: &mut World, slot: usize, brick: usize) {
    let Daemon::Promoting(promotion) = world.daemons[slot] else {
        return;
    };
    let left = promotion.left.without(BrickSet::only(brick));
    let shape = setting.shape(slot);
    let read = |i: usize| {
        promotion
            .reached
            .contains(i)
            .then(|| copy_state(setting, &promotion.read[i]))
    };
    let copies: Vec<_> = (0..setting.bricks).map(read).collect();
    let (Ok(plan), Some(Some(copy))) = (plan(&shape, &copies), copies.get(brick)) else {
        return;
    };
    let stamp = promotion.stamp.into();
    let Changes { accuse, acquit } = changes(&shape, &plan, stamp, brick, copy);
    add(
        setting,
        world,
        brick,
        if promotion.acquits { &acquit } else { &accuse },
    );
    let at = &mut world.bricks[brick];
    let own = setting.has_data(brick) && promotion.read[brick][brick] == 0;
    if own && setting.lacks(Protection::AllAccusedFirst) {
        at.stored[brick] = 0;
    }
    if setting.lacks(Protection::OldCopyAccused) {
        for lost in plan.lost.iter() {
            at.stored[lost] = 0;
        }
    }
    at.fsync();
    let (acquits, left) = match left.is_empty() && !promotion.acquits {
        true => (true, promotion.reached),
        false => (promotion.acquits, left),
    };
    if acquits && !promotion.acquits {
        record(world, slot, &plan);
    }
    world.daemons[slot] = Daemon::Promoting(Promotion {
        acquits,
        left,
        ..promotion
    });
    if left.is_empty() {
        world.given_up |= promotion.lost;
        world.daemon_gone(slot);
    }
}

fn add(setting: &Setting, world: &mut World, brick: usize, changes: &[(Named, i32)]) {
    let at = &mut world.bricks[brick];
    for &(counter, change) in changes {
        let change = Counter::try_from(change);
        match counter {
            Named::Dirty => at.witness = !setting.lacks(Protection::PromotedWitness),
            Named::Pending(child) if child < BRICKS => {
                at.stored[child] += change.unwrap_or_default();
            }
            Named::Pending(_) => {}
        }
    }
}
