//! What the bricks have of an image's pieces, and what follows from it: a pure function over
//! their answers.

use uuid::Uuid;

use crate::image::replica::brick_set::{BrickSet, Shape};

/// Why an image in pieces cannot be opened from the local brick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PieceRefusal {
    /// Fewer bricks than a quorum answered.
    NoQuorum {
        /// Those that did.
        reached: BrickSet,
    },
    /// Other bricks have this piece, the local one has not: it was away when that was made.
    NotHere {
        /// Which.
        piece: u64,
        /// Who has it.
        on: BrickSet,
    },
    /// Two bricks have different files under the name of this piece.
    IdentitiesDiffer {
        /// Which.
        piece: u64,
    },
    /// Who was reached has old attributes, as some brick says.
    SizeUnknown {
        /// Those.
        old: BrickSet,
    },
    /// Bricks know different sizes of the image, and none says that another's is old.
    SizesDiffer {
        /// One of them, in bytes.
        one: u64,
        /// Another.
        other: u64,
    },
}

/// What a brick says of the image's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeSeen {
    /// In bytes.
    pub size: u64,
    /// Whose attributes are older than its own (AFR's metadata counter).
    pub accuses: BrickSet,
}

/// The size of an image in pieces, which is an attribute of its first file: what those say
/// whose attributes nobody who was reached calls old. `rows[i]` is child `i`'s answer.
///
/// # Errors
/// [`PieceRefusal::SizeUnknown`], [`PieceRefusal::SizesDiffer`].
pub fn settle_size(rows: &[Option<SizeSeen>]) -> Result<u64, PieceRefusal> {
    let answers = || {
        rows.iter()
            .enumerate()
            .filter_map(|(i, row)| Some((i, row.as_ref()?)))
    };
    let old: BrickSet = answers()
        .flat_map(|(_, seen)| seen.accuses.iter())
        .collect();
    let mut known = answers().filter(|(brick, _)| !old.contains(*brick));
    let (_, first) = known.next().ok_or(PieceRefusal::SizeUnknown { old })?;
    match known.find(|(_, seen)| seen.size != first.size) {
        None => Ok(first.size),
        Some((_, seen)) => Err(PieceRefusal::SizesDiffer {
            one: first.size,
            other: seen.size,
        }),
    }
}

/// The gfid of each piece, the first after the file at the image's path at first; `None` for
/// one that no brick has. `rows[i]` is child `i`'s answer, `None` from a brick that was not
/// reached.
///
/// A piece that another brick lacks is no reason to refuse: Gluster's own heal makes it there,
/// and the session joins that brick when it has. It is one where the local brick lacks it.
///
/// # Errors
/// Why the image is refused.
pub fn settle(
    shape: &Shape,
    rows: &[Option<Vec<Option<Uuid>>>],
    count: u64,
) -> Result<Vec<Option<Uuid>>, PieceRefusal> {
    let reached: BrickSet = (0..rows.len()).filter(|&i| rows[i].is_some()).collect();
    if !shape.is_quorum(reached) || !reached.contains(shape.local) {
        return Err(PieceRefusal::NoQuorum { reached });
    }
    let on = |brick: usize, index: usize| *rows.get(brick)?.as_ref()?.get(index)?;
    let mut found = Vec::new();
    for (index, piece) in (1..=count).enumerate() {
        let has: BrickSet = reached.iter().filter(|&i| on(i, index).is_some()).collect();
        let gfid = reached.iter().find_map(|brick| on(brick, index));
        if has.iter().any(|brick| on(brick, index) != gfid) {
            return Err(PieceRefusal::IdentitiesDiffer { piece });
        }
        if gfid.is_some() && !has.contains(shape.local) {
            return Err(PieceRefusal::NotHere { piece, on: has });
        }
        found.push(gfid);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::replica::brick_set::SetChange;

    const SHAPE: Shape = Shape {
        bricks: 3,
        local: 1,
        arbiter: None,
        since: SetChange::NONE,
    };

    fn row(gfids: &[u128]) -> Option<Vec<Option<Uuid>>> {
        let gfid = |&number: &u128| (number != 0).then(|| Uuid::from_u128(number));
        Some(gfids.iter().map(gfid).collect())
    }

    fn seen(size: u64, accuses: &[usize]) -> Option<SizeSeen> {
        let accuses = accuses.iter().copied().collect();
        Some(SizeSeen { size, accuses })
    }

    /// A brick that was away when the image grew is back before its attributes are healed.
    #[test]
    fn the_size_is_that_of_who_is_not_called_old_wherever_it_is_opened() {
        let rows = [seen(5, &[]), seen(8, &[0]), seen(8, &[0])];
        assert_eq!(settle_size(&rows), Ok(8));
        assert_eq!(settle_size(&[seen(5, &[]), seen(8, &[0]), None]), Ok(8));
        // A death in the middle of a growth: marks first, then the local copy.
        let cut_short = [seen(8, &[1, 2]), seen(8, &[1, 2]), seen(5, &[1, 2])];
        assert_eq!(settle_size(&cut_short), Ok(8));
        let begun = [seen(5, &[1, 2]), seen(5, &[1, 2]), seen(5, &[1, 2])];
        assert_eq!(settle_size(&begun), Ok(5));
        let old = [1, 2].into_iter().collect();
        assert_eq!(
            settle_size(&[None, seen(8, &[1, 2]), seen(5, &[1, 2])]),
            Err(PieceRefusal::SizeUnknown { old })
        );
    }

    #[test]
    fn sizes_that_differ_without_a_mark_are_nobody_s_to_choose() {
        assert_eq!(settle_size(&[seen(5, &[]), seen(5, &[]), None]), Ok(5));
        let refused = settle_size(&[None, seen(5, &[]), seen(8, &[])]);
        let (one, other) = (5, 8);
        assert_eq!(refused, Err(PieceRefusal::SizesDiffer { one, other }));
    }

    fn settled(rows: [Option<Vec<Option<Uuid>>>; 3]) -> Result<Vec<Option<Uuid>>, PieceRefusal> {
        settle(&SHAPE, &rows, 2)
    }

    #[test]
    fn a_piece_is_what_the_bricks_agree_on_or_nobody_has() {
        let rows = [row(&[5, 0]), row(&[5, 0]), row(&[5, 0])];
        assert_eq!(settled(rows).unwrap(), row(&[5, 0]).unwrap());
    }

    #[test]
    fn a_piece_that_another_brick_lacks_yet_is_no_hindrance() {
        assert_eq!(
            settled([row(&[0, 0]), row(&[5, 6]), None]).unwrap(),
            row(&[5, 6]).unwrap()
        );
    }

    #[test]
    fn what_only_others_have_is_not_served_from_here_as_zeros() {
        let refused = settled([row(&[5, 6]), row(&[5, 0]), row(&[5, 0])]);
        let on = BrickSet::only(0);
        assert_eq!(refused, Err(PieceRefusal::NotHere { piece: 2, on }));
    }

    #[test]
    fn two_files_under_one_name_are_never_one_piece() {
        let refused = settled([row(&[5, 0]), row(&[7, 0]), None]);
        assert_eq!(refused, Err(PieceRefusal::IdentitiesDiffer { piece: 1 }));
    }

    #[test]
    fn nothing_is_settled_without_a_quorum_or_the_local_brick() {
        for rows in [
            [None, row(&[5, 6]), None],
            [row(&[5, 6]), None, row(&[5, 6])],
        ] {
            assert!(matches!(settled(rows), Err(PieceRefusal::NoQuorum { .. })));
        }
    }
}
