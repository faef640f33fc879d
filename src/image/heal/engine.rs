//! Passes over the dirty extents of one peer.
//!
//! # What is cleared, and when
//!
//! An extent is cleared only after the peer's FSYNC has answered, not when its
//! WRITE has: between the two, a crash of the peer takes the bytes away again, and
//! a healer that dies in between could tell nobody. Until then its *copying* flag
//! stays, in the map, where the next healer forgets it and finds the extent dirty.
//! So clean in the map means durable at the peer, whoever dies when. Clearing late
//! costs no byte more: a write that makes the copy void in between would have made
//! the extent dirty again anyway. It is done about once a second, so that the debt
//! shrinks in small steps, and also when the peer refuses something: what it accepted
//! before is not sent again.
//!
//! # The lock
//!
//! Our session's writes are excluded by the map. Writes of ordinary clients are
//! not counted there; they come through AFR, to every brick. AFR takes its data
//! lock of the range on every brick before it writes to any, and gives it back
//! when the write has been answered by all. So our lock on the one brick that we
//! write is enough. Either the client's was granted there first: then we wait
//! until its write is on the local brick too, and read it. Or ours was: then the
//! client has written nowhere yet, and will do so on every brick after us. Hence
//! the order *lock, read, write, answers, unlock*. (A client that cannot lock this
//! brick does not write to it and accuses it by marks of its own.)
//!
//! # The mark
//!
//! Under that lock the peer is asked for the mark that the session stored on it, for
//! what we know of the session may be old: it may be over or cut off, and the copy
//! healed, unmarked and written to by others. Whoever does so removes the mark first,
//! under the same lock. So while it stands, the peer has nothing that we have not.
//!
//! One stretch is locked at a time, and the next only after it was given back: a
//! client that queues for the lock gets it in between. We queue for it, too: a client
//! that takes it anew as soon as it has given it back would never be found without.
//!
//! # Extents with a write in flight
//!
//! They cannot be cleared, so they are left for the end of the pass and tried again
//! a few times. What has a write in flight even then (a journal of the guest, say)
//! is sent as it is, without a claim to be clean: the peer then has every write
//! that was over, and the extent stays dirty for the one that was not.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::gluster::MAX_IO;
use crate::image::dirty_map::{Copied, Healer, Peer, Peers};
use crate::image::layout::{FileIndex, Layout};

use super::copy::Copier;
use super::error::HealError;
use super::local::{LocalCopy, LocalFiles};
use super::pass::{Pass, PassEnd, PassOptions};
use super::peer::HealPeer;
use super::plan::{self, Limits};
use super::progress::Figures;

/// The most of an image that is locked at once, in bytes.
const LOCK_SPAN: u64 = 64 << 20;
/// The most bytes copied between two FSYNCs...
const COMMIT_BYTES: u64 = 64 << 20;
/// ...and the longest time, when stretches take less.
const COMMIT_PERIOD: Duration = Duration::from_secs(1);
/// How often extents with a write in flight are tried again at the end of a pass.
const RETRIES: usize = 3;
/// The pause before each of these times.
const RETRY_PAUSE: Duration = Duration::from_millis(5);
/// The most extents that are remembered for that, more than a queue of writes
/// touches; the others are left to the next pass.
const MAX_MISSED: usize = 4096;

/// What to do about an extent with a write in flight.
#[derive(Clone, Copy)]
enum InFlight {
    /// Nothing now, but try again.
    Later,
    /// Send it as it is; it stays dirty.
    Send,
}

