//! The size of an image in pieces is an attribute of its first file. It is changed as AFR
//! changes attributes: whoever does not have the new one yet is accused of that on every brick
//! first, durably, and acquitted when it has. So whenever somebody dies, stock Gluster makes
//! the local brick's size that of all, and whoever opens the image meanwhile knows whose
//! size counts ([`crate::image::layout::found::settle_size`]). What counts is changed on the local
//! disk itself ([`crate::image::local`]): it must not change any more once this daemon is dead.

use crate::image::dirty_map::Draft;
use crate::image::layout::found::SizeSeen;
use crate::image::local::error::LocalError;
use crate::image::replica::brick_port::PortError;
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::data_lock::{Round, wait};
use crate::image::session::resize::{ResizeError, with_size};
use crate::image::session::runner::Runner;

use super::GrowStep;
use super::new_files::NewFiles;

impl Runner {
    /// The peers that have not the new size, or not all files. Under AFR's data lock over the
    /// whole first file, which is that of its attributes, too.
    pub(super) fn grow_disk(
        &mut self,
        step: GrowStep,
        draft: Draft,
        more: NewFiles,
        round: &mut Round,
    ) -> Result<BrickSet, ResizeError> {
        let seen = self.sizes(round);
        let wanted = with_size(&self.shape, step.from, &seen).map_err(ResizeError::NotNow)?;
        let reached: BrickSet = seen.iter().map(|(brick, _)| *brick).collect();
        let (accused, refused) = self.accuse(reached, self.shape.peers(), 1, round);
        if refused.is_some()
            || !accused.contains(self.shape.local)
            || !self.shape.is_quorum(accused)
        {
            self.accuse(accused, self.shape.peers(), -1, round);
            let why = "the marks for the change of size are not stored on a quorum";
            return Err(ResizeError::NotNow(why.to_owned()));
        }
        if let Err(error) = self.resize_local(step.from, step.to) {
            // What a failed sync has left on the disk is not known: the marks stay.
            if !matches!(error, LocalError::Sync { .. }) {
                self.accuse(accused, self.shape.peers(), -1, round);
            }
            return Err(error.into());
        }
        let ready = wanted.iter().filter(|peer| accused.contains(*peer));
        let grown = self.grow_on(ready.collect(), step.to, round);
        let peers = self.shape.peers();
        let replaced = grown.and_then(|grown| {
            let lacking = peers.without(grown);
            self.replace_map(draft, more, lacking)?;
            Ok((grown, lacking))
        });
        match replaced {
            Ok((grown, lacking)) => {
                self.accuse(accused, grown, -1, round);
                Ok(lacking)
            }
            Err(error) => {
                self.undo_size(step, wanted, accused, round);
                Err(error)
            }
        }
    }

    fn sizes(&self, round: &mut Round) -> Vec<(usize, SizeSeen)> {
        let ask = |brick: usize| {
            let worker = self.workers.get(brick)?;
            Some((brick, worker.ask(|port| port.disk_size())))
        };
        let asked: Vec<_> = round.locked.iter().filter_map(ask).collect();
        let mut seen = Vec::new();
        for (brick, answer) in asked {
            match wait(answer) {
                Ok(size) => seen.push((brick, size)),
                Err(error) => round.fail(brick, error),
            }
        }
        seen
    }

    fn accuse(
        &self,
        on: BrickSet,
        children: BrickSet,
        change: i32,
        round: &mut Round,
    ) -> (BrickSet, Option<(usize, String)>) {
        self.change_each(on, round, move |port| {
            port.accuse_attributes(children, change)
        })
    }

    /// On all of these, those being left out that do not answer.
    fn grow_on(
        &self,
        peers: BrickSet,
        size: u64,
        round: &mut Round,
    ) -> Result<BrickSet, ResizeError> {
        let (grown, refused) = self.change_each(peers, round, move |port| port.set_disk_size(size));
        match refused {
            Some((brick, why)) => Err(ResizeError::Peer {
                peer: self.names.one(brick),
                why,
            }),
            None => Ok(grown),
        }
    }

    /// Who has the old size again, as the local brick has, misses nothing. Of all others the
    /// marks stay.
    fn undo_size(&mut self, step: GrowStep, peers: BrickSet, accused: BrickSet, round: &mut Round) {
        if !self.is_local_back(step) {
            return;
        }
        let size = step.from;
        let (back, refused) = self.change_each(peers, round, move |port| port.set_disk_size(size));
        if let Some((brick, why)) = refused {
            round.fail(brick, PortError::Refused(why));
        }
        self.accuse(accused, back, -1, round);
    }
}
