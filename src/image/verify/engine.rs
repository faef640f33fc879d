//! The way through an image: which bytes are locked and asked for when.
//!
//! Ranges of up to [`MAX_IO`], each in one file, are locked one after the other, on every brick compared, in
//! child order, and several are on their way at one time. For a lock that is not to be
//! had we queue, with no other lock in hand. What was busy is looked at again in later
//! rounds.

mod compare;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::gluster::MAX_IO;
use crate::image::error_chain::chain;
use crate::image::heal::PeerError;
use crate::image::layout::Layout;
use crate::image::replica::brick_set::BrickSet;

use super::brick::VerifyBrick;
use super::error::VerifyError;
use super::options::{Repair, VerifyOptions};
use super::report::{CopyVerdict, Report};
use super::situation::{Debt, Situation};
use super::tally::{Outcome, Tally};
use compare::{Asked, ComparedPiece};

/// The most pieces that are kept for another round; what is busy or behind beyond them is
/// not looked at again.
const MAX_AGAIN: usize = 1 << 16;

/// So many ranges are handed over for repair at one time.
const REPAIR_BATCH: usize = 1000;

/// A brick of the image's replica set, as the caller found it.
pub struct Subject {
    /// Its child index.
    pub child: usize,
    /// `host:path`.
    pub name: String,
    /// It has a copy of the data; an arbiter has only marks.
    pub has_data: bool,
    /// The brick, or why it was not reached.
    pub brick: Result<Box<dyn VerifyBrick>, String>,
}

/// Compares the copies of an image with this layout. In [`Situation::Served`] the local copy is the reference, else
/// the first that was reached and that nobody accuses. `repair` is told of every
/// difference.
///
/// # Errors
/// See [`VerifyError`]: then nothing was compared. What goes wrong later is in the
/// report.
pub fn verify(
    subjects: Vec<Subject>,
    layout: Layout,
    situation: Situation,
    options: &VerifyOptions,
    repair: Option<&dyn Repair>,
) -> Result<Report, VerifyError> {
    let (began, start) = (SystemTime::now(), options.clock.now());
    let mut engine = Comparison::new(subjects, layout, situation, options, repair)?;
    engine.rounds();
    Ok(Report {
        reference: engine.reference,
        size: engine.size,
        extent_size: engine.extent_size,
        when: began
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
        seconds: options.clock.now().saturating_sub(start).as_secs_f64(),
        ended_early: engine.over,
        copies: engine.tally.close(),
        repaired: repair.is_some() && !engine.unrepaired,
    })
}

/// Verifies one image.
pub(super) struct Comparison<'a> {
    pub(super) bricks: BTreeMap<usize, Box<dyn VerifyBrick>>,
    /// Child index of the reference.
    pub(super) reference: usize,
    /// The copies compared with it, as long as their bricks are reached.
    pub(super) peers: BrickSet,
    /// Those that were at the beginning.
    pub(super) compared: BrickSet,
    /// In bytes; an extent is never larger than [`MAX_IO`].
    pub(super) size: u64,
    pub(super) extent_size: u64,
    /// Where there is nothing more to compare, at the end or before.
    pub(super) reach: u64,
    /// The sizes of copies that are shorter than the image.
    pub(super) short: BTreeMap<usize, u64>,
    /// Where files meet; of an image that is one file, only that it is.
    pub(super) layout: Layout,
    pub(super) situation: Situation,
    pub(super) tally: Tally,
    pub(super) options: &'a VerifyOptions,
    repair: Option<&'a dyn Repair>,
    /// Differences not handed over yet, by copy.
    to_repair: Vec<(usize, Range<u64>)>,
    /// A difference was not taken for repair.
    pub(super) unrepaired: bool,
    flying: VecDeque<Flight>,
    again: Vec<ComparedPiece>,
    /// What is left of a round's time to wait for locks.
    pub(super) patience: Duration,
    /// Why nothing more is compared.
    over: Option<String>,
}

/// A locked range whose sums are on their way.
struct Flight {
    span: Range<u64>,
    locked: BrickSet,
    asked: Vec<Asked>,
}

