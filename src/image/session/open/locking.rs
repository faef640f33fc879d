//! Which locks an opening session takes, and how: none of those that it has already, and none
//! of what it wants besides as long as anybody stands in the way.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::image::layout::FileIndex;
use crate::image::replica::brick_port::{BrickPort, CopyState, FileCopies, Lock, PortError};
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::session_lock::{Blocked, Claim, lock_background, lock_session};
use crate::image::session::error::OpenError;

use super::{Attempt, Waiting};

/// How often a waiting session says so.
const TELL: Duration = Duration::from_secs(5);

/// Locks that are not held yet: one that is taken twice is held twice.
pub(super) struct Wanted {
    /// The session's own.
    pub(super) session: bool,
    /// Those that keep heals from these files.
    pub(super) files: BTreeSet<FileIndex>,
}

/// How long others' locks are waited for.
pub(super) struct Patience<'a> {
    pub(super) end: Duration,
    /// In milliseconds.
    pub(super) pauses: std::ops::Range<u64>,
    pub(super) waiting: Waiting<'a>,
}

impl Patience<'_> {
    /// How long it lasts yet.
    fn left(&self) -> Duration {
        self.end.saturating_sub(self.waiting.threads.now())
    }

    /// Waits a little; `false` when it is time to give up.
    fn pause(&self) -> bool {
        if self.waiting.cancelled.load(Ordering::Relaxed) || self.waiting.threads.now() >= self.end
        {
            return false;
        }
        // The low bits of a fresh UUID are random: no random generator needed.
        let random = uuid::Uuid::new_v4().as_u128() as u64;
        let spread = self.pauses.start + random % (self.pauses.end - self.pauses.start);
        self.waiting.threads.sleep(Duration::from_millis(spread));
        true
    }
}

impl Attempt<'_> {
    /// Heals are kept from these files since the process before did, and never let in.
    pub(super) fn guard_kept(&mut self, bricks: BrickSet) {
        let ask = |brick: usize| Some(self.workers.get(brick)?.ask(|port| port.kept_files()));
        let asked: Vec<_> = bricks.iter().filter_map(ask).collect();
        let kept = asked.into_iter().filter_map(|asked| asked.wait());
        self.guarded.extend(kept.flatten());
    }

    /// Takes the locks on all of `bricks`, waiting for those of others. Returns
    /// the bricks that stayed.
    pub(super) fn lock(
        &mut self,
        mut bricks: BrickSet,
        wanted: &Wanted,
        patience: &Patience<'_>,
    ) -> Result<BrickSet, OpenError> {
        let (mut told, mut told_at) = (String::new(), Duration::MAX);
        loop {
            let Some(error) = self.try_lock(&mut bricks, wanted)? else {
                return Ok(bricks);
            };
            if !patience.pause() {
                return Err(error);
            }
            let (why, left) = (error.to_string(), patience.left());
            if told != why || told_at.saturating_sub(left) >= TELL {
                log::info!("waiting for a lock, {} s more: {why}", left.as_secs());
                (told, told_at) = (why, left);
            }
        }
    }

    /// The session lock on every brick in child order, then the others. On the
    /// first refusal, which is returned, all that is wanted is given back: of two sessions
    /// that race, the one that gets the first brick gets them all, and none waits on the
    /// other while holding what that one needs.
    fn try_lock(
        &mut self,
        bricks: &mut BrickSet,
        wanted: &Wanted,
    ) -> Result<Option<OpenError>, OpenError> {
        let mut blocked = None;
        if wanted.session {
            blocked = self.lock_each(FileIndex::BASE, bricks, lock_session)?;
        }
        for file in &wanted.files {
            if blocked.is_none() {
                blocked = self.lock_each(*file, bricks, lock_background)?;
            }
        }
        if blocked.is_some() {
            self.unlock(*bricks, wanted);
        }
        Ok(blocked)
    }

    /// Goes on without a brick that fails: what is held on the others stays held.
    fn lock_each(
        &mut self,
        file: FileIndex,
        bricks: &mut BrickSet,
        lock: fn(&mut dyn BrickPort, &Claim) -> Result<(), Blocked>,
    ) -> Result<Option<OpenError>, OpenError> {
        let claim = self.claim;
        for brick in bricks.iter() {
            let Some(worker) = self.workers.get(brick) else {
                continue;
            };
            let answer = worker
                .ask_about(file, move |port| lock(port, &claim))
                .wait();
            let gone = || {
                Err(Blocked::Port(PortError::Away(
                    "the brick's worker ended".to_owned(),
                )))
            };
            match answer.unwrap_or_else(gone) {
                Ok(()) => {}
                Err(Blocked::Port(error)) => {
                    bricks.remove(brick);
                    self.away.push((brick, error.to_string()));
                    self.refuse_without_quorum(*bricks)?;
                }
                Err(Blocked::Session(holder)) => {
                    let brick = self.names.one(brick);
                    return Ok(Some(OpenError::Locked { brick, holder }));
                }
                Err(Blocked::Busy(lock)) => {
                    let busy = OpenError::Busy {
                        volume: self.names.volume.clone(),
                        lock,
                        brick: self.names.one(brick),
                    };
                    return Ok(Some(busy.of_file(file)));
                }
            }
        }
        Ok(None)
    }

    fn unlock(&self, bricks: BrickSet, wanted: &Wanted) {
        let shared = self.claim.read_only;
        let asked: Vec<_> = bricks
            .iter()
            .filter_map(|brick| self.workers.get(brick))
            .map(|worker| {
                let (session, files) = (wanted.session, wanted.files.clone());
                worker.ask(move |port| {
                    // A lock that was never granted is refused here: nothing to do.
                    for file in files {
                        port.select(file);
                        for lock in [Lock::Rebalance, Lock::Heal] {
                            let _ = port.unlock(lock);
                        }
                    }
                    port.select(FileIndex::BASE);
                    if session {
                        let _ = port.unlock(Lock::Session { shared });
                    }
                })
            })
            .collect();
        for answer in asked {
            // Only the waiting matters: what cannot be unlocked is gone with its connection.
            let _ = answer.wait();
        }
    }

    /// Files that somebody marked, and from which heals are not kept yet: one of theirs may be
    /// under way, and must be over before what is read of them counts.
    pub(super) fn marked_besides(&self, copies: &[FileCopies]) -> Wanted {
        let is_marked = |copy: &CopyState| copy.dirty != 0 || !copy.accuses().is_empty();
        let files = (0..).map(FileIndex).zip(copies);
        let marked = files.filter(|(_, copies)| copies.iter().flatten().any(is_marked));
        let marked = marked.map(|(file, _)| file);
        Wanted {
            session: false,
            files: marked.filter(|file| !self.guarded.contains(file)).collect(),
        }
    }
}
