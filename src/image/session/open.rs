//! Opening an image over its bricks: connect, lock, read the marks, decide,
//! publish.
//!
//! Runs once per session, on the caller's thread, through the workers. Every
//! lock is given back when opening fails: the workers are dropped, and their
//! connections with them.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::image::layout::FileIndex;
use crate::image::local::error::LocalError;
use crate::image::replica::brick_port::{BrickPort, CopyState, Fence, FileCopies};
use crate::image::replica::brick_set::{BrickSet, Shape};
use crate::image::replica::brick_worker::{Team, Worker};
use crate::image::replica::data_lock::{self, wait};
use crate::image::replica::freshness::{self, Opening, Seen};
use crate::image::replica::names::Names;
use crate::image::replica::promotion;
use crate::image::replica::session_lock::{Claim, read_copies};
use crate::image::scheduler::Scheduler;

use super::error::OpenError;
use super::fencing;
use super::terms::Terms;

mod locking;

use locking::{Patience, Wanted};

/// How long to wait on one brick for other clients to finish their writes.
const DATA_LOCK_LIMIT: Duration = Duration::from_secs(2);
/// The pause between two attempts to get a lock that somebody holds. Two
/// sessions that got in each other's way try again at different moments.
const RETRY_PAUSE: std::ops::Range<u64> = 80..240;
/// The same while a guest stands still.
const URGENT_PAUSE: std::ops::Range<u64> = 5..15;

/// The wait for locks.
#[derive(Clone, Copy)]
pub struct Waiting<'a> {
    /// Ends it early.
    pub cancelled: &'a AtomicBool,
    /// Where it waits.
    pub threads: &'a Scheduler,
}

/// An image opened over its bricks.
#[derive(Debug)]
pub struct Opened {
    /// Bricks on which all our locks are held.
    pub held: BrickSet,
    /// What those bricks told about their copies of each file, in the layout's order.
    pub copies: Vec<FileCopies>,
    /// The files from which heals are kept, on all bricks that are held.
    pub guarded: BTreeSet<FileIndex>,
    /// The fence that stands.
    pub fence: Fence,
    /// Why each of the other bricks is away.
    pub away: Vec<(usize, String)>,
}

/// Opens the image. `workers[i]` is child `i`'s; `open_local` opens the local copy once
/// it is known to be fresh, and makes everything else ready that may fail: it is given
/// the state of the local copy and of all.
///
/// # Errors
/// Whatever forbids it; see [`OpenError`].
pub fn open<L>(
    shape: &Shape,
    names: &Names,
    workers: &[Worker],
    claim: Claim,
    terms: &Terms,
    waiting: Waiting<'_>,
    open_local: impl FnOnce(&CopyState, &[FileCopies]) -> Result<L, LocalError>,
) -> Result<(Opened, L), OpenError> {
    let mut attempt = Attempt {
        shape,
        names,
        workers,
        claim,
        guarded: BTreeSet::from([FileIndex::BASE]),
        away: Vec::new(),
    };
    let connected = attempt.connect();
    attempt.refuse_without_quorum(connected)?;
    attempt.guard_kept(connected);
    let patience = Patience {
        end: waiting.threads.now() + terms.lock_timeout,
        pauses: match terms.urgent {
            true => URGENT_PAUSE,
            false => RETRY_PAUSE,
        },
        waiting,
    };
    let mut wanted = Wanted {
        session: true,
        files: attempt.guarded.clone(),
    };
    let mut locked = attempt.lock(connected, &wanted, &patience)?;
    let mut copies = attempt.probe(locked);
    loop {
        wanted = attempt.marked_besides(&copies);
        if terms.read_only || wanted.files.is_empty() {
            break;
        }
        locked = attempt.lock(attempt.answered(&copies), &wanted, &patience)?;
        attempt.guarded.extend(wanted.files);
        copies = attempt.probe(locked);
    }
    if !terms.read_only {
        attempt.end_writes_under_way(&mut copies);
    }
    let held = attempt.answered(&copies);
    for (file, copies) in (0..).map(FileIndex).zip(&copies) {
        attempt.decide(file, copies)?;
    }
    let base = copies.first().cloned().unwrap_or_default();
    let local = base.get(shape.local).cloned().flatten();
    let local = local.ok_or_else(|| attempt.failed(shape.local, "no answer"))?;
    // Before anything is published: what fails until here leaves no trace.
    let local_file = open_local(&local, &copies)?;
    let fence = fencing::publish(names, workers, held, &base, terms)?;
    let opened = Opened {
        held,
        copies,
        guarded: attempt.guarded,
        fence,
        away: attempt.away,
    };
    Ok((opened, local_file))
}

struct Attempt<'a> {
    shape: &'a Shape,
    names: &'a Names,
    workers: &'a [Worker],
    claim: Claim,
    /// Files from which heals are kept, where the session's locks are held.
    guarded: BTreeSet<FileIndex>,
    away: Vec<(usize, String)>,
}

