//! Copying the runs of one stretch: compare, send or punch, and wait for all of it.
//!
//! Called by the engine with the lock held and every copy begun. Clears nothing.

use std::ops::Range;

use super::error::HealError;
use super::local::{LocalCopy, has_sum, is_zero};
use super::peer::{Answer, HealPeer, PeerError};
use super::plan;
use super::progress::Figures;
use crate::gluster::StrongChecksum;
use crate::image::dirty::geometry::Geometry;

/// From one file to one peer.
pub struct Copier<'a> {
    peer: &'a dyn HealPeer,
    local: &'a mut LocalCopy,
    geometry: &'a Geometry,
    sent: Vec<Sent>,
    figures: Figures,
}

/// A change of the peer that is not answered yet, and what it counts for.
struct Sent {
    answer: Answer<()>,
    figures: Figures,
}

/// What an extent's copy at the peer is, or is to become.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Equal,
    Zero,
    Data,
}

impl<'a> Copier<'a> {
    /// Nothing is done yet.
    pub fn new(peer: &'a dyn HealPeer, local: &'a mut LocalCopy, geometry: &'a Geometry) -> Self {
        Self {
            peer,
            local,
            geometry,
            sent: Vec::new(),
            figures: Figures::default(),
        }
    }

    /// What was done so far, as far as it was answered.
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// Copies `runs` of extents, each of at most the local buffer's size; with
    /// `compare`, what differs of them. On success the peer has written all of it.
    /// Whatever the outcome, no change is left unanswered that an answer can still
    /// be had for: one that came later could overtake a newer copy.
    ///
    /// # Errors
    /// The first of what failed; a lost connection before all else.
    pub fn copy(&mut self, runs: &[Range<u64>], compare: bool) -> Result<(), HealError> {
        let mut outcome = self.start(runs, compare);
        for sent in self.sent.drain(..) {
            match sent.answer.wait() {
                Ok(()) => self.figures += sent.figures,
                Err(error) => {
                    let error = HealError::from(error);
                    let keep = |first: &HealError| first.lost_peer() || !error.lost_peer();
                    if !outcome.as_ref().is_err_and(keep) {
                        outcome = Err(error);
                    }
                }
            }
        }
        outcome
    }

    fn start(&mut self, runs: &[Range<u64>], compare: bool) -> Result<(), HealError> {
        let mut asked = Vec::new();
        if compare {
            asked = ask_sums(self.peer, self.geometry, runs.iter().cloned())?;
        }
        let mut asked = asked.into_iter();
        for run in runs {
            let range = plan::bytes_of(run, self.geometry);
            let bytes = match self.local.read(&range) {
                Ok(bytes) => bytes,
                Err(source) => return Err(HealError::Read { range, source }),
            };
            self.figures.bytes_read += bytes.len() as u64;
            let view = View {
                bytes,
                start: range.start,
                geometry: self.geometry,
            };
            let equal = match asked.next() {
                Some(sum) => {
                    self.figures.bytes_compared += bytes.len() as u64;
                    equal_extents(self.peer, &view, run, sum)?
                }
                None => Vec::new(),
            };
            for (kind, part) in plan::split(run.clone(), |extent| {
                view.kind(extent, equal.contains(&extent))
            }) {
                self.sent.extend(send(self.peer, &view, kind, &part)?);
            }
        }
        Ok(())
    }
}

/// Also when something panicked in between: whoever ends the connection may rely on
/// it that the peer is done with everything it was sent.
impl Drop for Copier<'_> {
    fn drop(&mut self) {
        for sent in self.sent.drain(..) {
            let _ = sent.answer.wait();
        }
    }
}

/// The local bytes of a run.
struct View<'a> {
    bytes: &'a [u8],
    /// Where in the image they begin.
    start: u64,
    geometry: &'a Geometry,
}

impl View<'_> {
    /// The bytes of some of its extents.
    fn of(&self, extents: &Range<u64>) -> &[u8] {
        let range = plan::bytes_of(extents, self.geometry);
        let index = |at: u64| usize::try_from(at - self.start).unwrap_or(usize::MAX);
        let part = index(range.start)..index(range.end);
        self.bytes.get(part).unwrap_or_default()
    }

    fn kind(&self, extent: u64, equal: bool) -> Kind {
        if equal {
            Kind::Equal
        } else if is_zero(self.of(&(extent..extent + 1))) {
            Kind::Zero
        } else {
            Kind::Data
        }
    }
}

/// Which extents of `run` the peer has as they are here: all if the sum of the
/// run is right, else it is asked extent by extent.
fn equal_extents(
    peer: &dyn HealPeer,
    view: &View<'_>,
    run: &Range<u64>,
    sum: Answer<StrongChecksum>,
) -> Result<Vec<u64>, PeerError> {
    if has_sum(view.bytes, &sum.wait()?) {
        return Ok(run.clone().collect());
    }
    if run.end - run.start == 1 {
        return Ok(Vec::new());
    }
    let single = |extent| extent..extent + 1;
    let asked = ask_sums(peer, view.geometry, run.clone().map(single))?;
    let mut equal = Vec::new();
    for (extent, sum) in run.clone().zip(asked) {
        if has_sum(view.of(&single(extent)), &sum.wait()?) {
            equal.push(extent);
        }
    }
    Ok(equal)
}

fn ask_sums(
    peer: &dyn HealPeer,
    geometry: &Geometry,
    runs: impl Iterator<Item = Range<u64>>,
) -> Result<Vec<Answer<StrongChecksum>>, PeerError> {
    runs.map(|run| peer.start_checksum(plan::bytes_of(&run, geometry)))
        .collect()
}

fn send(
    peer: &dyn HealPeer,
    view: &View<'_>,
    kind: Kind,
    part: &Range<u64>,
) -> Result<Option<Sent>, PeerError> {
    let bytes = view.of(part);
    let range = plan::bytes_of(part, view.geometry);
    let mut figures = Figures::default();
    let answer = match kind {
        Kind::Equal => return Ok(None),
        Kind::Zero => {
            figures.bytes_zeroed = bytes.len() as u64;
            peer.start_zero(range)?
        }
        Kind::Data => {
            figures.bytes_sent = bytes.len() as u64;
            peer.start_write(range.start, bytes)?
        }
    };
    Ok(Some(Sent { answer, figures }))
}
