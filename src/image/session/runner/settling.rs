//! The session thread's part at the end: marks that can go do, or the image is given away with
//! none, and mounts learn that the file has changed.

use std::time::{Duration, SystemTime};

use super::Runner;
use crate::image::error_chain::chain;
use crate::image::heal::Unmarked;
use crate::image::layout::FileIndex;
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::brick_worker::Worker;
use crate::image::replica::missed_writes::MissedWrites;
use crate::image::replica::{data_lock, unmarking};
use crate::image::session::ending::Ending;
use crate::image::session::state_machine::Phase;

impl Runner {
    /// The end of the session: marks that can go do.
    pub(super) fn settle(&mut self) -> Ending {
        let Some(debt) = &self.debt else {
            return Ending::Behind;
        };
        let all_held = self.held() == self.shape.all();
        let behind = debt.behind();
        if !self.any_mark_can_go() {
            // Nothing to remove. A brick that is away may have marks.
            let settled = all_held && behind.is_empty();
            let durable = self.made_durable();
            self.end_caches();
            return if settled { durable } else { Ending::Behind };
        }
        // Nobody writes any more, so no mark has to come back: whoever is behind keeps his,
        // and whoever is not can be opened.
        match self.unmark(self.shape.all()) {
            Unmarked::All if all_held => Ending::AllEqual,
            Unmarked::All | Unmarked::Some { .. } => Ending::Behind,
            Unmarked::NotYet { why } => {
                log::info!("the marks stay: {why}");
                self.end_caches();
                Ending::Behind
            }
        }
    }

    /// Is some child marked on a file of which it misses nothing?
    fn any_mark_can_go(&self) -> bool {
        let behind = |file| {
            let debt = self.debt.as_ref();
            debt.map_or(self.shape.all(), |debt| debt.behind_in(file))
        };
        let mut files = self.layout.files();
        files.any(|file| !self.marked_in(file).without(behind(file)).is_empty())
    }

    /// The marks stay, and with them the times; but what the guest has written is to be
    /// seen through mounts.
    fn end_caches(&mut self) {
        if self
            .files
            .iter()
            .any(|file| file.machine.phase() == &Phase::Dirty)
        {
            self.renew_times();
        }
    }

    /// Times are the image's, and so its first file's.
    pub(super) fn renew_times(&mut self) {
        let team = self.team(FileIndex::BASE);
        let mut round = unmarking::begin(team, self.held());
        let untouched = self.file(FileIndex::BASE).local.is_untouched();
        self.set_times(&mut round);
        self.note_blocks(&mut round);
        // Or the session would take its own doing for somebody else's, when it was cut off.
        if untouched && let Err(error) = self.file_mut(FileIndex::BASE).local.rebase() {
            log::error!("{}", chain(&error));
        }
        round.end(self.team(FileIndex::BASE));
        for (brick, error) in round.busy.iter().chain(&round.failed) {
            let name = self.names.one(*brick);
            log::warn!("mounts may go on reading old pages of the image: brick {name}: {error}");
        }
        for (brick, error) in &round.failed {
            self.give_up(*brick, "setting the image's time", error);
        }
    }

    /// What mounts show as the room that an image in pieces takes.
    fn note_blocks(&self, round: &mut data_lock::Round) {
        if self.layout.is_whole() {
            return;
        }
        let blocks = self
            .layout
            .files()
            .map(|file| self.file(file).local.blocks());
        let Some(blocks) = blocks.sum::<Option<u64>>() else {
            return;
        };
        let ask = |worker: &Worker| {
            worker.ask_about(FileIndex::BASE, move |port| port.note_blocks(blocks))
        };
        let bricks = round.copies.iter().map(|(brick, _)| *brick);
        let asked: Vec<_> = bricks
            .filter_map(|brick| Some((brick, ask(self.workers.get(brick)?))))
            .collect();
        for (brick, answer) in asked {
            if let Err(error) = data_lock::wait(answer) {
                round.fail(brick, error);
            }
        }
    }

    /// A new time for every copy that misses nothing.
    pub(super) fn set_times(&self, round: &mut data_lock::Round) {
        let behind = self
            .debt
            .as_ref()
            .map_or(self.shape.peers(), MissedWrites::behind);
        let fresh = self.shape.all().without(behind);
        let team = self.team(FileIndex::BASE);
        unmarking::set_times(team, fresh, since_epoch(), round);
    }

    /// Is every copy that is held as good as ours, with no mark against it, so that
    /// whoever opens one of them next is not refused? The marks are removed if they can
    /// be. What is away keeps its marks, but `to` must not be away.
    pub(super) fn settle_held(&mut self, to: Option<usize>) -> Result<Ending, String> {
        let Some(debt) = &self.debt else {
            return Ok(Ending::Behind);
        };
        self.vouch()?;
        let held = self.held();
        if !self.shape.is_quorum(held) {
            return Err("fewer bricks than a quorum are reached".to_owned());
        }
        if let Some(to) = to.filter(|&to| !held.contains(to)) {
            let to = self.names.one(to);
            return Err(format!("{to}, where it is to go, is away"));
        }
        let peers = self.shape.peers();
        let held_peers: BrickSet = peers.iter().filter(|&peer| held.contains(peer)).collect();
        let behind = debt.behind();
        if let Some(peer) = behind.iter().find(|&peer| held.contains(peer)) {
            return Err(format!("{} is being healed", self.names.one(peer)));
        }
        if self.marked().iter().any(|peer| held_peers.contains(peer)) {
            let unmarked = match self.unmark(BrickSet::EMPTY) {
                Unmarked::All => peers,
                Unmarked::Some { peers: gone } => {
                    let gone = peers.iter().zip(gone).filter(|(_, gone)| *gone);
                    gone.map(|(peer, _)| peer).collect()
                }
                Unmarked::NotYet { why } => return Err(why),
            };
            if let Some(peer) = held_peers.without(unmarked).iter().next() {
                return Err(format!("the marks against {} stay", self.names.one(peer)));
            }
        }
        match self.made_durable() {
            Ending::AllEqual if held == self.shape.all() => Ok(Ending::AllEqual),
            _ => Ok(Ending::Behind),
        }
    }

    /// Marks that somebody removed without an fsync would be back after a power cut.
    fn made_durable(&self) -> Ending {
        let files = self.hot_files();
        let sync = |worker: &Worker| {
            let files = files.clone();
            worker.ask(move |port| {
                files.into_iter().try_for_each(|file| {
                    port.select(file);
                    port.fsync()
                })
            })
        };
        let asked: Vec<_> = self.workers.iter().map(sync).collect();
        let mut all = true;
        for (brick, answer) in asked.into_iter().enumerate() {
            if let Err(error) = data_lock::wait(answer) {
                self.note_brick_sync(brick, &error);
                all = false;
            }
        }
        match all && self.vouch().is_ok() {
            true => Ending::AllEqual,
            false => Ending::Behind,
        }
    }
}

/// The time of this host's clock.
fn since_epoch() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default()
}
