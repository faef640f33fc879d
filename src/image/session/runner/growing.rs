//! The session thread's part in growing the image.
//!
//! A growth is a change like a write: marks stand on a quorum before any size differs, so
//! that stock Gluster and the next session know whose size counts. It is done under AFR's
//! data lock, in this order: the local copy, the peers' copies, the dirty map. Whoever
//! dies in between leaves a marked image whose local size counts and whose map, being of
//! another size, is not trusted. Nobody writes to the new area before the last step, as the
//! map and the disk end before it; during that one, the guest's writes wait. Healers are kept out by the caller
//! ([`crate::image::session::life`]), for they work on the map that is replaced and make the
//! peers' copies as large as it says.
//!
//! * This file: the order of it, and copies that are one file. [`disk_size`]: the same of an
//!   image in pieces, whose size is an attribute. [`new_files`]: the pieces that it has besides.

mod disk_size;
mod new_files;

use std::sync::Arc;
use std::time::Duration;

use crate::image::dirty_map::{DirtyMap, Draft, Peer, Peers};
use crate::image::error_chain::chain;
use crate::image::layout::FileIndex;
use crate::image::local::error::LocalError;
use crate::image::replica::brick_port::{BrickPort, CopyState, PortError};
use crate::image::replica::brick_set::{BrickSet, VolumeChange};
use crate::image::replica::data_lock::{Round, wait};
use crate::image::session::error::stop_message;
use crate::image::session::extension::Extend;
use crate::image::session::map_place::within_pieces;
use crate::image::session::resize::{Insist, ResizeError, Resized, check_room, extent_size};
use crate::image::session::state_machine::{Event, GateState, Phase};

use super::{Runner, gate_over, syncing};
use new_files::NewFiles;

/// How long it waits on one brick for other clients' data locks. The guest goes on.
const DATA_LOCK_LIMIT: Duration = Duration::from_secs(10);
/// How long the guest's writes may take to land; new ones wait.
const LANDING_LIMIT: Duration = Duration::from_secs(1);
/// How often it is looked whether they did.
const LANDING_PAUSE: Duration = Duration::from_millis(1);

/// From one size to another, in bytes.
#[derive(Clone, Copy)]
struct GrowStep {
    from: u64,
    to: u64,
}

impl Runner {
    /// Makes all copies `to` bytes long.
    pub(super) fn grow(
        &mut self,
        to: u64,
        insist: Insist,
        extend: Extend,
    ) -> Result<Resized, ResizeError> {
        const BASE: FileIndex = FileIndex::BASE;
        if let Phase::Stopped(reason) = self.phase(BASE) {
            return Err(ResizeError::Over(stop_message(*reason, &self.names)));
        }
        if !self.layout.is_whole() && self.volume != VolumeChange::NONE {
            let why = "the volume has other bricks than when the image was opened, and new shards would not be made on all of them";
            return Err(ResizeError::NotNow(why.to_owned()));
        }
        let from = self.map()?.geometry().size();
        let step = GrowStep { from, to };
        let extent_size = within_pieces(&self.layout, extent_size(to, self.extent_size)?);
        if !insist.overcommit {
            check_room(from, to, self.file(BASE).local.free()?)?;
        }
        self.refuse_while_away(insist.away)?;
        if self.phase(BASE) == &Phase::Unmarked {
            self.take(BASE, Event::WriteWanted);
        }
        // Storing the marks may have shown that a brick is gone.
        self.refuse_while_away(insist.away)?;
        let more = self.look_at_new(extend(to)?)?;
        self.refuse_while_away(insist.away)?;
        let draft = self.map()?.draft(to, extent_size)?;
        let mut round = Round::begin(self.team(BASE), self.held(), DATA_LOCK_LIMIT);
        let stand = self.note_marks(BASE, &round).and_then(|foreign| {
            match !foreign && self.marks_stand(&round.copies) {
                true => Ok(()),
                false => Err("the marks are not stored on every copy that is reached".to_owned()),
            }
        });
        let stands = stand.is_ok();
        let grown = match stand {
            Ok(()) if self.layout.is_whole() => self.grow_copies(step, draft, more, &mut round),
            Ok(()) => self.grow_disk(step, draft, more, &mut round),
            Err(why) => Err(ResizeError::NotNow(why)),
        };
        round.end(self.team(BASE));
        for (brick, error) in &round.failed {
            self.give_up(*brick, "resizing", error);
        }
        self.note_copies(BASE, round.copies, round.unsure);
        if !stands {
            self.take(BASE, Event::MarkAgain);
        }
        let lacking = grown?;
        log::info!("the image has grown from {from} to {to} bytes");
        Ok(Resized {
            from,
            to,
            behind: lacking.iter().map(|peer| self.names.one(peer)).collect(),
        })
    }

