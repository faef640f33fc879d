//! What an older dirty map is worth, peer by peer, in the light of the marks.
//!
//! A pure function over what the bricks said at open, once the local copy is known
//! to be fresh ([`super::freshness`]). A session stores its own value (its *stamp*) in
//! every counter against a peer, and its map keeps that value. Whoever else makes a
//! copy miss something changes the counter: a client of AFR adds one, another
//! session stores a stamp of its own. So a counter that the map explains says that
//! the map knows all that the peer misses. Nothing here is opened, asked or changed.

use crate::image::dirty_map::{Peer, Peers, Record};

use super::brick_port::CopyState;
use super::brick_set::Shape;

/// What is believed of the peers of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapTrust {
    /// Equal to the local copy: no brick accuses them.
    pub clean: Peers,
    /// They miss something, and nobody knows what: all of it counts as dirty.
    pub unknown: Peers,
    /// They miss what the map says.
    pub known: Peers,
}

/// Judges every peer. `record` is the old map's if it is trusted; `copies[i]` is
/// child `i`'s answer, `None` for bricks that were not reached.
pub fn judge(shape: &Shape, record: Option<Record>, copies: &[Option<CopyState>]) -> MapTrust {
    let mut worth = MapTrust {
        clean: Peers::NONE,
        unknown: Peers::NONE,
        known: Peers::NONE,
    };
    // A write through AFR that was cut short may be on any of the copies.
    let cut_short = copies.iter().flatten().any(|copy| copy.dirty != 0);
    for (index, child) in shape.peers().iter().enumerate() {
        let peer: Peers = Peer::new(index).into_iter().collect();
        let counter = |copy: &CopyState| copy.pending.get(child).copied().unwrap_or_default();
        let mut counters = copies.iter().flatten().map(counter);
        let local = copies
            .get(shape.local)
            .and_then(Option::as_ref)
            .map(counter);
        let explains = |counter| record.is_some_and(|record| record.explains(counter));
        if cut_short {
            worth.unknown = worth.unknown.or(peer);
        } else if counters.clone().all(|counter| counter == 0) {
            worth.clean = worth.clean.or(peer);
        } else if local.is_some_and(explains) && counters.all(|c| c == 0 || explains(c)) {
            worth.known = worth.known.or(peer);
        } else {
            worth.unknown = worth.unknown.or(peer);
        }
    }
    worth
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::replica::brick_set::SetChange;

    const STAMP: i32 = 77;
    const OLDER: i32 = 55;
    const RECORD: Record = Record {
        stamp: STAMP,
        previous: OLDER,
        suspect: Peers::NONE,
        unguarded: false,
        unsynced: false,
    };

    /// Three bricks, the local one being the second; the map's peers are the first
    /// and the last.
    const SHAPE: Shape = Shape {
        bricks: 3,
        local: 1,
        arbiter: None,
        since: SetChange::NONE,
    };

    fn copy(pending: [i32; 3]) -> Option<CopyState> {
        Some(CopyState {
            gfid: uuid::Uuid::nil(),
            size: 0,
            pending: pending.to_vec(),
            dirty: 0,
            fenced: false,
        })
    }

    fn peers(indices: &[usize]) -> Peers {
        indices.iter().filter_map(|&i| Peer::new(i)).collect()
    }

    /// Indices of the peers that are clean, unknown and known.
    fn judged(record: Option<Record>, copies: &[Option<CopyState>]) -> MapTrust {
        judge(&SHAPE, record, copies)
    }

    fn worth(clean: &[usize], unknown: &[usize], known: &[usize]) -> MapTrust {
        MapTrust {
            clean: peers(clean),
            unknown: peers(unknown),
            known: peers(known),
        }
    }

    #[test]
    fn without_marks_all_copies_are_equal_whatever_an_old_map_says() {
        let copies = [copy([0; 3]), copy([0; 3]), None];
        for record in [None, Some(RECORD)] {
            assert_eq!(judged(record, &copies), worth(&[0, 1], &[], &[]));
        }
    }

    #[test]
    fn a_map_explains_its_session_s_own_marks_and_those_of_the_one_before() {
        for stamp in [STAMP, OLDER] {
            let row = [stamp, 0, STAMP];
            let copies = [copy([0; 3]), copy(row), copy(row)];
            assert_eq!(judged(Some(RECORD), &copies), worth(&[], &[], &[0, 1]));
        }
    }

    #[test]
    fn without_a_trusted_map_a_marked_peer_misses_anything() {
        let copies = [copy([0, 0, STAMP]), copy([0, 0, STAMP]), None];
        assert_eq!(judged(None, &copies), worth(&[0], &[1], &[]));
        assert_eq!(
            judged(Some(Record::default()), &copies),
            worth(&[0], &[1], &[])
        );
    }

    #[test]
    fn somebody_else_s_mark_on_any_brick_is_not_explained() {
        // An AFR client's failed write adds one to ours, another session replaces it.
        for foreign in [STAMP + 1, 1, -STAMP] {
            for on in 0..3 {
                let mut rows = [[STAMP, 0, STAMP]; 3];
                rows[on][2] = foreign;
                let copies = rows.map(copy);
                assert_eq!(judged(Some(RECORD), &copies), worth(&[], &[1], &[0]));
            }
        }
    }

    #[test]
    fn a_mark_that_only_others_have_is_not_explained() {
        let copies = [copy([0, 0, STAMP]), copy([0; 3]), None];
        assert_eq!(judged(Some(RECORD), &copies), worth(&[0], &[1], &[]));
    }

    #[test]
    fn a_write_that_was_cut_short_makes_every_peer_unknown() {
        let mut cut = copy([0; 3]);
        if let Some(copy) = &mut cut {
            copy.dirty = 1;
        }
        let copies = [copy([0; 3]), copy([0; 3]), cut];
        assert_eq!(judged(Some(RECORD), &copies), worth(&[], &[0, 1], &[]));
    }
}
