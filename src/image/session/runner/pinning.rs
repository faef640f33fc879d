//! The session thread's part when the volume changes under an image.
//!
//! An image in shards keeps heals and rebalance from those of its files that are marked, which is
//! enough in a volume that stays as it is: nothing works on a file without marks. In one that has
//! changed two things do. *Another replica set* came: a rebalance moves whatever it can lock to
//! where its name belongs now, and what is left here is cut to nothing (`dht_migrate_file`). *A
//! copy* came: a heal fills it, and the guest's next writes would be against marks that do not
//! accuse it. So then all files are *pinned*: both are kept from each to the end, as they always
//! are from an image that is one file. A copy that may have been filled already is accused. What is too late ends the session.

use crate::image::layout::FileIndex;
use crate::image::replica::brick_port::{Lock, PortError};
use crate::image::replica::brick_set::{BrickSet, VolumeChange};
use crate::image::replica::brick_worker::Worker;
use crate::image::replica::data_lock::wait;
use crate::image::replica::session_lock::{Blocked, lock_background};
use crate::image::session::state_machine::{Event, StopReason};

use super::Runner;

impl Runner {
    /// Whoever asks glusterd says so.
    pub(super) fn volume_changed(&mut self, change: VolumeChange) {
        self.shape.since = change.set;
        self.take_all(Event::SetChanged(change.set));
        let before = std::mem::replace(&mut self.volume, change.clone());
        let pins = change.spreads || !change.newcomers.is_empty();
        if self.layout.is_whole() || self.stopped || !pins {
            return;
        }
        if self.read_only {
            // A heal does not touch the copy that it reads.
            if change.spreads {
                self.stop(StopReason::ShardsMayMove);
            }
            return;
        }
        let blocked = self.pin();
        if change.spreads
            && let Some(file) = self.moved(&blocked)
        {
            return self.stop(StopReason::ShardMoved(file));
        }
        for (file, _) in blocked {
            let held = self.held();
            self.keep_heals_from(file, held);
        }
        if before.newcomers != change.newcomers {
            self.accuse_newcomers(self.held());
        }
    }

    /// Keeps heals and rebalance from all files, from now on to the end. Those where that is
    /// not possible at once are returned.
    fn pin(&mut self) -> Vec<(FileIndex, Blocked)> {
        for file in self.layout.files() {
            self.workers
                .iter()
                .for_each(|worker| worker.guard(file, true));
            let replica = self.file_mut(file);
            (replica.wants_guard, replica.pinned) = (true, true);
        }
        let claim = self.claim;
        let ask = |brick: usize| {
            let unguarded = |file: &FileIndex| !self.file(*file).guarded.contains(brick);
            let files: Vec<_> = self.layout.files().filter(unguarded).collect();
            let lock = self.workers.get(brick)?.ask(move |port| {
                let lock = |file| {
                    port.select(file);
                    (file, lock_background(port, &claim))
                };
                files.into_iter().map(lock).collect::<Vec<_>>()
            });
            Some((brick, lock))
        };
        let asked: Vec<_> = self.held().iter().filter_map(ask).collect();
        let mut blocked = Vec::new();
        for (brick, answer) in asked {
            for (file, locked) in answer.wait().unwrap_or_default() {
                match locked {
                    Ok(()) => self.file_mut(file).guarded.insert(brick),
                    Err(why) => blocked.push((file, why)),
                }
            }
        }
        blocked
    }

    /// A file that a rebalance has at this moment, or that is not here any more.
    fn moved(&self, blocked: &[(FileIndex, Blocked)]) -> Option<FileIndex> {
        let moves = |why: &Blocked| matches!(why, Blocked::Busy(Lock::Rebalance));
        if let Some((file, _)) = blocked.iter().find(|(_, why)| moves(why)) {
            return Some(*file);
        }
        let count = self.layout.len() as u32;
        let look = |worker: &Worker| worker.ask(move |port| port.look_at_all(count));
        let held = self
            .held()
            .iter()
            .filter_map(|brick| self.workers.get(brick));
        let asked: Vec<_> = held.map(look).collect();
        let gone = asked.into_iter().filter_map(|answer| match wait(answer) {
            Err(PortError::NoPiece(number)) => Some(FileIndex(number)),
            // What else fails is the brick's, and its worker's to tell.
            _ => None,
        });
        gone.min_by_key(|file| file.0)
    }

    /// Accuses copies that came, on these bricks: nobody else does when the guest writes.
    pub(super) fn accuse_newcomers(&mut self, bricks: BrickSet) {
        if self.volume.newcomers.is_empty() || self.layout.is_whole() || self.read_only {
            return;
        }
        let count = self.layout.len() as u32;
        let ask = |brick: usize| {
            let (worker, names) = (self.workers.get(brick)?, self.volume.newcomers.clone());
            let accuse = worker.ask(move |port| port.accuse_newcomers(count, &names));
            Some((brick, accuse))
        };
        let asked: Vec<_> = bricks.iter().filter_map(ask).collect();
        for (brick, answer) in asked {
            if let Err(error) = wait(answer) {
                self.give_up(brick, "accusing the copies that came", &error);
            }
        }
    }
}