impl Attempt<'_> {
    fn connect(&mut self) -> BrickSet {
        let asked: Vec<_> = self.workers.iter().map(Worker::connect).collect();
        let mut connected = BrickSet::EMPTY;
        for (brick, answer) in asked.into_iter().enumerate() {
            match wait(answer) {
                Ok(()) => connected.insert(brick),
                Err(error) => self.away.push((brick, error.to_string())),
            }
        }
        connected
    }

    /// Locks are not even asked for when the answer cannot matter.
    fn refuse_without_quorum(&self, connected: BrickSet) -> Result<(), OpenError> {
        if !self.shape.is_quorum(connected) {
            return Err(self.refusal(freshness::Refusal::NoQuorum { reached: connected }));
        }
        if !connected.contains(self.shape.local) {
            return Err(self.refusal(freshness::Refusal::LocalAway));
        }
        Ok(())
    }

    fn probe(&mut self, bricks: BrickSet) -> Vec<FileCopies> {
        let claim = self.claim;
        let ask = |brick: usize| {
            let (worker, guarded) = (self.workers.get(brick)?, self.guarded.clone());
            let read = move |port: &mut dyn BrickPort| read_copies(port, &claim, &guarded);
            Some((brick, worker.ask(read)))
        };
        let asked: Vec<_> = bricks.iter().filter_map(ask).collect();
        let files = claim.files.max(1) as usize;
        let mut copies = vec![vec![None; self.shape.bricks]; files];
        for (brick, answer) in asked {
            match wait(answer) {
                Ok(read) => {
                    for (copies, copy) in copies.iter_mut().zip(read) {
                        copies[brick] = Some(copy);
                    }
                }
                Err(error) => self.away.push((brick, error.to_string())),
            }
        }
        copies
    }

    /// The bricks that told about their copies.
    fn answered(&self, copies: &[FileCopies]) -> BrickSet {
        let base = copies.first().into_iter().flatten().enumerate();
        base.filter_map(|(brick, copy)| copy.as_ref().map(|_| brick))
            .collect()
    }

    /// A client that wrote a moment ago keeps AFR's counter of writes under way up until
    /// its lock is wanted. What is left then is of a write that was cut short.
    fn end_writes_under_way(&mut self, copies: &mut [FileCopies]) {
        let answered = self.answered(copies);
        for (file, copies) in (0..).map(FileIndex).zip(copies) {
            if copies.iter().flatten().all(|copy| copy.dirty == 0) {
                continue;
            }
            let team = Team::new(self.workers, file);
            let mut round = data_lock::Round::begin(team, answered, DATA_LOCK_LIMIT);
            round.end(team);
            for (brick, copy) in round.copies {
                copies[brick] = Some(copy);
            }
        }
    }

    fn decide(&self, file: FileIndex, copies: &FileCopies) -> Result<Opening, OpenError> {
        let decided = self.refuse_beside_a_promoted_copy(copies).and_then(|()| {
            let seen: Vec<_> = copies.iter().map(seen).collect();
            freshness::decide(self.shape, &seen).map_err(|refusal| self.refusal(refusal))
        });
        decided.map_err(|why| why.of_file(file))
    }

    /// When the lost copy comes back, stock Gluster heals everything from the promoted
    /// one: what was written to another since would be gone.
    fn refuse_beside_a_promoted_copy(&self, copies: &[Option<CopyState>]) -> Result<(), OpenError> {
        let is_promoted = |brick: usize| {
            let copy = copies.get(brick).and_then(Option::as_ref);
            copy.is_some_and(|copy| promotion::is_promoted(copy.dirty))
        };
        let other =
            (0..copies.len()).find(|&brick| brick != self.shape.local && is_promoted(brick));
        match other.filter(|_| !is_promoted(self.shape.local)) {
            Some(brick) => Err(OpenError::PromotedElsewhere {
                brick: self.names.one(brick),
            }),
            None => Ok(()),
        }
    }

    fn refusal(&self, refusal: freshness::Refusal) -> OpenError {
        let why_away = |brick: usize| {
            let known = self.away.iter().find(|(away, _)| *away == brick);
            known.map_or_else(|| "no answer".to_owned(), |(_, why)| why.clone())
        };
        OpenError::from_refusal(
            refusal,
            self.names,
            self.shape.local,
            self.shape.all(),
            why_away,
        )
    }

    fn failed(&self, brick: usize, why: &str) -> OpenError {
        OpenError::BrickFailed {
            brick: self.names.one(brick),
            why: why.to_owned(),
        }
    }
}

fn seen(copy: &Option<CopyState>) -> Seen {
    match copy {
        None => Seen::Away,
        Some(copy) => Seen::Copy {
            gfid: copy.gfid,
            size: copy.size,
            accuses: copy.accuses(),
        },
    }
}

#[cfg(test)]
mod tests;
