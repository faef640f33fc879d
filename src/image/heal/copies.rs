//! Where the copies of an image are: the seam through which a follower opens the
//! local one and connects to the others. Tests put simulated bricks here.

use std::fs::File;
use std::sync::OnceLock;

use super::gluster_peer::{GlusterPeer, identity};
use super::link::Job;
use super::peer::{HealPeer, PeerError};
use crate::gluster::Timeouts;
use crate::image::dirty::{DirtyMap, Distrust, Identity, Peer};
use crate::image::error::LocalError;
use crate::image::local::{self, LocalTerms};
use crate::image::locate::{Catalog, LocateError, Located};

/// The copies of one image.
pub trait Copies: Send + Sync {
    /// Opens the local one, for reading only.
    ///
    /// # Errors
    /// See [`LocalError`].
    fn local(&self) -> Result<File, LocalError>;

    /// Connects to the copy of a peer of `map`, and takes the copy lock there.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn connect(&self, map: &DirtyMap, peer: Peer) -> Result<Box<dyn HealPeer>, PeerError>;
}

/// The copies on the bricks of a volume.
pub struct GlusterCopies {
    job: Job,
    timeouts: Timeouts,
    /// Learned with the first connection; a session does not change its bricks either.
    located: OnceLock<Located>,
}

impl GlusterCopies {
    /// Asks nobody yet.
    pub fn new(job: &Job) -> Self {
        Self {
            job: job.clone(),
            timeouts: Timeouts::default(),
            located: OnceLock::new(),
        }
    }

    fn located(&self, map: &DirtyMap) -> Result<&Located, PeerError> {
        if let Some(located) = self.located.get() {
            return Ok(located);
        }
        let located = self.locate().map_err(|source| PeerError::Layout {
            volume: self.job.volume.clone(),
            source: Box::new(source),
        })?;
        self.check(&located, map)?;
        Ok(self.located.get_or_init(|| located))
    }

    fn locate(&self) -> Result<Located, LocateError> {
        let Job {
            server,
            port,
            volume,
            image,
            ..
        } = &self.job;
        let catalog = Catalog::load(server, *port, volume, &self.timeouts)?;
        catalog.find(image, &identity(), &self.timeouts)
    }

    /// Are these the bricks that the map counts for?
    fn check(&self, located: &Located, map: &DirtyMap) -> Result<(), PeerError> {
        let name = |child: usize| located.set.bricks.get(child).map(ToString::to_string);
        let names: Option<Vec<_>> = self.job.peers.iter().map(|child| name(*child)).collect();
        let identity = Identity {
            gfid: located.gfid,
            size: map.geometry().size(),
            extent_size: map.geometry().extent_size(),
            local: name(self.job.local).unwrap_or_default(),
            peers: names.unwrap_or_default(),
        };
        let checked = map.check(&identity);
        checked.map_err(|reason| other_map(map, reason))
    }
}

impl Copies for GlusterCopies {
    fn local(&self) -> Result<File, LocalError> {
        // What it looks like inside was the session's to judge.
        let terms = LocalTerms {
            read_only: true,
            force_raw: true,
        };
        local::open(&self.job.local_path, self.job.gfid, terms).map(|local| local.file)
    }

    fn connect(&self, map: &DirtyMap, peer: Peer) -> Result<Box<dyn HealPeer>, PeerError> {
        let located = self.located(map)?;
        let child = self.job.peers.get(peer.index());
        let child = *child.ok_or_else(|| other_map(map, Distrust::Peers))?;
        let connected = GlusterPeer::connect(located, child, self.job.session, &self.timeouts)?;
        Ok(Box::new(connected))
    }
}

fn other_map(map: &DirtyMap, reason: Distrust) -> PeerError {
    PeerError::OtherMap {
        map: map.path().to_owned(),
        reason,
    }
}
