//! Where the copies of a volume's image are, for a healer.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::gluster::Timeouts;
use crate::image::brick_client::heal_peer::GlusterPeer;
use crate::image::dirty_map::{DirtyMap, Distrust, Identity, Peer};
use crate::image::heal::{Copies, HealPeer, Job, LocalFiles, PeerError};
use crate::image::layout::Layout;
use crate::image::local::error::LocalError;
use crate::image::local::{self, LocalTerms};
use crate::image::locate::{Catalog, LocateError, Located};

/// The copies on the bricks of a volume.
struct GlusterCopies {
    job: Job,
    timeouts: Timeouts,
    /// What glusterd said last: it need not be there all the time.
    located: Mutex<Option<Located>>,
}

/// The copies of this job's image, on its volume. Asks nobody yet.
pub fn of_volume(job: &Job) -> Arc<dyn Copies> {
    Arc::new(GlusterCopies::new(job))
}

impl GlusterCopies {
    fn new(job: &Job) -> Self {
        Self {
            job: job.clone(),
            timeouts: Timeouts::default(),
            located: Mutex::default(),
        }
    }

    /// The volume as it is now, as far as glusterd answers: its bricks may have been
    /// replaced since the session was opened.
    fn located(&self, map: &DirtyMap) -> Result<Located, PeerError> {
        let now = self.locate(map);
        let mut known = self.located.lock().unwrap_or_else(PoisonError::into_inner);
        match (now, &*known) {
            (Ok(located), _) => Ok(known.insert(located).clone()),
            (Err(LocateError::Glusterd(_)), Some(before)) => Ok(before.clone()),
            (Err(source), _) => Err(PeerError::Layout {
                volume: self.job.volume.clone(),
                source: Box::new(source),
            }),
        }
    }

    fn locate(&self, map: &DirtyMap) -> Result<Located, LocateError> {
        let Job {
            server,
            port,
            volume,
            image,
            gfid,
            ..
        } = &self.job;
        let catalog = Catalog::load(server, *port, volume, &self.timeouts)?;
        // Not by its name: that may be another one by now.
        let brick = self.brick(self.job.local);
        match catalog.set_with(&brick) {
            Some(set) => Ok(Located {
                volume: volume.clone(),
                volume_id: catalog.volume_id(),
                image: image.clone(),
                set: set.clone(),
                gfid: *gfid,
                size: map.geometry().size(),
                pieces: None,
            }),
            None => Err(LocateError::BrickGone {
                volume: volume.clone(),
                brick,
            }),
        }
    }

    /// Name of a brick that the session was opened with.
    fn brick(&self, child: usize) -> String {
        self.job.bricks.get(child).cloned().unwrap_or_default()
    }

    /// Are these the bricks that the map counts for?
    fn check(&self, map: &DirtyMap) -> Result<(), PeerError> {
        let identity = Identity {
            gfid: self.job.gfid,
            size: map.geometry().size(),
            extent_size: map.geometry().extent_size(),
            local: self.brick(self.job.local),
            peers: self
                .job
                .peers
                .iter()
                .map(|peer| self.brick(*peer))
                .collect(),
        };
        let checked = map.check(&identity);
        checked.map_err(|reason| other_map(map, reason))
    }
}

impl Copies for GlusterCopies {
    fn local(&self, map: &DirtyMap) -> Result<LocalFiles, LocalError> {
        let brick = self.brick(self.job.local);
        // `HOST:/PATH`.
        let folder = brick.find(":/").and_then(|colon| brick.get(colon + 1..));
        let folder = folder.unwrap_or_default();
        let (path, gfid, size) = (&self.job.local_path, self.job.gfid, map.geometry().size());
        let place = local::place_of(path, gfid, Path::new(folder), size)?;
        // What it looks like inside was the session's to judge.
        let terms = LocalTerms {
            read_only: true,
            force_raw: true,
        };
        let opened = local::open_image(&place, terms)?;
        let mut files = vec![opened.file];
        for piece in opened.pieces.iter() {
            let again = piece.file.try_clone().map_err(|source| LocalError::Io {
                what: "use",
                path: piece.path.clone(),
                source,
            });
            files.push(again?);
        }
        Ok(LocalFiles::new(place.layout, files))
    }

    fn connect(
        &self,
        map: &DirtyMap,
        layout: &Arc<Layout>,
        peer: Peer,
    ) -> Result<Box<dyn HealPeer>, PeerError> {
        self.check(map)?;
        let located = self.located(map)?;
        let child = self.job.peers.get(peer.index());
        let child = *child.ok_or_else(|| other_map(map, Distrust::Peers))?;
        let name = self.brick(child);
        let Some(now) = located.names().position(&name) else {
            return Err(PeerError::Replaced {
                peer: name,
                volume: located.volume,
            });
        };
        let (session, timeouts) = (self.job.session, &self.timeouts);
        let connected = GlusterPeer::connect(&located, now, layout, session, timeouts)?;
        Ok(Box::new(connected))
    }
}

fn other_map(map: &DirtyMap, reason: Distrust) -> PeerError {
    PeerError::OtherMap {
        map: map.path().to_owned(),
        reason,
    }
}
