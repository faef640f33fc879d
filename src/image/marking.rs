//! One round of marking: every peer is accused, durably, on as many bricks as
//! can be reached.
//!
//! Called by the session thread when the first write waits and when a brick
//! comes back without marks. It holds AFR's data lock on those bricks for the
//! round: no other client's write is then under way, and clients give up eager
//! locks taken before the marks. It changes no state of the session.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::bricks::{BrickSet, Shape};
use super::port::{BrickPort, CopyState, Lock, PortError};
use super::worker::Worker;

/// How long a round waits on one brick for other clients' data locks.
const DATA_LOCK_LIMIT: Duration = Duration::from_secs(10);
/// The pause between two attempts to get a data lock. Each attempt makes the
/// brick tell the holders to give way (`inodelk_contention_notify`), so there is
/// no need to queue, and nothing to take back on a time-out.
const DATA_LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What a round achieved.
#[derive(Debug, Default)]
pub struct Round {
    /// Bricks that now durably accuse every peer.
    pub marked: BrickSet,
    /// Bricks that failed, and how. Their connections must be dropped: what
    /// locks or half-done changes they hold is unknown.
    pub failed: Vec<(usize, PortError)>,
    /// A brick that accuses the local copy. If set, nothing was marked.
    pub local_accused_by: Option<usize>,
    /// The copies as they were read under the lock, marks added.
    pub copies: Vec<(usize, CopyState)>,
}

/// Runs a round on `bricks`. `workers[i]` is child `i`'s.
pub fn mark(shape: &Shape, workers: &[Worker], bricks: BrickSet) -> Round {
    let mut round = Round::default();
    let locked = lock(workers, bricks, &mut round);
    read(workers, locked, &mut round);
    let accuser = round
        .copies
        .iter()
        .find(|(_, copy)| copy.accuses().contains(shape.local));
    round.local_accused_by = accuser.map(|&(brick, _)| brick);
    if round.local_accused_by.is_none() {
        store(shape, workers, &mut round);
    }
    unlock(workers, locked, &mut round);
    round
}

/// The data lock, brick after brick in child order, as AFR's own blocking locks:
/// so two lockers cannot hold each other up for ever.
fn lock(workers: &[Worker], bricks: BrickSet, round: &mut Round) -> BrickSet {
    let mut locked = BrickSet::EMPTY;
    for brick in bricks.iter() {
        let Some(worker) = workers.get(brick) else {
            continue;
        };
        match wait(worker.ask(lock_data)) {
            Ok(()) => locked.insert(brick),
            Err(error) => round.failed.push((brick, error)),
        }
    }
    locked
}

fn lock_data(port: &mut dyn BrickPort) -> Result<(), PortError> {
    let begin = Instant::now();
    while !port.try_lock(Lock::Data)? {
        if begin.elapsed() > DATA_LOCK_LIMIT {
            let limit = DATA_LOCK_LIMIT.as_secs();
            return Err(PortError::Refused(format!(
                "another client kept AFR's data lock for more than {limit} s"
            )));
        }
        std::thread::sleep(DATA_LOCK_PAUSE);
    }
    Ok(())
}

fn read(workers: &[Worker], bricks: BrickSet, round: &mut Round) {
    let asked = ask_each(workers, bricks, |port: &mut dyn BrickPort| port.probe());
    for (brick, answer) in asked {
        match wait(answer) {
            Ok(copy) => round.copies.push((brick, copy)),
            Err(error) => round.failed.push((brick, error)),
        }
    }
}

fn store(shape: &Shape, workers: &[Worker], round: &mut Round) {
    let peers = shape.peers();
    let asked: Vec<_> = round
        .copies
        .iter()
        .filter_map(|(brick, copy)| {
            let missing = peers.without(copy.accuses());
            let worker = workers.get(*brick)?;
            Some((
                *brick,
                worker.ask(move |port| store_on(port, missing, peers)),
            ))
        })
        .collect();
    for (brick, answer) in asked {
        match wait(answer) {
            Ok(()) => round.marked.insert(brick),
            Err(error) => round.failed.push((brick, error)),
        }
    }
    for (brick, copy) in &mut round.copies {
        if round.marked.contains(*brick) {
            for peer in peers.without(copy.accuses()).iter() {
                if let Some(counter) = copy.pending.get_mut(peer) {
                    *counter = 1;
                }
            }
        }
    }
}

/// XATTROP is not durable by itself, so the fsync is due even where nothing had
/// to be added: an earlier round may have been cut short before it.
fn store_on(port: &mut dyn BrickPort, missing: BrickSet, peers: BrickSet) -> Result<(), PortError> {
    port.add_pending(missing, peers)?;
    port.fsync()
}

fn unlock(workers: &[Worker], bricks: BrickSet, round: &mut Round) {
    let asked = ask_each(workers, bricks, |port: &mut dyn BrickPort| {
        port.unlock(Lock::Data)
    });
    for (brick, answer) in asked {
        if let Err(error) = wait(answer)
            && !round.failed.iter().any(|(failed, _)| *failed == brick)
        {
            round.failed.push((brick, error));
        }
    }
}

fn ask_each<T, J>(workers: &[Worker], bricks: BrickSet, job: J) -> Vec<(usize, Receiver<T>)>
where
    T: Send + 'static,
    J: FnOnce(&mut dyn BrickPort) -> T + Clone + Send + 'static,
{
    let workers = bricks
        .iter()
        .filter_map(|brick| Some((brick, workers.get(brick)?)));
    workers
        .map(|(brick, worker)| (brick, worker.ask(job.clone())))
        .collect()
}

/// Waits for a worker's answer. Every call of a port has its own time limit, so
/// this ends.
pub fn wait<T>(answer: Receiver<Result<T, PortError>>) -> Result<T, PortError> {
    let gone = || Err(PortError::Away("the brick's worker ended".to_owned()));
    answer.recv().unwrap_or_else(|_| gone())
}