/// Heals one peer through one connection.
pub struct Engine {
    pub(super) healer: Arc<Healer>,
    pub(super) id: Peer,
    pub(super) peer: Box<dyn HealPeer>,
    pub(super) local: LocalCopy,
    /// Of both copies.
    pub(super) layout: Arc<Layout>,
    pub(super) options: PassOptions,
    /// The extents whose copy was begun and not ended yet.
    pub(super) begun: Vec<u64>,
    /// How many of them the peer has, as far as it answered.
    pub(super) accepted: usize,
    /// Extents that had a write in flight, to be tried again in this pass.
    missed: Vec<u64>,
    /// Bytes sent, zeroed and compared since the last FSYNC.
    uncommitted: u64,
    /// When the last FSYNC was answered, or the pass began.
    committed: Duration,
    /// The files in which changes may have been made without an FSYNC after them: at
    /// first the one whose size an earlier engine may have changed.
    unsynced: BTreeSet<FileIndex>,
    /// A file of several that this pass left out: see [`Engine::leave_unmarked`].
    pub(super) unmarked: Option<HealError>,
    /// The peer was left alone for [`PassOptions::quiet`], its file has the right size.
    ready: bool,
    /// The last pass compared: see [`PassOptions::compare_first`].
    compares: bool,
    /// The connection is not to be used any more.
    broken: bool,
}

impl Engine {
    /// Copies from `files`, the local copy, what `healer`'s map says that peer `id`
    /// misses, to `peer`.
    pub fn new(
        healer: Arc<Healer>,
        id: Peer,
        files: Arc<LocalFiles>,
        peer: Box<dyn HealPeer>,
        options: PassOptions,
    ) -> Self {
        Self {
            healer,
            id,
            peer,
            layout: Arc::clone(files.layout()),
            local: LocalCopy::new(files, MAX_IO),
            options,
            begun: Vec::new(),
            accepted: 0,
            missed: Vec::new(),
            uncommitted: 0,
            committed: Duration::ZERO,
            unsynced: BTreeSet::from([FileIndex::BASE]),
            unmarked: None,
            ready: false,
            compares: false,
            broken: false,
        }
    }

    /// The peer's name, `host:path`.
    pub fn peer_name(&self) -> &str {
        self.peer.name()
    }

    /// Can it still copy, as far as known?
    pub fn is_usable(&self) -> bool {
        !self.broken && self.peer.is_connected()
    }

    /// Goes once over the map, in ascending order, and copies what is dirty. After
    /// [`PassEnd::Locked`] the connection is not used any more: the request for the lock
    /// that was not granted stands in the brick's queue as long as that lasts.
    ///
    /// # Errors
    /// See [`HealError`]. What was not durable at the peer by then stays dirty.
    pub fn run_pass(&mut self) -> Result<Pass, HealError> {
        let done = self.pass().map_err(|error| self.keep_accepted(error));
        let leave = match &done {
            Ok(pass) => pass.end == PassEnd::Locked,
            Err(error) => error.lost_peer(),
        };
        if leave {
            self.broken = true;
            self.peer.close();
        }
        done
    }

    fn pass(&mut self) -> Result<Pass, HealError> {
        let mut pass = Pass::default();
        if self.broken {
            let peer = self.peer.name().to_owned();
            return Err(HealError::Broken { peer });
        }
        self.missed.clear();
        self.unmarked = None;
        self.committed = self.options.clock.now();
        pass.covered = true;
        pass.end = self.all_stretches(&mut pass)?;
        pass.covered &= pass.end == PassEnd::Complete;
        self.commit(&mut pass)?;
        match self.unmarked.take() {
            Some(error) if pass.end == PassEnd::Complete => Err(error),
            _ => Ok(pass),
        }
    }

    fn all_stretches(&mut self, pass: &mut Pass) -> Result<PassEnd, HealError> {
        let compare = self.options.compare_first.load(Ordering::Relaxed);
        // Of a peer that has become suspect the size is as unknown as the rest.
        if !self.ready || compare && !self.compares {
            match self.prepare()? {
                PassEnd::Complete => self.ready = true,
                end => return Ok(end),
            }
        }
        self.compares = compare;
        let mut from = 0;
        while let Some(extent) = self.next_dirty(from) {
            if !self.options.wait_for_tokens() {
                return Ok(PassEnd::Stopped);
            }
            match self.next_stretch(extent, pass) {
                Ok((PassEnd::Complete, next)) => from = next,
                Ok((end, _)) => return Ok(end),
                Err(error) => from = self.leave_unmarked(error, extent, pass)?,
            }
        }
        self.missed_stretches(pass)
    }

