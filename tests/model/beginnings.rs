//! The settings that the tests begin with, and what was done before in some of them.

use bypass_blk::image::replica::brick_set::BrickSet;

use super::protocol::setting::Setting;
use super::protocol::steps::Step;

pub const TWO: Setting = Setting::TWO_BRICKS;
pub const THREE: Setting = Setting::THREE_BRICKS;
pub const HEALING_TWO: Setting = Setting {
    healing: true,
    ..TWO
};
pub const HEALING_THREE: Setting = Setting {
    healing: true,
    writes: 1,
    faults: 0,
    ..THREE
};
pub const PROMOTING: Setting = Setting {
    promotes: 1,
    faults: 0,
    ..THREE
};

/// The marks stand, and are to be stored again.
pub const MARKED_AGAIN: Setting = Setting {
    remarks: 1,
    after: || written(0, &[0, 1]),
    ..TWO
};
pub const ONE_FAULT: Setting = Setting { faults: 1, ..TWO };
pub const HEALING: Setting = Setting {
    faults: 1,
    ..HEALING_TWO
};
pub const CLIENT: Setting = Setting {
    clients: 1,
    faults: 0,
    ..HEALING_TWO
};
pub const LOST_ONE: Setting = Setting {
    faults: 2,
    writes: 2,
    after: written_and_lost_one,
    ..HEALING_THREE
};
pub const BESIDE: Setting = Setting {
    faults: 1,
    after: written_beside_a_clean_session,
    ..HEALING_THREE
};
pub const STUCK: Setting = Setting {
    faults: 1,
    writes: 2,
    stuck: 1,
    after: one_peer_healed,
    ..HEALING_THREE
};
pub const IN_TURNS: Setting = Setting {
    faults: 2,
    writes: 2,
    after: one_peer_back_for_the_other,
    ..HEALING_THREE
};
pub const WRITTEN_ON_ONE: Setting = Setting {
    after: || written(0, &[0]),
    ..HEALING_TWO
};

/// A session opens on these bricks, marks them and writes.
fn written(slot: usize, bricks: &[usize]) -> Vec<Step> {
    let all: BrickSet = bricks.iter().copied().collect();
    let local = THREE.locals[slot];
    let mut steps = vec![
        Step::Open(slot, all),
        Step::FinishOpen(slot),
        Step::WantWrite(slot),
        Step::Probe(slot),
    ];
    let others = bricks.iter().copied().filter(|&brick| brick != local);
    for brick in others.chain([local]) {
        steps.extend([Step::Store(slot, brick), Step::Sync(slot, brick)]);
    }
    steps.extend([
        Step::EndRound(slot),
        Step::BeginWrite(slot),
        Step::LandWrite(slot),
    ]);
    steps
}

/// A session with all three bricks loses the last one.
fn written_and_lost_one() -> Vec<Step> {
    let mut steps = written(0, &[0, 1, 2]);
    steps.extend([Step::SessionDrops(0, 2), Step::Hear(0)]);
    steps
}

/// A session heals and unmarks one peer while the other is away; then it is the other
/// way round. So the one that is away is believed, and accuses the one that is back.
fn one_peer_back_for_the_other() -> Vec<Step> {
    let mut steps = written(0, &[0, 1, 2]);
    steps.extend([
        Step::SessionDrops(0, 1),
        Step::Hear(0),
        Step::Attach { slot: 0, peer: 2 },
        Step::SendCopy {
            slot: 0,
            peer: 2,
            extent: 0,
        },
        Step::LandCopy(2),
        Step::EndCopy(0),
        Step::Detach(2),
        Step::WantUnmark(0),
        Step::Probe(0),
        Step::Store(0, 0),
        Step::Sync(0, 0),
        Step::Store(0, 2),
        Step::Sync(0, 2),
        Step::EndRound(0),
        Step::SessionDrops(0, 2),
        Step::Hear(0),
        Step::GhostGone(1),
        Step::Rejoin(0, 1),
        Step::Hear(0),
    ]);
    steps
}

/// A session heals one peer, and not the other, which it holds: the marks against the first
/// are about to go.
fn one_peer_healed() -> Vec<Step> {
    let mut steps = written(0, &[0, 1, 2]);
    steps.extend([
        Step::Attach { slot: 0, peer: 1 },
        Step::SendCopy {
            slot: 0,
            peer: 1,
            extent: 0,
        },
        Step::LandCopy(1),
        Step::EndCopy(0),
        Step::Detach(1),
    ]);
    steps
}

/// A session lost its own brick before it wrote, and another wrote on that and its own.
fn written_beside_a_clean_session() -> Vec<Step> {
    let both = [0, 2].into_iter().collect();
    let mut steps = vec![
        Step::Open(0, both),
        Step::FinishOpen(0),
        Step::BrickDrops(0, 0),
    ];
    steps.extend(written(1, &[0, 1]));
    steps
}
