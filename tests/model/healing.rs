//! Our own healers: what `heal/engine.rs` and `brick_client/heal_peer.rs` do to one extent
//! at a time.
//!
//! A healer is a process of its own: it outlives its session, does not know at once
//! that it is over, and may be killed alone. It looks for its session's record when it
//! takes the copy lock, and for its session's mark before each copy.

use super::setting::{Protection, Setting};
use super::steps::Step;
use super::world::{Copier, Copy, Lease, StockHealer, World};

/// What the healer of `slot`, and what it left at the bricks, can do.
pub fn healer_steps(setting: &Setting, world: &World, slot: usize, steps: &mut Vec<Step>) {
    if !setting.healing {
        return;
    }
    let busy = world.healers[slot];
    for peer in setting.shape(slot).peers().iter() {
        match world.bricks[peer].copier {
            None if may_attach(setting, world, slot, peer) => {
                steps.push(Step::Attach { slot, peer });
            }
            Some(copier) if copier.slot == slot => {
                if copier.write.is_some() {
                    steps.push(Step::LandCopy(peer));
                }
                if copier.gone {
                    steps.push(Step::CopierGone(peer));
                } else if busy.is_none() {
                    steps.push(Step::Detach(peer));
                    copies_to_send(setting, world, slot, peer, steps);
                }
            }
            _ => {}
        }
    }
    if busy.is_some_and(|copy| copy.answered) {
        steps.push(Step::EndCopy(slot));
    }
    if busy.is_some() && world.faults_left > 0 {
        steps.push(Step::KillHealer(slot));
    }
}

/// Under the copy lock: does the session's record stand? What the session last said of
/// its marks may be old, so it counts for nothing.
fn may_attach(setting: &Setting, world: &World, slot: usize, peer: usize) -> bool {
    let Some((_, map)) = world.session(slot).zip(world.maps[slot]) else {
        return false;
    };
    let at = &world.bricks[peer];
    let recorded = |lease: Lease| lease.slot == slot && lease.published;
    let may = setting.lacks(Protection::RecordChecked) || at.lease.is_some_and(recorded);
    at.up && may && !map.is_clean(peer)
}

fn copies_to_send(
    setting: &Setting,
    world: &World,
    slot: usize,
    peer: usize,
    steps: &mut Vec<Step>,
) {
    let Some(map) = &world.maps[slot] else { return };
    let data_locked = |s: usize| world.session(s).is_some_and(|s| s.has_data_lock(peer));
    let undoing = world.stock != StockHealer::Idle;
    let stamped = map.explains(world.bricks[peer].stored[peer]);
    let unread = setting.lacks(Protection::StampUnderLock);
    if undoing || data_locked(0) || data_locked(1) || !(stamped || unread) {
        return;
    }
    let in_flight = world.session(slot).and_then(|session| session.in_flight);
    for extent in 0..setting.extents {
        let dirty = map.dirty[peer] & 1 << extent != 0;
        let written = in_flight.is_some_and(|write| write % setting.extents == extent);
        if dirty && !written {
            steps.push(Step::SendCopy { slot, peer, extent });
        }
    }
}

/// Takes the copy lock.
pub fn attach(world: &mut World, slot: usize, peer: usize) {
    world.bricks[peer].copier = Some(Copier {
        slot,
        orphan: false,
        gone: false,
        write: None,
    });
}

/// Takes the data lock, reads the peer's own counter and then the extent, and sends that.
pub fn send_copy(setting: &Setting, world: &mut World, slot: usize, peer: usize, extent: u8) {
    let value = world.bricks[setting.locals[slot]].data & setting.writes_to(extent);
    if let Some(copier) = &mut world.bricks[peer].copier {
        copier.write = Some((extent, value));
    }
    world.healers[slot] = Some(Copy {
        peer,
        extent,
        answered: false,
        intact: true,
    });
}

/// The WRITE is carried out, and the data lock given back.
pub fn land_copy(setting: &Setting, world: &mut World, brick: usize) {
    let at = &mut world.bricks[brick];
    let Some(copier) = &mut at.copier else {
        return;
    };
    if let Some((extent, value)) = copier.write.take() {
        at.data = at.data & !setting.writes_to(extent) | value;
    }
    if !copier.gone
        && let Some(copy) = &mut world.healers[copier.slot]
    {
        copy.answered = true;
    }
}

/// The peer's FSYNC is answered. The extent is clean if no write came in.
pub fn end_copy(setting: &Setting, world: &mut World, slot: usize) {
    let Some(copy) = world.healers[slot].take() else {
        return;
    };
    if !setting.lacks(Protection::PeerFsynced) {
        world.bricks[copy.peer].fsync();
    }
    let counts = copy.intact || setting.lacks(Protection::CopyingFlag);
    if let Some(map) = world.maps[slot].as_mut().filter(|_| counts) {
        map.dirty[copy.peer] &= !(1 << copy.extent);
    }
}
