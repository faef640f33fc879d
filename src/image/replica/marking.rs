//! One round of marking: every peer is accused, durably and with this session's
//! stamp, on as many bricks as can be reached.
//!
//! Called by the session thread when the first write waits and when a brick
//! comes back without marks, under AFR's data lock ([`super::data_lock`]). It
//! changes no state of the session.

use std::time::Duration;

use super::brick_port::{BrickPort, CopyState, Counter, PortError};
use super::brick_set::{BrickSet, Shape};
use super::brick_worker::Team;
use super::data_lock::{self, wait};

/// How long a round waits on one brick for other clients' data locks.
const DATA_LOCK_LIMIT: Duration = Duration::from_secs(10);

/// What is known before a round.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Bricks whose marks stand already.
    pub marked: BrickSet,
    /// Bricks whose accusation of the local copy is of what is over, and goes.
    pub overruled: BrickSet,
}

/// What a round achieved.
#[derive(Debug, Default)]
pub struct MarkingRound {
    /// Bricks that now durably accuse every peer.
    pub marked: BrickSet,
    /// Bricks that failed, and how. Their connections must be dropped: what locks or
    /// half-done changes they hold is unknown.
    pub failed: Vec<(usize, PortError)>,
    /// Bricks where another client kept the data lock; they are as they were.
    pub busy: Vec<(usize, PortError)>,
    /// A brick that accuses the local copy. If set, nothing was marked.
    pub local_accused_by: Option<usize>,
    /// The copies as they were read under the lock, marks added.
    pub copies: Vec<(usize, CopyState)>,
    /// Bricks of which nobody knows what they say now.
    pub unsure: BrickSet,
}

/// Runs a round on `bricks`. `workers[i]` is child `i`'s. `ready` is told what the
/// bricks said before any counter is changed, and gives the stamp to store; `None`:
/// nothing may be marked.
///
/// The local brick comes last, and only if a quorum is marked with it, counting
/// the marks that stand already: a local copy that accuses all others though nothing was written stands
/// against whoever writes to another copy while we are cut off, and stock Gluster
/// cannot tell then which of the two is newer.
pub fn mark(
    shape: &Shape,
    team: Team<'_>,
    bricks: BrickSet,
    standing: Standing,
    ready: impl FnOnce(&[(usize, CopyState)]) -> Option<i32>,
) -> MarkingRound {
    let mut held = data_lock::Round::begin(team, bricks, DATA_LOCK_LIMIT);
    let mut round = MarkingRound::default();
    // Only a quorum that answers now, under its locks, can overrule: we may have lost
    // locks that we believe to hold.
    let answered: BrickSet = held.copies.iter().map(|(brick, _)| *brick).collect();
    let known = shape.is_quorum(answered.without(standing.overruled));
    let accuses_local = |(brick, copy): &&(usize, CopyState)| {
        let over = known && standing.overruled.contains(*brick);
        copy.accuses().contains(shape.local) && !over
    };
    round.local_accused_by = held.copies.iter().find(accuses_local).map(|(i, _)| *i);
    if round.local_accused_by.is_none()
        && let Some(stamp) = ready(&held.copies)
    {
        let local = BrickSet::only(shape.local);
        let others = bricks.without(local);
        store(shape, team, stamp, others, &mut held, &mut round.marked);
        let with_local = round
            .marked
            .iter()
            .chain(standing.marked.iter())
            .chain(local.iter());
        if shape.is_quorum(with_local.collect()) {
            store(shape, team, stamp, local, &mut held, &mut round.marked);
        }
    }
    held.end(team);
    round.copies = held.copies;
    round.unsure = held.unsure;
    round.failed = held.failed;
    round.busy = held.busy;
    round
}

fn store(
    shape: &Shape,
    team: Team<'_>,
    stamp: i32,
    bricks: BrickSet,
    held: &mut data_lock::Round,
    marked: &mut BrickSet,
) {
    let asked: Vec<_> = held
        .copies
        .iter()
        .filter(|(brick, _)| bricks.contains(*brick))
        .filter_map(|(brick, copy)| {
            let changes = changes(shape, copy, stamp);
            let worker = team.get(*brick)?;
            Some((*brick, worker.ask(move |port| store_on(port, &changes))))
        })
        .collect();
    for (brick, answer) in asked {
        match wait(answer) {
            Ok(()) => marked.insert(brick),
            Err(error) => held.fail_change(brick, error),
        }
    }
    for (_, copy) in held.copies.iter_mut().filter(|(i, _)| marked.contains(*i)) {
        for peer in shape.peers().iter() {
            if let Some(counter) = copy.pending.get_mut(peer) {
                *counter = stamp;
            }
        }
        if let Some(counter) = copy.pending.get_mut(shape.local) {
            *counter = 0;
        }
    }
}

/// What makes each counter the stamp, and that of the local copy zero. A counter that has it is named too, for the
/// index.
fn changes(shape: &Shape, copy: &CopyState, stamp: i32) -> Vec<(Counter, i32)> {
    let change = |peer: usize| {
        let counter = copy.pending.get(peer).copied().unwrap_or_default();
        (Counter::Pending(peer), stamp.wrapping_sub(counter))
    };
    let mut changes: Vec<_> = shape.peers().iter().map(change).collect();
    if copy.accuses().contains(shape.local) {
        let accused = copy.pending.get(shape.local).copied().unwrap_or_default();
        changes.push((Counter::Pending(shape.local), accused.wrapping_neg()));
    }
    changes
}

/// XATTROP is not durable by itself, so the fsync is due even where nothing had
/// to be added: an earlier round may have been cut short before it.
fn store_on(port: &mut dyn BrickPort, changes: &[(Counter, i32)]) -> Result<(), PortError> {
    port.add_to_counters(changes)?;
    port.fsync()
}
