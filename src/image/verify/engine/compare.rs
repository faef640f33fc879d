//! One locked range: asking for its sums, judging the answers, narrowing.
//!
//! Called by the engine with the lock on the range held. A part whose sums differ is
//! asked for again extent by extent, and an extent that differs a few times more,
//! before it is found to differ.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::gluster::StrongChecksum;
use crate::image::error_chain::chain;
use crate::image::heal::{Answer, PeerError};
use crate::image::replica::brick_set::BrickSet;
use crate::image::verify::situation::{Debt, Situation};
use crate::image::verify::tally::Outcome;

use super::Comparison;

/// How often an extent is read again before it is called a difference.
const REREADS: u32 = 3;

/// Extents to compare with the reference's, and the copies whose extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparedPiece {
    /// The extents, of one [`crate::gluster::MAX_IO`].
    pub extents: Range<u64>,
    /// The copies, by child index.
    pub peers: BrickSet,
}

impl ComparedPiece {
    /// One of two pieces that are of the same extents, or of neighbouring ones of the same
    /// copies, `most` at the most; `None`: they are neither.
    pub fn joined(&self, other: &Self, most: u64) -> Option<Self> {
        if self.extents == other.extents {
            return Some(Self {
                extents: self.extents.clone(),
                peers: self.peers.iter().chain(other.peers.iter()).collect(),
            });
        }
        let follows = self.peers == other.peers
            && self.extents.end == other.extents.start
            && other.extents.end - self.extents.start <= most;
        follows.then_some(Self {
            extents: self.extents.start..other.extents.end,
            peers: self.peers,
        })
    }
}

/// A piece whose extents were all clean for its peers when it was asked for.
pub struct Asked {
    piece: ComparedPiece,
    /// How often it was read before.
    reads: u32,
    reference: SentSums,
    peers: Vec<(usize, SentSums)>,
}

type SentSums = Result<Answer<StrongChecksum>, PeerError>;

/// An answer.
enum Sum {
    Is(StrongChecksum),
    /// The brick lives but cannot read this.
    Unreadable(String),
    /// The brick is lost.
    Lost,
}

/// What was seen of one range so far.
#[derive(Default)]
pub struct Findings {
    /// Extents to look at again: for which copies, and how often they were read.
    again: BTreeMap<u64, (BrickSet, u32)>,
    /// Extents that differ, by copy.
    differing: Vec<(usize, u64)>,
}