    fn resize_local(&mut self, from: u64, to: u64) -> Result<(), LocalError> {
        let resized = self.file_mut(FileIndex::BASE).local.resize(from, to);
        syncing::noted(&self.durability, resized)
    }

    fn map(&self) -> Result<&Arc<DirtyMap>, ResizeError> {
        let debt = self.debt.as_ref().ok_or(ResizeError::ReadOnly)?;
        Ok(debt.map())
    }

    fn refuse_while_away(&self, force: bool) -> Result<(), ResizeError> {
        let held = self.held();
        let away = self.shape.peers().without(held);
        if !self.shape.is_quorum(held) {
            let away = self.names.list(away);
            let why = format!("fewer bricks than a quorum are reached: not {away}");
            return Err(ResizeError::NotNow(why));
        }
        match force || away.is_empty() {
            true => Ok(()),
            false => Err(ResizeError::Away {
                peers: self.names.list(away),
            }),
        }
    }

    /// As they were just read under the data lock, on a quorum.
    fn marks_stand(&self, copies: &[(usize, CopyState)]) -> bool {
        let Some(debt) = &self.debt else { return false };
        let marked = copies.iter().filter(|(_, copy)| debt.stands_on(copy));
        let marked: BrickSet = marked.map(|(brick, _)| *brick).collect();
        self.phase(FileIndex::BASE) == &Phase::Dirty
            && marked.len() == copies.len()
            && self.shape.is_quorum(marked)
    }

    fn wait_landed(&self) -> Result<(), ResizeError> {
        let map = self.map()?;
        let end = self.threads.now() + LANDING_LIMIT;
        while map.extents_in_flight() > 0 {
            if self.threads.now() >= end {
                let why = "the guest's writes take too long to land";
                return Err(ResizeError::NotNow(why.to_owned()));
            }
            self.threads.sleep(LANDING_PAUSE);
        }
        Ok(())
    }

    /// The peers that are not grown.
    fn grow_copies(
        &mut self,
        step: GrowStep,
        draft: Draft,
        more: NewFiles,
        round: &mut Round,
    ) -> Result<BrickSet, ResizeError> {
        // What has another size is behind anyway: its healer sees to that.
        let fits = |(brick, copy): &&(usize, CopyState)| {
            self.shape.peers().contains(*brick) && copy.size == step.from
        };
        let wanted: BrickSet = round.copies.iter().filter(fits).map(|(i, _)| *i).collect();
        self.resize_local(step.from, step.to)?;
        let (grown, refused) = self.resize_peers(wanted, step.to, round);
        let lacking = self.shape.peers().without(grown);
        let replaced = match refused {
            Some((peer, why)) => Err(ResizeError::Peer {
                peer: self.names.one(peer),
                why,
            }),
            None => self.replace_map(draft, more, lacking),
        };
        match replaced {
            Ok(()) => Ok(lacking),
            Err(error) => {
                self.undo(step, wanted, round);
                Err(error)
            }
        }
    }

