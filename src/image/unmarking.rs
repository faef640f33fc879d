//! One round of removing marks against peers that miss nothing.
//!
//! Called by the session thread when a healer asks for it, under AFR's data lock
//! ([`super::data_lock`]). It does not judge whether a peer misses anything: the
//! caller does, at the one moment when it can be known. It changes no state of the
//! session.

use std::time::Duration;

use super::bricks::{BrickSet, Shape};
use super::data_lock::{self, wait};
use super::port::{BrickPort, CopyState, Counter, PortError};
use super::worker::Worker;

/// How long a round waits on one brick for other clients' data locks. Nothing is
/// lost by trying again later.
const DATA_LOCK_LIMIT: Duration = Duration::from_secs(2);

/// Locks and reads every brick on which the session's locks are. The round has to be
/// ended by [`data_lock::Round::end`].
pub fn begin(workers: &[Worker], held: BrickSet) -> data_lock::Round {
    data_lock::Round::begin(workers, held, DATA_LOCK_LIMIT)
}

/// Removes the marks against `equal` from every brick of the round (against all
/// peers: AFR's own counter of writes under way goes too). Only with every brick of the
/// session in the round, the gate closed, and nothing dirty for these peers.
///
/// The removal is made durable: a mark that came back after a power cut, when the
/// locks are long gone, could accuse a copy that was written to since.
pub fn remove(shape: &Shape, workers: &[Worker], equal: BrickSet, locked: &mut data_lock::Round) {
    let asked: Vec<_> = locked
        .copies
        .iter()
        .filter_map(|(brick, copy)| {
            let changes = changes(shape, copy, equal);
            let worker = workers.get(*brick)?;
            Some((*brick, worker.ask(move |port| remove_on(port, &changes))))
        })
        .collect();
    for (brick, answer) in asked {
        match wait(answer) {
            Ok(()) => note_removal(&mut locked.copies, brick, equal, shape),
            Err(error) => locked.fail(brick, error),
        }
    }
}

/// What makes the counters against `equal` zero. The others are named too, for the
/// index.
fn changes(shape: &Shape, copy: &CopyState, equal: BrickSet) -> Vec<(Counter, i32)> {
    let change = |peer: usize| {
        let counter = copy.pending.get(peer).copied().unwrap_or_default();
        let goes = equal.contains(peer);
        let change = if goes { counter.wrapping_neg() } else { 0 };
        (Counter::Pending(peer), change)
    };
    let mut changes: Vec<_> = shape.peers().iter().map(change).collect();
    if equal.covers(shape.peers()) && copy.dirty != 0 {
        changes.push((Counter::Dirty, copy.dirty.wrapping_neg()));
    }
    changes
}

fn remove_on(port: &mut dyn BrickPort, changes: &[(Counter, i32)]) -> Result<(), PortError> {
    port.add_to_counters(changes)?;
    port.fsync()
}

fn note_removal(copies: &mut [(usize, CopyState)], brick: usize, equal: BrickSet, shape: &Shape) {
    for (_, copy) in copies.iter_mut().filter(|(known, _)| *known == brick) {
        for peer in equal.iter() {
            if let Some(counter) = copy.pending.get_mut(peer) {
                *counter = 0;
            }
        }
        if equal.covers(shape.peers()) {
            copy.dirty = 0;
        }
    }
}
