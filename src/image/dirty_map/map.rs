//! The operations on a map: around a write, about the debt, on everything.
//!
//! None of them makes a system call or takes a lock, but [`DirtyMap::sync`] and
//! those in [`super::open`].

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::error::MapError;
use super::extent::{Extent, ExtentState, LANES, Peer, Peers, mark_word_dirty};
use super::geometry::Geometry;
use super::header::{Header, Identity, Record};
use super::mapping::{Mapping, RoleLock};
use super::scan::Scan;
use super::sync::{AtomicBool, AtomicU64, Ordering};
use super::terms::Distrust;

/// A map, opened by the session or attached to. See the module [`super`].
pub struct DirtyMap {
    path: PathBuf,
    file: File,
    mapping: Mapping,
    header: Header,
    /// Held by the session that opened the map.
    session: Mutex<Option<RoleLock>>,
    /// A write was told [`Begun::Full`] and nobody [`Ended::RoomAgain`] since.
    wants_room: AtomicBool,
    /// Changed by the session alone, and with it the header in the file.
    record: Mutex<Record>,
}

/// The answer to a write that wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Begun {
    /// Submit it; [`DirtyMap::end_write`] is owed, with the same arguments.
    Yes,
    /// 255 writes are in flight in one of its extents: ask again after the next
    /// [`DirtyMap::end_write`] that answers [`Ended::RoomAgain`]. Nothing is owed.
    Full,
    /// It reaches behind the end of the image. Nothing is owed.
    Outside,
}

/// What the end of a write changed for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Ended {
    /// Nothing.
    Quietly,
    /// Every write that was told [`Begun::Full`] is to ask again.
    RoomAgain,
}