impl<'a> Comparison<'a> {
    fn new(
        subjects: Vec<Subject>,
        layout: Layout,
        situation: Situation,
        options: &'a VerifyOptions,
        repair: Option<&'a dyn Repair>,
    ) -> Result<Self, VerifyError> {
        let extent_size = situation.extent_size(&layout);
        if !layout.is_whole() && !layout.piece().is_multiple_of(extent_size) {
            return Err(VerifyError::Extents {
                extent: extent_size,
                shard: layout.piece(),
            });
        }
        let mut engine = Self {
            bricks: BTreeMap::new(),
            reference: 0,
            peers: BrickSet::EMPTY,
            compared: BrickSet::EMPTY,
            size: 0,
            extent_size,
            reach: 0,
            short: BTreeMap::new(),
            layout,
            situation,
            tally: Tally::default(),
            options,
            repair,
            to_repair: Vec::new(),
            unrepaired: false,
            flying: VecDeque::new(),
            again: Vec::new(),
            patience: options.lock_wait.all,
            over: None,
        };
        for subject in subjects {
            let Subject { child, name, .. } = subject;
            let state = match &subject.brick {
                Ok(_) => CopyVerdict::Compared,
                Err(_) => CopyVerdict::Away,
            };
            if subject.has_data {
                engine.tally.open(child, name, state);
            }
            match subject.brick {
                Ok(brick) => drop(engine.bricks.insert(child, brick)),
                Err(why) => engine.tally.explain(child, &why),
            }
        }
        engine.begin()?;
        Ok(engine)
    }

    fn rounds(&mut self) {
        let extents = self.reach.div_ceil(self.extent_size);
        let each = self.extents_of_a_piece();
        let mut from = 0;
        self.round(true, |engine| {
            from = engine.skip_holes(from, extents);
            let extents = from..extents.min(from + each).min(engine.last_with(from));
            from = extents.end;
            let peers = engine.compared;
            (!extents.is_empty()).then_some(ComparedPiece { extents, peers })
        });
        for _ in 0..self.options.rounds {
            if self.again.is_empty() || self.why_over().is_some() {
                break;
            }
            self.options.clock.sleep(self.options.round_pause);
            let mut work = std::mem::take(&mut self.again).into_iter();
            self.round(false, |_| work.next());
        }
        for piece in std::mem::take(&mut self.again) {
            self.give_up(&piece);
        }
    }

    /// Once over `work`.
    fn round(&mut self, is_first: bool, mut work: impl FnMut(&mut Self) -> Option<ComparedPiece>) {
        self.patience = self.options.lock_wait.all;
        while let Some(piece) = work(self) {
            let span = self.bytes_of(&piece.extents);
            let length = span.end - span.start;
            self.fly(piece, span);
            if is_first {
                self.options.progress.add(length);
            }
        }
        self.hand_over();
    }

    /// Locks a piece, asks for its sums and leaves them on their way. Room for it is
    /// made by landing earlier ones.
    fn fly(&mut self, piece: ComparedPiece, span: Range<u64>) {
        if self.options.stop.load(Ordering::Relaxed) {
            self.end_early("it was stopped".to_owned());
        }
        if self.to_repair.len() >= REPAIR_BATCH {
            self.hand_over();
        }
        while self.bytes_flying() + (span.end - span.start) > self.options.window && self.land() {}
        if self.why_over().is_some() || !self.has_clean(&piece) {
            // What has become clean since is asked for with the lock, in another round.
            for part in self.clean_parts(&piece) {
                self.put_off(&part);
            }
            return;
        }
        let children = piece.peers.iter().chain([self.reference]).collect();
        let limit = self.options.lock_wait.each;
        let Some(locked) = self.lock(&span, children, limit) else {
            return self.put_off(&piece);
        };
        let asked = self.ask(&piece, 0);
        self.flying.push_back(Flight {
            span,
            locked,
            asked,
        });
    }

    /// Settles the earliest range on its way; `false`: there is none.
    fn land(&mut self) -> bool {
        let Some(flight) = self.flying.pop_front() else {
            return false;
        };
        self.compare(flight.asked);
        self.unlock(&flight.span, flight.locked);
        true
    }

    pub(super) fn land_all(&mut self) {
        while self.land() {}
    }

    fn bytes_flying(&self) -> u64 {
        let spans = self.flying.iter();
        spans
            .map(|flight| flight.span.end - flight.span.start)
            .sum()
    }

    /// Looks at a piece again in the next round.
    pub(super) fn put_off(&mut self, piece: &ComparedPiece) {
        let each = self.extents_of_a_piece();
        let most = |last: &ComparedPiece| {
            let from = last.extents.start;
            each.min(self.last_with(from) - from)
        };
        if let Some((last, most)) = self.again.last().map(|last| (last, most(last)))
            && let Some(joined) = last.joined(piece, most)
        {
            self.again.pop();
            return self.again.push(joined);
        }
        if self.again.len() < MAX_AGAIN {
            self.again.push(piece.clone());
        } else {
            self.give_up(piece);
        }
    }

