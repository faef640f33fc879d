//! Copying the runs of one stretch: compare, send or punch, and wait for all of it.
//!
//! A batch of runs at a time, however far apart: it is read at once and sent at once,
//! while the peer writes the batches before.
//!
//! Called by the engine with the lock held and every copy begun. Clears nothing.

use std::collections::VecDeque;
use std::ops::Range;

use crate::gluster::{MAX_BATCH, MAX_IO, StrongChecksum};
use crate::image::dirty_map::geometry::Geometry;

use super::error::HealError;
use super::local::{LocalCopy, ReadFailed, has_sum, is_zero};
use super::peer::{Answer, HealPeer, PeerError};
use super::plan;
use super::progress::Figures;

/// Writes on their way: one batch is made ready while another is written.
const MAX_WRITES: usize = 2 * MAX_BATCH;

/// From one file to one peer.
pub struct Copier<'a> {
    peer: &'a dyn HealPeer,
    local: &'a mut LocalCopy,
    geometry: &'a Geometry,
    under_way: UnderWay,
}

/// Changes of the peer that are not answered yet, the earliest first, and what was done
/// before.
#[derive(Default)]
struct UnderWay {
    sent: VecDeque<Sent>,
    figures: Figures,
}

/// A change, or several sent together, and what it counts for.
struct Sent {
    answer: Answer<()>,
    writes: usize,
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
            under_way: UnderWay::default(),
        }
    }

    /// What was done so far, as far as it was answered.
    pub fn figures(&self) -> Figures {
        self.under_way.figures
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
        while let Some(answer) = self.under_way.settle() {
            let Err(error) = answer.map_err(HealError::from) else {
                continue;
            };
            let keep = |first: &HealError| first.lost_peer() || !error.lost_peer();
            if !outcome.as_ref().is_err_and(keep) {
                outcome = Err(error);
            }
        }
        outcome
    }

    fn start(&mut self, runs: &[Range<u64>], compare: bool) -> Result<(), HealError> {
        let mut sums = Vec::new();
        if compare {
            sums = ask_sums(self.peer, self.geometry, runs.iter().cloned())?;
        }
        let mut sums = sums.into_iter();
        for batch in plan::batches(runs, self.geometry, MAX_BATCH, MAX_IO as u64) {
            self.start_batch(batch, &mut sums)?;
        }
        Ok(())
    }

    /// Reads a batch, and sends what is to be sent of it. `sums` are those of its runs
    /// and of the ones after, if they are compared.
    fn start_batch(
        &mut self,
        batch: &[Range<u64>],
        sums: &mut impl Iterator<Item = Answer<StrongChecksum>>,
    ) -> Result<(), HealError> {
        let geometry = self.geometry;
        let bytes_of = |run: &Range<u64>| plan::bytes_of(run, geometry);
        let ranges: Vec<_> = batch.iter().map(bytes_of).collect();
        let read = self.local.read(&ranges);
        let read =
            read.map_err(|ReadFailed { range, source }| HealError::Read { range, source })?;
        let mut writes = Vec::new();
        for ((run, range), bytes) in batch.iter().zip(&ranges).zip(read) {
            self.under_way.figures.bytes_read += bytes.len() as u64;
            let view = View {
                bytes,
                start: range.start,
                geometry,
            };
            let equal = match sums.next() {
                Some(sum) => {
                    self.under_way.figures.bytes_compared += bytes.len() as u64;
                    equal_extents(self.peer, &view, run, sum)?
                }
                None => Vec::new(),
            };
            let kind = |extent| view.kind(extent, equal.contains(&extent));
            for (kind, part) in plan::split(run.clone(), kind) {
                match kind {
                    Kind::Equal => {}
                    Kind::Zero => self.under_way.zero(self.peer, bytes_of(&part))?,
                    Kind::Data => writes.push((bytes_of(&part).start, view.of(&part))),
                }
            }
        }
        for writes in writes.chunks(MAX_BATCH) {
            self.under_way.write(self.peer, writes)?;
        }
        Ok(())
    }
}

impl UnderWay {
    /// Sends writes, at most [`MAX_BATCH`], when few enough others are under way.
    fn write(&mut self, peer: &dyn HealPeer, writes: &[(u64, &[u8])]) -> Result<(), PeerError> {
        while self.writes() + writes.len() > MAX_WRITES {
            self.settle().transpose()?;
        }
        let lengths = writes.iter().map(|(_, bytes)| bytes.len() as u64);
        let figures = Figures {
            bytes_sent: lengths.sum(),
            ..Figures::default()
        };
        self.sent.push_back(Sent {
            answer: peer.start_writes(writes)?,
            writes: writes.len(),
            figures,
        });
        Ok(())
    }

    fn zero(&mut self, peer: &dyn HealPeer, range: Range<u64>) -> Result<(), PeerError> {
        let figures = Figures {
            bytes_zeroed: range.end - range.start,
            ..Figures::default()
        };
        self.sent.push_back(Sent {
            answer: peer.start_zero(range)?,
            writes: 0,
            figures,
        });
        Ok(())
    }

    fn writes(&self) -> usize {
        self.sent.iter().map(|sent| sent.writes).sum()
    }

    /// Waits for the earliest answer; `None`: all is answered.
    fn settle(&mut self) -> Option<Result<(), PeerError>> {
        let earliest = self.sent.pop_front()?;
        let answer = earliest.answer.wait();
        if answer.is_ok() {
            self.figures += earliest.figures;
        }
        Some(answer)
    }
}

/// Also when something panicked in between: whoever ends the connection may rely on
/// it that the peer is done with everything it was sent.
impl Drop for UnderWay {
    fn drop(&mut self) {
        while self.settle().is_some() {}
    }
}

/// The local bytes of a run.
struct View<'a> {
    bytes: &'a [u8],
    /// Where in the image they begin.
    start: u64,
    geometry: &'a Geometry,
}

impl<'a> View<'a> {
    /// The bytes of some of its extents.
    fn of(&self, extents: &Range<u64>) -> &'a [u8] {
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