impl Comparison<'_> {
    /// Asks for the sums of what is clean in a locked piece; settles the rest.
    pub fn ask(&mut self, piece: &ComparedPiece, reads: u32) -> Vec<Asked> {
        let parts = self.clean_parts(piece);
        parts
            .into_iter()
            .map(|piece| {
                let bytes = self.bytes_of(&piece.extents);
                let peers = piece.peers.iter();
                Asked {
                    reads,
                    reference: self.start_sum(self.reference, bytes.clone()),
                    peers: peers
                        .map(|child| (child, self.start_sum(child, bytes.clone())))
                        .collect(),
                    piece,
                }
            })
            .collect()
    }

    /// Judges the answers, and asks again where that is due, until every extent is
    /// settled or put off.
    pub fn compare(&mut self, mut asked: Vec<Asked>) {
        let mut differing = Vec::new();
        while !asked.is_empty() {
            let mut findings = Findings::default();
            for asked in asked.drain(..) {
                self.judge(asked, &mut findings);
            }
            differing.append(&mut findings.differing);
            for (extent, (peers, reads)) in findings.again {
                let extents = extent..extent + 1;
                asked.append(&mut self.ask(&ComparedPiece { extents, peers }, reads));
            }
        }
        self.confirm(differing);
    }

    /// The parts of a piece that are clean, each for all its peers; settles the rest, or
    /// puts it off.
    pub fn clean_parts(&mut self, piece: &ComparedPiece) -> Vec<ComparedPiece> {
        let mut parts: Vec<ComparedPiece> = Vec::new();
        for extent in piece.extents.clone() {
            let (mut clean, mut later) = (BrickSet::EMPTY, BrickSet::EMPTY);
            for child in piece.peers.iter() {
                if !self.is_compared(child) {
                    self.settle(child, extent, Outcome::NotVerified);
                } else if self.is_short(child, extent) {
                    self.settle(child, extent, Outcome::Differs);
                } else if self.situation.debt(child, extent) == Debt::None {
                    clean.insert(child);
                } else {
                    later.insert(child);
                }
            }
            if !later.is_empty() {
                self.put_off(&ComparedPiece {
                    extents: extent..extent + 1,
                    peers: later,
                });
            }
            match parts.last_mut() {
                _ if clean.is_empty() => {}
                Some(last) if last.peers == clean && last.extents.end == extent => {
                    last.extents.end = extent + 1;
                }
                _ => parts.push(ComparedPiece {
                    extents: extent..extent + 1,
                    peers: clean,
                }),
            }
        }
        parts
    }

    /// Settles an extent of a copy, unless it is put off.
    pub(in crate::image::verify) fn settle_if_clean(
        &mut self,
        child: usize,
        extent: u64,
        outcome: Outcome,
    ) {
        if self.is_clean(child, extent) {
            self.settle(child, extent, outcome);
        }
    }

    /// Is the extent clean for the copy? If not, it is put off: a healer may be at work.
    fn is_clean(&mut self, child: usize, extent: u64) -> bool {
        let is_clean = self.situation.debt(child, extent) == Debt::None;
        if !is_clean {
            self.put_off(&ComparedPiece {
                extents: extent..extent + 1,
                peers: BrickSet::only(child),
            });
        }
        is_clean
    }

    fn start_sum(&self, child: usize, bytes: Range<u64>) -> SentSums {
        match self.brick(child) {
            Some(brick) => brick.start_checksum(bytes),
            None => Ok(Answer::new(move || {
                Err(PeerError::Away {
                    peer: format!("brick {child}"),
                    source: "it was lost before".into(),
                })
            })),
        }
    }

    fn judge(&mut self, asked: Asked, findings: &mut Findings) {
        let Asked {
            piece,
            reads,
            reference,
            peers,
        } = asked;
        let expected = self.wait_sum(self.reference, reference);
        for (child, sent) in peers {
            let found = self.wait_sum(child, sent);
            let unreadable = match (&expected, &found) {
                (Sum::Lost, _) | (_, Sum::Lost) => {
                    for extent in piece.extents.clone() {
                        self.settle(child, extent, Outcome::NotVerified);
                    }
                    continue;
                }
                (Sum::Unreadable(why), _) | (_, Sum::Unreadable(why)) => Some(why.clone()),
                (Sum::Is(one), Sum::Is(other)) if !is_one_kind(one, other) => {
                    Some("the bricks use different checksums: is storage.fips-mode-rchecksum being changed?".to_owned())
                }
                (Sum::Is(one), Sum::Is(other)) if one == other => {
                    for extent in piece.extents.clone() {
                        self.settle_if_clean(child, extent, Outcome::Verified);
                    }
                    continue;
                }
                (Sum::Is(_), Sum::Is(_)) => None,
            };
            let is_one = piece.extents.end - piece.extents.start == 1;
            for extent in piece.extents.clone() {
                if !self.is_clean(child, extent) {
                    continue;
                }
                match &unreadable {
                    _ if !is_one => findings.look_again(extent, child, 0),
                    Some(why) => {
                        self.tally.explain(child, why);
                        self.settle(child, extent, Outcome::NotVerified);
                    }
                    None if reads < REREADS => findings.look_again(extent, child, reads + 1),
                    None => findings.differing.push((child, extent)),
                }
            }
        }
    }

    fn wait_sum(&mut self, child: usize, sent: SentSums) -> Sum {
        match sent.and_then(Answer::wait) {
            Ok(sum) => Sum::Is(sum),
            Err(error @ PeerError::Refused { .. }) => Sum::Unreadable(chain(&error)),
            Err(error) => {
                self.lose(child, &error);
                Sum::Lost
            }
        }
    }

    /// Settles extents that differed each time, with the lock still held: the last
    /// look at what might explain it.
    fn confirm(&mut self, mut differing: Vec<(usize, u64)>) {
        if differing.is_empty() {
            return;
        }
        differing.sort_unstable();
        let extents = differing.iter().map(|(_, extent)| *extent);
        let (first, last) = (extents.clone().min(), extents.max());
        let span = first.unwrap_or_default()..last.unwrap_or_default() + 1;
        let mut explained = BrickSet::EMPTY;
        match &self.situation {
            Situation::Served(served) => {
                if let Err(error) = served.check() {
                    self.end_early(chain(&error));
                }
            }
            Situation::Unserved => explained = self.accused_now(&self.bytes_of(&span)),
        }
        for (child, extent) in differing {
            if self.why_over().is_some() || !self.is_compared(child) {
                self.settle(child, extent, Outcome::NotVerified);
            } else if explained.contains(child) || explained.contains(self.reference) {
                self.settle(child, extent, Outcome::Behind);
            } else {
                self.settle(child, extent, Outcome::Differs);
                self.note_repair(child, self.bytes_of(&(extent..extent + 1)));
            }
        }
    }
}

impl Findings {
    fn look_again(&mut self, extent: u64, child: usize, reads: u32) {
        let (peers, most) = self.again.entry(extent).or_default();
        peers.insert(child);
        *most = reads.max(*most);
    }
}

fn is_one_kind(one: &StrongChecksum, other: &StrongChecksum) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}