    /// Which have that size now, durably, and the first that refused. One that does not
    /// answer is noted as failed, and has the one size or the other.
    fn resize_peers(
        &self,
        peers: BrickSet,
        size: u64,
        round: &mut Round,
    ) -> (BrickSet, Option<(usize, String)>) {
        self.change_each(peers, round, move |port| port.truncate(size))
    }

    /// The same for any change of the first file that may be refused.
    fn change_each(
        &self,
        bricks: BrickSet,
        round: &mut Round,
        change: impl Fn(&mut dyn BrickPort) -> Result<(), PortError> + Copy + Send + 'static,
    ) -> (BrickSet, Option<(usize, String)>) {
        let ask = |brick: usize| {
            let worker = self.workers.get(brick)?;
            let changed = worker.ask(move |port| change(port).and_then(|()| port.fsync()));
            Some((brick, changed))
        };
        let asked: Vec<_> = bricks.iter().filter_map(ask).collect();
        let (mut changed, mut refused) = (BrickSet::EMPTY, None);
        for (brick, answer) in asked {
            match wait(answer) {
                Ok(()) => changed.insert(brick),
                Err(PortError::Refused(why)) => {
                    refused.get_or_insert((brick, why));
                }
                Err(error) => round.fail(brick, error),
            }
        }
        (changed, refused)
    }

    /// Nothing was written to the new area. A peer that cannot be made as it was is given
    /// up: when it is joined again, its size tells.
    fn undo(&mut self, step: GrowStep, peers: BrickSet, round: &mut Round) {
        self.is_local_back(step);
        let (_, refused) = self.resize_peers(peers, step.from, round);
        if let Some((brick, why)) = refused {
            round.fail(brick, PortError::Refused(why));
        }
    }

    /// Has the local copy the old size, or has it got it back?
    fn is_local_back(&mut self, step: GrowStep) -> bool {
        let back = self.resize_local(step.to, step.from);
        if let Err(error) = &back {
            log::error!(
                "{}: the image has {} bytes, and is served as before. Start the daemon again",
                chain(error),
                step.to
            );
        }
        back.is_ok()
    }

    /// From now on the new map and a gate that asks it, with no write under way in
    /// between. The old gate stays shut for good.
    fn replace_map(
        &mut self,
        draft: Draft,
        more: NewFiles,
        lacking: BrickSet,
    ) -> Result<(), ResizeError> {
        let begin = self.threads.now();
        let gate = self.gate.load_full();
        let open = |file: &FileIndex| gate.state_of(*file) == GateState::Open;
        let open: Vec<_> = self.layout.files().filter(open).collect();
        gate.set(GateState::Hold);
        let replaced = self
            .wait_landed()
            .and_then(|()| self.replace_still_map(draft, more, lacking));
        let gate = self.gate.load_full();
        open.into_iter()
            .for_each(|file| gate.set_file(file, GateState::Open));
        let waited = self.threads.now().saturating_sub(begin);
        log::info!("the guest's writes waited {} ms", waited.as_millis());
        replaced
    }

    fn replace_still_map(
        &mut self,
        draft: Draft,
        more: NewFiles,
        lacking: BrickSet,
    ) -> Result<(), ResizeError> {
        let peers = self.shape.peers().iter().enumerate();
        let lacking = peers.filter(|(_, child)| lacking.contains(*child));
        let lacking: Peers = lacking.filter_map(|(index, _)| Peer::new(index)).collect();
        let Some(debt) = &mut self.debt else {
            return Err(ResizeError::ReadOnly);
        };
        let map = Arc::new(draft.finish(debt.map(), lacking)?);
        debt.grow(map.clone(), more.layout.clone(), &more.copies);
        self.workers
            .iter()
            .for_each(|worker| worker.extend(more.layout.clone()));
        self.claim.files = more.layout.len() as u32;
        self.layout = more.layout;
        self.files.extend(more.files);
        self.gate.store(Arc::new(gate_over(
            &self.layout,
            Some(map),
            self.durability.clone(),
            &self.inbox,
        )));
        Ok(())
    }
}