impl DirtyMap {
    pub(super) fn over(
        path: &Path,
        file: File,
        header: Header,
        session: Option<RoleLock>,
    ) -> Result<Self, MapError> {
        let record = Mutex::new(header.record);
        let mapping = Mapping::of(&file, &header.geometry)
            .map_err(|e| MapError::of("map", path, header.geometry.file_len(), e))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            mapping,
            header,
            session: Mutex::new(session),
            wants_room: AtomicBool::new(false),
            record,
        })
    }

    /// Before `len` bytes at byte `offset` change: counts a write in flight in
    /// every extent they touch and makes those dirty for every peer. When one of
    /// them is full, those before it stay dirty, which costs a needless copy.
    pub fn begin_write(&self, offset: u64, len: u64) -> Begun {
        let Some(touched) = self.geometry().touched(offset, len) else {
            return Begun::Outside;
        };
        let mut announced = None;
        loop {
            match self.begin_extents(touched.clone()) {
                Ok(()) => return Begun::Yes,
                Err(full) if announced == Some(full) => return Begun::Full,
                // First say that room is wanted, then look again: the extent's
                // word orders this against a write that ends there meanwhile.
                // Either the look finds the room, or that end finds the wish.
                Err(full) => {
                    self.wants_room.store(true, Ordering::Release);
                    self.extent(full).into_iter().for_each(Extent::announce);
                    announced = Some(full);
                }
            }
        }
    }

    /// Counts a write in all of them or in none; an error is the first full one.
    fn begin_extents(&self, extents: Range<u64>) -> Result<(), u64> {
        let all = self.geometry().all_peers();
        for number in extents.clone() {
            let extent = self.extent(number);
            if !extent.is_none_or(|extent| extent.begin_write(all)) {
                self.end_extents(extents.start..number);
                return Err(number);
            }
        }
        Ok(())
    }

    /// The write begun with the same arguments has completed, well or not.
    pub fn end_write(&self, offset: u64, len: u64) -> Ended {
        let touched = self.geometry().touched(offset, len);
        self.end_extents(touched.unwrap_or_default());
        if self.wants_room.load(Ordering::Acquire) && self.wants_room.swap(false, Ordering::AcqRel)
        {
            Ended::RoomAgain
        } else {
            Ended::Quietly
        }
    }

    fn end_extents(&self, extents: Range<u64>) {
        for extent in self.each(extents) {
            if extent.end_write().is_err() {
                // Somebody else wrote to the file. Dirty is what is safe.
                let path = self.path.display();
                log::error!("{path}: a write ended that was not counted");
                extent.mark_dirty(self.geometry().all_peers());
            }
        }
    }

    /// The first extent at or after `from` that `peer` misses.
    pub fn next_dirty(&self, peer: Peer, from: u64) -> Option<u64> {
        self.scan().next(Peers::from(peer).dirty_bits(), from)
    }

    /// The peers that miss anything: one look at the map for all of them.
    ///
    /// It reads every word of a clean map, 8 bytes for four extents. There is no summary
    /// of them that would save this: a healer's process makes extents dirty as well, so it
    /// would be in the file, and one more atomic change for each write.
    pub fn behind(&self) -> Peers {
        let all = self.geometry().all_peers().dirty_bits();
        Peers::of_dirty_bits(self.scan().any(all))
    }

    /// Is every extent that `len` bytes at byte `offset` touch dirty for `peer`? `false`
    /// for a range behind the image's end.
    pub fn is_all_dirty(&self, peer: Peer, offset: u64, len: u64) -> bool {
        let touched = self.geometry().touched(offset, len);
        touched.is_some_and(|extents| self.each(extents).all(|e| e.state().is_dirty(peer)))
    }

    /// How many extents `peer` misses. A scan of the whole map, four extents at a
    /// time: 3 MiB for 100 GiB in extents of 64 KiB.
    ///
    /// Zero means that no write is in flight either, since a write makes its
    /// extents dirty before it is submitted. The figure is exact while no write
    /// begins and no copy ends.
    pub fn dirty_extents(&self, peer: Peer) -> u64 {
        self.scan().count(Peers::from(peer).dirty_bits())
    }

    /// How many bytes of the image lie in extents that `peer` misses.
    pub fn dirty_bytes(&self, peer: Peer) -> u64 {
        let geometry = self.geometry();
        let full = self.dirty_extents(peer) * geometry.extent_size().bytes();
        let last = geometry.extents() - 1;
        let cut = geometry.extent_size().bytes() - byte_count(geometry.bytes_of(last));
        if self.state(last).is_some_and(|state| state.is_dirty(peer)) {
            full.saturating_sub(cut)
        } else {
            full
        }
    }

    /// In how many extents a write is in flight.
    pub fn extents_in_flight(&self) -> u64 {
        self.scan().count_in_flight()
    }

    /// Makes the extents that `len` bytes at byte `offset` touch dirty for
    /// `peers`; a range behind the image's end is cut to it.
    pub fn mark_dirty(&self, peers: Peers, offset: u64, len: u64) {
        let size = self.geometry().size();
        let offset = offset.min(size);
        let peers = peers.and(self.geometry().all_peers());
        let touched = self.geometry().touched(offset, len.min(size - offset));
        let Some(touched) = touched.filter(|_| !peers.is_empty()) else {
            return;
        };
        // Whole words at once: it may be the whole of a large map.
        let lanes = LANES as u64;
        let from = touched.start.next_multiple_of(lanes).min(touched.end);
        let to = (touched.end / lanes * lanes).max(from);
        for extent in self.each(touched.start..from) {
            extent.mark_dirty(peers);
        }
        for word in self.words_of(from / lanes..to / lanes) {
            mark_word_dirty(word, peers);
        }
        for extent in self.each(to..touched.end) {
            extent.mark_dirty(peers);
        }
    }

    fn words_of(&self, words: Range<u64>) -> &[AtomicU64] {
        let within = |word| usize::try_from(word).unwrap_or(usize::MAX);
        let range = within(words.start)..within(words.end);
        self.words().get(range).unwrap_or_default()
    }

    /// Makes everything dirty for `peers`.
    pub fn mark_all_dirty(&self, peers: Peers) {
        self.mark_dirty(peers, 0, self.geometry().size());
    }

    /// Makes everything clean for `peers`, because the caller knows from elsewhere
    /// that their copies are equal to ours: no brick has a mark against them.
    /// Extents with a write in flight stay dirty.
    pub fn declare_clean(&self, peers: Peers) {
        for peer in peers.iter() {
            let mut from = 0;
            while let Some(extent) = self.next_dirty(peer, from) {
                if let Some(extent) = self.extent(extent) {
                    extent.declare_clean(peer.into());
                }
                from = extent + 1;
            }
        }
    }

    /// Writes the map to the disk, so that what was marked survives a restart of
    /// the host even if the map is closed already.
    ///
    /// # Errors
    ///
    /// [`MapError::Io`].
    pub fn sync(&self) -> Result<(), MapError> {
        self.mapping
            .flush()
            .map_err(|e| MapError::of("sync", &self.path, self.geometry().file_len(), e))
    }

    /// The state of one extent; `None` behind the end of the image.
    pub fn state(&self, extent: u64) -> Option<ExtentState> {
        self.extent(extent).map(Extent::state)
    }

    /// How the image is cut into extents, and the peers.
    pub fn geometry(&self) -> &Geometry {
        &self.header.geometry
    }

    /// The header as it was when the map was opened or attached to.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Is this the map of `identity`, its peers in the same order?
    ///
    /// # Errors
    ///
    /// What differs.
    pub fn check(&self, identity: &Identity) -> Result<(), Distrust> {
        self.header.check_identity(identity)
    }

    /// What is known about the marks on the bricks; see [`DirtyMap::read_record`] for
    /// an attached map.
    pub fn record(&self) -> Record {
        *self.record.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Keeps what is known about the marks; it is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// [`MapError::NotOwner`] on an attached map, [`MapError::Io`].
    pub fn set_record(&self, record: Record) -> Result<(), MapError> {
        if self.record() == record {
            return Ok(());
        }
        self.write_header(record, false)?;
        self.keep_record(record);
        Ok(())
    }

    pub(super) fn keep_record(&self, record: Record) {
        *self.record.lock().unwrap_or_else(|e| e.into_inner()) = record;
    }

    /// Gives the session's role back, whoever else still looks at the map: another
    /// session may open it from now on.
    pub fn release(&self) {
        let session = self.session.lock();
        drop(session.unwrap_or_else(|e| e.into_inner()).take());
    }

    /// The map's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn is_session(&self) -> bool {
        let session = self.session.lock();
        session.unwrap_or_else(|e| e.into_inner()).is_some()
    }

    /// Counts every write in flight as ended; in how many extents there were any.
    pub(super) fn settle(&self) -> u64 {
        let mut settled = 0;
        let mut from = 0;
        while let Some(extent) = self.scan().next_in_flight(from) {
            let all = self.geometry().all_peers();
            settled += u64::from(self.extent(extent).is_some_and(|e| e.settle(all)));
            from = extent + 1;
        }
        settled
    }

    pub(super) fn extent(&self, extent: u64) -> Option<Extent<'_>> {
        if extent >= self.geometry().extents() {
            return None;
        }
        let word = usize::try_from(extent / LANES as u64).ok()?;
        let lane = (extent % LANES as u64) as usize;
        Some(Extent::new(self.words().get(word)?, lane))
    }

    pub(super) fn scan(&self) -> Scan<'_> {
        Scan::new(self.words(), self.geometry().extents())
    }

    fn each(&self, extents: Range<u64>) -> impl Iterator<Item = Extent<'_>> {
        extents.filter_map(|extent| self.extent(extent))
    }

    pub(super) fn words(&self) -> &[AtomicU64] {
        self.mapping.words()
    }
}

fn byte_count(range: Range<u64>) -> u64 {
    range.end - range.start
}