    /// What begins with this extent: where to go on.
    fn next_stretch(&mut self, extent: u64, pass: &mut Pass) -> Result<(PassEnd, u64), HealError> {
        if let Some(hole) = self.hole_at(extent)? {
            let (end, equal) = self.hole(&hole, pass)?;
            if equal || end != PassEnd::Complete {
                return Ok((end, hole.end));
            }
        }
        let extents = self.stretch_of(self.dirty_from(extent));
        let next = extents.last().map_or(extent, |last| *last) + 1;
        Ok((self.stretch(&extents, InFlight::Later, pass)?, next))
    }

    /// What had a write in flight, again and again; in the end as it is.
    fn missed_stretches(&mut self, pass: &mut Pass) -> Result<PassEnd, HealError> {
        for retry in 1..=RETRIES {
            let missed = std::mem::take(&mut self.missed);
            let in_flight = match retry < RETRIES {
                true => InFlight::Later,
                false => InFlight::Send,
            };
            if !missed.is_empty() {
                self.options.clock.sleep(RETRY_PAUSE);
            }
            let mut rest = missed.as_slice();
            while !rest.is_empty() {
                if !self.options.wait_for_tokens() {
                    return Ok(PassEnd::Stopped);
                }
                let extents = self.stretch_of(rest.iter().copied());
                rest = rest.get(extents.len()..).unwrap_or_default();
                let first = extents.first().copied().unwrap_or_default();
                match self.stretch(&extents, in_flight, pass) {
                    Ok(PassEnd::Complete) => {}
                    Ok(end) => return Ok(end),
                    Err(error) => drop(self.leave_unmarked(error, first, pass)?),
                }
            }
        }
        Ok(PassEnd::Complete)
    }

    /// Copies a stretch under the lock, and makes it durable when there is enough.
    fn stretch(
        &mut self,
        extents: &[u64],
        in_flight: InFlight,
        pass: &mut Pass,
    ) -> Result<PassEnd, HealError> {
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else {
            return Ok(PassEnd::Complete);
        };
        let span = self.bytes_of(&(*first..last + 1));
        let end = self.under_lock(span, |engine| engine.copy(extents, in_flight, pass))?;
        self.accepted = self.begun.len();
        self.commit_if_due(pass)?;
        Ok(end)
    }

    pub(super) fn commit_if_due(&mut self, pass: &mut Pass) -> Result<(), HealError> {
        let since = self.options.clock.now().saturating_sub(self.committed);
        match self.uncommitted >= COMMIT_BYTES || since >= COMMIT_PERIOD {
            true => self.commit(pass),
            false => Ok(()),
        }
    }

    /// Extents with a write in flight, to be tried again in this pass.
    pub(super) fn leave_for_later(&mut self, busy: &[u64], pass: &mut Pass) {
        let room = MAX_MISSED.saturating_sub(self.missed.len());
        pass.covered &= busy.len() <= room;
        self.missed.extend(busy.iter().take(room));
    }

    /// The copies of these extents, which lie in one file, may not be durable.
    pub(super) fn note_unsynced(&mut self, extents: &[u64]) {
        if let Some(first) = extents.first() {
            let start = self.healer.map().geometry().bytes_of(*first).start;
            self.unsynced.insert(self.layout.place(start).0);
        }
    }

    /// Before the first pass: see [`PassOptions::quiet`], and the files must be of one
    /// size. What the peer's lacks counts as dirty. Those of an image in several are as long
    /// as they were written: what one lacks reads as zeros, and the session levels them.
    fn prepare(&mut self) -> Result<PassEnd, HealError> {
        let until = self.options.clock.now() + self.options.quiet;
        if !self.options.sleep_until(until) {
            return Ok(PassEnd::Stopped);
        }
        if !self.layout.is_whole() {
            return Ok(PassEnd::Complete);
        }
        let expected = self.healer.map().geometry().size();
        self.under_lock(0..expected, |engine| {
            let found = engine.local.size().map_err(|source| HealError::Read {
                range: 0..expected,
                source,
            })?;
            if found != expected {
                return Err(HealError::Size { expected, found });
            }
            let size = engine.peer.size()?;
            if size < expected {
                let map = engine.healer.map();
                map.mark_dirty(Peers::from(engine.id), size, expected - size);
            }
            if size != expected {
                engine.unsynced.insert(FileIndex::BASE);
                engine.peer.truncate(expected)?;
            }
            Ok(())
        })
    }