    fn extents_of_a_piece(&self) -> u64 {
        (MAX_IO as u64 / self.extent_size).max(1)
    }

    /// Settles what was never found clean and quiet, by what holds of it now.
    fn give_up(&mut self, piece: &ComparedPiece) {
        for child in piece.peers.iter() {
            for extent in piece.extents.clone() {
                let outcome = match self.situation.debt(child, extent) {
                    _ if !self.is_compared(child) => Outcome::NotVerified,
                    Debt::Behind => Outcome::Behind,
                    Debt::None | Debt::InFlight => Outcome::Busy,
                };
                self.settle(child, extent, outcome);
            }
        }
    }

    /// Settles one extent of one copy.
    pub(super) fn settle(&mut self, child: usize, extent: u64, outcome: Outcome) {
        let bytes = self.bytes_of(&(extent..extent + 1));
        self.tally.settle(child, bytes, outcome);
    }

    /// Notes a difference, when it is to be repaired.
    pub(super) fn note_repair(&mut self, child: usize, bytes: Range<u64>) {
        if self.repair.is_none() {
            return;
        }
        match self.to_repair.last_mut() {
            Some((last, range)) if *last == child && range.end == bytes.start => {
                range.end = bytes.end;
            }
            _ => self.to_repair.push((child, bytes)),
        }
    }

    /// Hands over what is to be repaired. With no lock in hand: the session stores
    /// marks, for which it locks the whole file.
    fn hand_over(&mut self) {
        self.land_all();
        let found = std::mem::take(&mut self.to_repair);
        for child in self.compared.iter() {
            let of_child = found.iter().filter(|(of, _)| *of == child);
            let ranges: Vec<_> = of_child.map(|(_, range)| range.clone()).collect();
            if let Some(repair) = self.repair.filter(|_| !ranges.is_empty())
                && let Err(error) = repair.mark_differing(child, &ranges)
            {
                let name = self.tally.name(child);
                log::warn!("differences of {name} are not repaired: {}", chain(&error));
                self.unrepaired = true;
            }
        }
    }

    /// The brick is not asked any more.
    pub(super) fn lose(&mut self, child: usize, error: &PeerError) {
        let Some(brick) = self.bricks.remove(&child) else {
            return;
        };
        brick.close();
        let why = chain(error);
        self.tally.explain(child, &why);
        self.peers.remove(child);
        if self.tally.change(child, CopyVerdict::Away) == Some(CopyVerdict::Reference) {
            self.end_early(format!("the reference was lost: {why}"));
        }
    }

    /// Nothing more is compared.
    pub(super) fn end_early(&mut self, why: String) {
        self.over.get_or_insert(why);
    }

    /// Why nothing more is compared.
    pub(super) fn why_over(&self) -> Option<&str> {
        self.over.as_deref()
    }

    /// Is this copy still compared?
    pub(super) fn is_compared(&self, child: usize) -> bool {
        self.over.is_none() && self.peers.contains(child)
    }

    /// Does the copy's file end before this extent?
    pub(super) fn is_short(&self, child: usize, extent: u64) -> bool {
        let size = self.short.get(&child);
        size.is_some_and(|&size| size <= extent * self.extent_size)
    }

    /// Is there anything to ask for?
    fn has_clean(&self, piece: &ComparedPiece) -> bool {
        let clean = |extent, child| self.situation.debt(child, extent) == Debt::None;
        let mut extents = piece.extents.clone();
        extents.any(|extent| piece.peers.iter().any(|child| clean(extent, child)))
    }

    /// Where the file ends, on the disk, that this byte lies in.
    pub(super) fn border(&self, byte: u64) -> u64 {
        match self.layout.is_whole() {
            true => self.size,
            false => self.layout.border(byte),
        }
    }

    /// The first extent that does not lie in one file with this one.
    fn last_with(&self, extent: u64) -> u64 {
        let start = extent.saturating_mul(self.extent_size);
        self.border(start).div_ceil(self.extent_size)
    }

    pub(super) fn brick(&self, child: usize) -> Option<&dyn VerifyBrick> {
        self.bricks.get(&child).map(|brick| &**brick)
    }

    /// The bytes of extents in the image.
    pub(super) fn bytes_of(&self, extents: &Range<u64>) -> Range<u64> {
        let at = |extent: u64| extent.saturating_mul(self.extent_size).min(self.size);
        at(extents.start)..at(extents.end)
    }
}
