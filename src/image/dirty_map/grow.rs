//! A larger map in place of one whose image grows.
//!
//! The session drafts it beside the old one while writes go on, which takes the time;
//! once none is in flight it is finished: the debt is carried over, and the new file
//! takes the old one's name. Whatever happens before that, the old map stands. After it
//! the old one has no name any more, so no healer may be at work on it:
//! [`DirtyMap::keep_healers_out`].

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use crate::image::durable::{self, Put};

use super::error::MapError;
use super::extent::{LANES, Peers, spread};
use super::geometry::{ExtentSize, Geometry};
use super::map::DirtyMap;
use super::mapping::RoleLock;
use super::open::{DRAFT, allocate, options, wait_for, write_header};
use super::terms::Role;

/// Bits of an extent in a word.
const LANE_BITS: u64 = u64::BITS as u64 / LANES as u64;

/// A map to be: all its room is there, nobody knows it.
pub struct Draft {
    path: PathBuf,
    draft: DraftName,
    file: File,
    /// Taken before anybody can find the file.
    session: RoleLock,
    geometry: Geometry,
}

/// The file's name until it is finished. What has it when this is dropped would not be
/// trusted: its room is given back.
struct DraftName(PathBuf);

impl Drop for DraftName {
    fn drop(&mut self) {
        // A finished one has another name.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// No healer may claim the map as long as this lives.
#[must_use]
pub struct NoHealer {
    _role: RoleLock,
}

impl DirtyMap {
    /// Waits some seconds for a healer to end, and lets no other begin.
    ///
    /// # Errors
    ///
    /// [`MapError::InUse`] by a healer that does not end, [`MapError::Io`].
    pub fn keep_healers_out(&self) -> Result<NoHealer, MapError> {
        let _role = wait_for(self.file(), Role::Healer, self.path())?;
        Ok(NoHealer { _role })
    }

    /// Makes room for a map of the same image with `size` bytes, beside this one.
    ///
    /// # Errors
    ///
    /// [`MapError::NotOwner`], [`MapError::NoSpace`], [`MapError::Unwritable`],
    /// [`MapError::Io`].
    pub fn draft(&self, size: u64, extent_size: ExtentSize) -> Result<Draft, MapError> {
        if !self.is_session() {
            return Err(MapError::NotOwner {
                path: self.path().to_owned(),
            });
        }
        let peers = self.geometry().all_peers().iter().count();
        let geometry = Geometry::new(size, extent_size, peers)?;
        let draft = DraftName(durable::draft_of(self.path(), DRAFT));
        // What a session left that died over it.
        let _ = std::fs::remove_file(&draft.0);
        let failed = |what, error| MapError::of(what, &draft.0, geometry.file_len(), error);
        let file = options()
            .create_new(true)
            .mode(0o600)
            .open(&draft.0)
            .map_err(|error| failed("make", error))?;
        allocate(&file, &draft.0, geometry.file_len())?;
        file.set_len(geometry.file_len())
            .and_then(|()| file.sync_all())
            .map_err(|error| failed("sync", error))?;
        let session = RoleLock::take(&file, Role::Session).map_err(|e| failed("lock", e))?;
        let session = session.ok_or_else(|| MapError::InUse {
            path: draft.0.clone(),
            role: Role::Session,
        })?;
        Ok(Draft {
            path: self.path().to_owned(),
            draft,
            file,
            session,
            geometry,
        })
    }

    /// Another map has taken this one's place, or none has one now.
    ///
    /// # Errors
    ///
    /// [`MapError::Io`].
    pub fn is_replaced(&self) -> Result<bool, MapError> {
        super::open::is_at(self.file(), self.path()).map(|is_at| !is_at)
    }
}

impl Draft {
    /// Takes over what `old` knows, with the area that is new dirty for the peers that
    /// are `lacking` it, and takes the place of its file. No write may be in flight in
    /// `old`, and no healer at work on it.
    ///
    /// # Errors
    ///
    /// [`MapError::InFlight`], [`MapError::Io`] and the like; `old` then stands.
    pub fn finish(self, old: &DirtyMap, lacking: Peers) -> Result<DirtyMap, MapError> {
        let extents = old.extents_in_flight();
        if extents > 0 {
            return Err(MapError::InFlight {
                path: self.path,
                extents,
            });
        }
        let mut header = old.header().clone();
        (header.geometry, header.clean) = (self.geometry, false);
        header.record = old.record();
        let failed = |what, error| MapError::of(what, &self.draft.0, 0, error);
        let file = self.file.try_clone().map_err(|e| failed("use", e))?;
        let map = DirtyMap::over(&self.path, file, header.clone(), Some(self.session))?;
        carry_over(old, &map);
        let size = old.geometry().size();
        let more = self.geometry.size().saturating_sub(size);
        map.mark_dirty(lacking, size, more);
        write_header(&self.file, &self.draft.0, &header)?;
        let put = durable::put(&self.file, &self.draft.0, &self.path);
        // After a power cut neither map is trusted: which of the two is found does not matter.
        if let Put::Fleeting(error) = put.map_err(|e| failed("rename", e))? {
            log::warn!(
                "cannot sync the directory of {}: {error}",
                self.path.display()
            );
        }
        Ok(map)
    }
}

/// What is dirty in `old` is dirty in `new`, which nobody else sees yet.
fn carry_over(old: &DirtyMap, new: &DirtyMap) {
    let geometry = old.geometry();
    let all = geometry.all_peers();
    if geometry.extent_size() == new.geometry().extent_size() {
        let dirty = spread(all.dirty_bits());
        for (index, (new, old)) in new.words().iter().zip(old.words()).enumerate() {
            let counts = counting_lanes(geometry, index as u64);
            new.store(
                old.load(Ordering::Acquire) & dirty & counts,
                Ordering::Release,
            );
        }
        return;
    }
    for peer in all.iter() {
        let mut from = 0;
        while let Some(extent) = old.next_dirty(peer, from) {
            let bytes = geometry.bytes_of(extent);
            new.mark_dirty(peer.into(), bytes.start, bytes.end - bytes.start);
            from = extent + 1;
        }
    }
}

/// The lanes of a word that are extents: behind the last one there may be anything.
fn counting_lanes(geometry: &Geometry, word: u64) -> u64 {
    let lanes = geometry.extents().saturating_sub(word * LANES as u64);
    match lanes {
        0 => 0,
        lanes if lanes >= LANES as u64 => u64::MAX,
        lanes => !(u64::MAX << (lanes * LANE_BITS)),
    }
}