    /// The first of these extents, as many as go under one lock.
    fn stretch_of(&self, extents: impl Iterator<Item = u64>) -> Vec<u64> {
        let limits = Limits {
            bytes: self.options.window.min(self.options.quantum()),
            span: LOCK_SPAN,
        };
        plan::stretch(extents, self.healer.map().geometry(), &self.layout, limits)
    }

    pub(super) fn dirty_from(&self, mut from: u64) -> impl Iterator<Item = u64> {
        std::iter::from_fn(move || {
            let extent = self.next_dirty(from)?;
            from = extent + 1;
            Some(extent)
        })
    }

    /// Copies extents whose bytes are locked, and waits for every answer.
    fn copy(
        &mut self,
        extents: &[u64],
        in_flight: InFlight,
        pass: &mut Pass,
    ) -> Result<(), HealError> {
        let begin = |extent: &u64| self.healer.begin_copy(self.id, *extent);
        let (begun, busy): (Vec<u64>, Vec<u64>) = extents.iter().partition(|e| begin(e));
        let extents = match in_flight {
            InFlight::Send => {
                pass.in_flight += busy.len() as u64;
                extents
            }
            InFlight::Later => {
                self.leave_for_later(&busy, pass);
                &begun
            }
        };
        self.begun.extend(&begun);
        self.note_unsynced(extents);
        let geometry = *self.healer.map().geometry();
        let runs = plan::runs(extents, &geometry, MAX_IO as u64);
        let compare = self.options.compare_first.load(Ordering::Relaxed);
        let mut copier = Copier::new(&*self.peer, &mut self.local, &geometry);
        let copied = copier.copy(&runs, compare);
        let figures = copier.figures();
        drop(copier);
        self.options.progress.add(figures);
        let moved = figures.bytes_sent + figures.bytes_compared;
        self.options.charge(moved);
        self.uncommitted += moved + figures.bytes_zeroed;
        copied
    }

    /// Makes what was copied durable at the peer, and only then clears it.
    fn commit(&mut self, pass: &mut Pass) -> Result<(), HealError> {
        if self.unsynced.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.peer.fsync(&self.unsynced) {
            // Asked again it may say yes though bytes are gone: all of it is sent again.
            self.abandon(0);
            return Err(error.into());
        }
        self.unsynced.clear();
        self.accepted = 0;
        self.committed = self.options.clock.now();
        let mut figures = Figures::default();
        for extent in self.begun.drain(..) {
            match self.healer.end_copy(self.id, extent) {
                Copied::Cleared => figures.extents_cleared += 1,
                Copied::Again => figures.extents_again += 1,
            }
        }
        self.uncommitted = 0;
        self.options.progress.add(figures);
        pass.cleared += figures.extents_cleared;
        pass.again += figures.extents_again;
        Ok(())
    }

    /// After a pass that failed: what the peer accepted before, on a connection that
    /// stands, is made durable and cleared. The error to tell.
    fn keep_accepted(&mut self, error: HealError) -> HealError {
        let stands = error.is_refusal() || matches!(error, HealError::Read { .. });
        self.abandon(if stands { self.accepted } else { 0 });
        match self.accepted {
            0 => error,
            _ => match self.commit(&mut Pass::default()) {
                Err(lost) if lost.lost_peer() => lost,
                _ => error,
            },
        }
    }

    /// The copies begun, but for the first `kept` of them, come to nothing.
    fn abandon(&mut self, kept: usize) {
        for extent in self.begun.drain(kept.min(self.begun.len())..) {
            self.healer.abandon_copy(self.id, extent);
        }
        self.accepted = self.accepted.min(kept);
        if kept == 0 {
            self.uncommitted = 0;
        }
    }

    fn next_dirty(&self, from: u64) -> Option<u64> {
        self.healer.map().next_dirty(self.id, from)
    }

    pub(super) fn bytes_of(&self, extents: &Range<u64>) -> Range<u64> {
        plan::bytes_of(extents, self.healer.map().geometry())
    }
}
