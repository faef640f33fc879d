//! AFR's data lock over the whole file, on several bricks, for one round of reading
//! and changing their counters.
//!
//! Called by [`super::marking`], [`super::unmarking`] and [`crate::image::session::open`]. While it
//! is held no other client's write is under way, and clients give up eager locks
//! that they took before. It makes other clients wait, so it is for moments.

use std::time::Duration;

use crate::image::scheduler::Scheduler;

use super::brick_port::{BrickPort, CopyState, Lock, PortError};
use super::brick_set::BrickSet;
use super::brick_worker::{Team, WorkerAnswer};

/// The pause between two attempts to get the lock. Each attempt makes the
/// brick tell the holders to give way (`inodelk_contention_notify`), so there is
/// no need to queue, and nothing to take back on a time-out.
const PAUSE: Duration = Duration::from_millis(20);

/// The bricks that are locked, and what went wrong with the others.
#[derive(Debug, Default)]
pub struct Round {
    /// Where the lock is held.
    pub locked: BrickSet,
    /// The copies as they were read under it.
    pub copies: Vec<(usize, CopyState)>,
    /// Bricks where another client kept the lock; nothing of ours is left there.
    pub busy: Vec<(usize, PortError)>,
    /// Bricks that failed, and how. Their connections must be dropped: what
    /// locks or half-done changes they hold is unknown.
    pub failed: Vec<(usize, PortError)>,
    /// Those among them that were to change their counters: nobody knows what they say.
    pub unsure: BrickSet,
}

impl Round {
    /// Locks `bricks` and reads their copies. `limit` is how long to wait on one
    /// brick for other clients' locks. `workers[i]` is child `i`'s.
    ///
    /// The lock is taken brick after brick in child order, as AFR's own blocking
    /// locks: so two lockers cannot hold each other up for ever.
    pub fn begin(team: Team<'_>, bricks: BrickSet, limit: Duration) -> Self {
        let mut round = Self::default();
        for brick in bricks.iter() {
            let Some(worker) = team.get(brick) else {
                continue;
            };
            let threads = worker.threads().clone();
            match wait(worker.ask(move |port| take(port, limit, &threads))) {
                Ok(()) => round.locked.insert(brick),
                Err(error @ PortError::Refused(_)) => round.busy.push((brick, error)),
                Err(error) => round.failed.push((brick, error)),
            }
        }
        let asked = ask_each(team, round.locked, |port: &mut dyn BrickPort| port.probe());
        for (brick, answer) in asked {
            match wait(answer) {
                Ok(copy) => round.copies.push((brick, copy)),
                Err(error) => round.failed.push((brick, error)),
            }
        }
        round
    }

    /// Gives the lock back.
    pub fn end(&mut self, team: Team<'_>) {
        let asked = ask_each(team, self.locked, |port: &mut dyn BrickPort| {
            port.unlock(Lock::Data)
        });
        for (brick, answer) in asked {
            if let Err(error) = wait(answer) {
                self.fail(brick, error);
            }
        }
    }

    /// Notes that a brick failed to change its counters, or to make that durable.
    pub fn fail_change(&mut self, brick: usize, error: PortError) {
        self.unsure.insert(brick);
        self.fail(brick, error);
    }

    /// Notes that a brick failed; the first failure counts.
    pub fn fail(&mut self, brick: usize, error: PortError) {
        if !self.failed.iter().any(|(failed, _)| *failed == brick) {
            self.failed.push((brick, error));
        }
    }
}

fn take(port: &mut dyn BrickPort, limit: Duration, threads: &Scheduler) -> Result<(), PortError> {
    let begin = threads.now();
    while !port.try_lock(Lock::Data)? {
        if threads.now().saturating_sub(begin) > limit {
            return Err(PortError::Refused(format!(
                "another client kept AFR's data lock for more than {} s",
                limit.as_secs()
            )));
        }
        threads.sleep(PAUSE);
    }
    Ok(())
}

fn ask_each<T, J>(team: Team<'_>, bricks: BrickSet, job: J) -> Vec<(usize, WorkerAnswer<T>)>
where
    T: Send + 'static,
    J: FnOnce(&mut dyn BrickPort) -> T + Clone + Send + 'static,
{
    let workers = bricks
        .iter()
        .filter_map(|brick| Some((brick, team.get(brick)?)));
    workers
        .map(|(brick, worker)| (brick, worker.ask(job.clone())))
        .collect()
}

/// Waits for a worker's answer.
pub fn wait<T>(answer: WorkerAnswer<Result<T, PortError>>) -> Result<T, PortError> {
    let gone = || Err(PortError::Away("the brick's worker ended".to_owned()));
    answer.wait().unwrap_or_else(gone)
}
