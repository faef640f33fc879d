//! Our own healers: what `heal/engine.rs` and `heal/gluster_peer.rs` do to one extent
//! at a time.
//!
//! A healer is a process of its own: it outlives its session, does not know at once
//! that it is over, and may be killed alone. Copy lock and data lock are one here, held
//! from before the read until the WRITE was carried out; in reality the copy lock is
//! held longer, which keeps others away for longer.

use bypass_blk::image::machine::Phase;

use super::setting::{Protection, Setting};
use super::steps::Step;
use super::world::{Copier, Copy, Lease, Session, World};

/// What the healer of `slot`, and what it left at the bricks, can do.
pub fn healer_steps(setting: &Setting, world: &World, slot: usize, steps: &mut Vec<Step>) {
    if !setting.healing {
        return;
    }
    for brick in 0..setting.bricks {
        if let Some(copier) = world.bricks[brick].copier.filter(|c| c.slot == slot) {
            steps.push(Step::LandCopy(brick));
            if copier.gone {
                steps.push(Step::CopierGone(brick));
            }
        }
    }
    match world.healers[slot] {
        Some(copy) => {
            if copy.answered {
                steps.push(Step::EndCopy(slot));
            }
            if world.faults_left > 0 {
                steps.push(Step::KillHealer(slot));
            }
        }
        None => copies_to_send(setting, world, slot, steps),
    }
}

fn copies_to_send(setting: &Setting, world: &World, slot: usize, steps: &mut Vec<Step>) {
    let Some(map) = &world.maps[slot] else { return };
    let in_flight = world.session(slot).and_then(|session| session.in_flight);
    for peer in setting.shape(slot).peers().iter() {
        if !may_copy_to(setting, world, slot, peer) {
            continue;
        }
        for extent in 0..setting.extents {
            let dirty = map.dirty[peer] & 1 << extent != 0;
            let written = in_flight.is_some_and(|write| write % setting.extents == extent);
            if dirty && !written {
                steps.push(Step::SendCopy { slot, peer, extent });
            }
        }
    }
}

/// Are the locks to be had, does the session's record stand, and then: is the session
/// still dirty?
fn may_copy_to(setting: &Setting, world: &World, slot: usize, peer: usize) -> bool {
    let at = &world.bricks[peer];
    let data_locked = |s: usize| world.session(s).is_some_and(|s| s.has_data_lock(peer));
    if !at.up || at.is_copied_to() || at.healed || data_locked(0) || data_locked(1) {
        return false;
    }
    let recorded = |lease: Lease| lease.slot == slot && lease.published;
    let record = setting.lacks(Protection::RecordChecked) || at.lease.is_some_and(recorded);
    let stands = |session: &Session| {
        session.machine.phase() == &Phase::Dirty || setting.lacks(Protection::MarksStand)
    };
    record && world.session(slot).is_some_and(stands)
}

/// Locks, reads, and sends the WRITE.
pub fn send_copy(setting: &Setting, world: &mut World, slot: usize, peer: usize, extent: u8) {
    let local = world.bricks[setting.locals[slot]].data;
    world.bricks[peer].copier = Some(Copier {
        slot,
        orphan: false,
        gone: false,
        extent,
        value: local & setting.writes_to(extent),
    });
    world.healers[slot] = Some(Copy {
        peer,
        extent,
        answered: false,
        intact: true,
    });
}

/// The WRITE is carried out, and the locks are given back.
pub fn land_copy(setting: &Setting, world: &mut World, brick: usize) {
    let at = &mut world.bricks[brick];
    let Some(copier) = at.copier.take() else {
        return;
    };
    at.data = at.data & !setting.writes_to(copier.extent) | copier.value;
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
