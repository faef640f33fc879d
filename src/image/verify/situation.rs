//! What is known of who misses what, while an image is verified.

use crate::image::dirty_map::{DirtyMap, Peer};
use crate::image::heal::{Job, LinkError, SessionLink};
use crate::image::layout::Layout;

use super::error::VerifyError;

/// Bytes of the pieces that a difference is narrowed down to where there is no map: at most, in
/// files of a size that is no multiple of it.
const UNSERVED_EXTENT: u64 = 64 << 10;

/// Who serves the image.
pub enum Situation {
    /// A session of this host; its dirty map tells.
    Served(Box<Served>),
    /// Nobody: the caller holds the shared session lock on every brick that it gives.
    /// The marks tell.
    Unserved,
}

/// A session of this host.
pub struct Served {
    link: Box<dyn SessionLink>,
    job: Job,
    map: DirtyMap,
}

/// What is known of one extent of one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Debt {
    /// It is equal to the reference, as far as known.
    None,
    /// It misses data, and will be healed.
    Behind,
    /// A write to the reference is in flight.
    InFlight,
}

impl Served {
    /// Asks the session for its job and attaches to its map.
    ///
    /// # Errors
    /// [`VerifyError::Link`], [`VerifyError::Map`].
    pub fn attach(link: Box<dyn SessionLink>) -> Result<Self, VerifyError> {
        let job = link.job()?;
        let map = DirtyMap::attach(&job.map)?;
        Ok(Self { link, job, map })
    }

    /// What the session serves.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Does that session still have the image? Without it the map tells nothing.
    pub(super) fn check(&self) -> Result<(), LinkError> {
        // The map of a smaller image knows nothing any more.
        if self.map.is_replaced().unwrap_or(true) {
            return Err(LinkError::Ended("the image was resized".to_owned()));
        }
        match self.link.job()? {
            job if job.session == self.job.session => Ok(()),
            _ => Err(LinkError::Ended("another one has taken over".to_owned())),
        }
    }

    /// Does the copy miss anything?
    pub(super) fn is_behind(&self, child: usize) -> bool {
        let peer = self.peer(child);
        peer.is_none_or(|peer| self.map.next_dirty(peer, 0).is_some())
    }

    /// The copy's place in the map.
    fn peer(&self, child: usize) -> Option<Peer> {
        let place = self.job.peers.iter().position(|&peer| peer == child);
        place.and_then(Peer::new)
    }

    pub(super) fn map(&self) -> &DirtyMap {
        &self.map
    }

    /// A copy that the map does not know counts as behind.
    fn debt(&self, child: usize, extent: u64) -> Debt {
        match (self.peer(child), self.map.state(extent)) {
            (Some(_), Some(state)) if state.in_flight() > 0 => Debt::InFlight,
            (Some(peer), Some(state)) if !state.is_dirty(peer) => Debt::None,
            _ => Debt::Behind,
        }
    }
}

impl Situation {
    /// Bytes of an extent.
    pub(super) fn extent_size(&self, layout: &Layout) -> u64 {
        match self {
            Self::Served(served) => served.map.geometry().extent_size().bytes(),
            Self::Unserved if layout.is_whole() => UNSERVED_EXTENT,
            Self::Unserved => UNSERVED_EXTENT.min(1 << layout.piece().trailing_zeros()),
        }
    }

    pub(super) fn debt(&self, child: usize, extent: u64) -> Debt {
        match self {
            Self::Served(served) => served.debt(child, extent),
            Self::Unserved => Debt::None,
        }
    }
}
