//! Every pending matrix of three bricks with every reachability, against the
//! design's rules written a second time, differently.

use crate::image::replica::brick_set::SetChange;

use super::*;

const GFID: Uuid = Uuid::from_u128(7);
const SIZE: u64 = 1 << 30;

fn shape(local: usize, arbiter: Option<usize>) -> Shape {
    Shape {
        bricks: 3,
        local,
        arbiter,
        since: SetChange::NONE,
    }
}

fn copy(accuses: &[usize]) -> Seen {
    Seen::Copy {
        gfid: GFID,
        size: SIZE,
        accuses: accuses.iter().copied().collect(),
    }
}

/// Bit `3 * i + j` of `matrix`: brick i accuses brick j. Bit i of `up`: reached.
fn view(matrix: u32, up: u32) -> Vec<Seen> {
    let row = |i: usize| (0..3).filter(|j| matrix >> (3 * i + j) & 1 == 1).collect();
    (0..3)
        .map(|i| match up >> i & 1 {
            0 => Seen::Away,
            _ => Seen::Copy {
                gfid: GFID,
                size: SIZE,
                accuses: row(i),
            },
        })
        .collect()
}

#[test]
fn every_matrix_and_reachability_obeys_the_rules() {
    let (mut opened, mut refused) = (0, 0);
    for (matrix, up, local) in
        (0..512).flat_map(|m| (0..8).flat_map(move |u| (0..3).map(move |l| (m, u, l))))
    {
        let is_up = |i: usize| up >> i & 1 == 1;
        let says = |i: usize, j: usize| is_up(i) && matrix >> (3 * i + j) & 1 == 1;
        let accused = |j: usize| (0..3).any(|i| says(i, j));
        let up_count = (0..3).filter(|&i| is_up(i)).count();

        let verdict = decide(&shape(local, None), &view(matrix, up));
        match &verdict {
            Ok(opening) => {
                opened += 1;
                assert!(up_count >= 2 && is_up(local) && !accused(local));
                assert_eq!(opening.behind, (0..3).filter(|&j| accused(j)).collect());
            }
            Err(refusal) => {
                refused += 1;
                match refusal {
                    Refusal::NoQuorum { .. } => assert!(up_count < 2),
                    Refusal::LocalAway => assert!(up_count >= 2 && !is_up(local)),
                    Refusal::Stale { fresh, accusers } => {
                        assert!(accused(local) && !fresh.is_empty());
                        assert!(fresh.iter().all(|j| !accused(j)));
                        assert!(accusers.iter().all(|i| says(i, local)) && !accusers.is_empty());
                    }
                    Refusal::SplitBrain { .. } => assert!((0..3).all(accused)),
                    other => panic!("{other:?} for equal sizes and gfids"),
                }
            }
        }
        let may_open = up_count >= 2 && is_up(local) && !accused(local);
        assert_eq!(verdict.is_ok(), may_open, "{matrix:09b} {up:03b} {local}");
    }
    assert!(opened > 0 && refused > opened);
}

#[test]
fn a_self_accusing_brick_is_believed_about_the_copy_that_was_away_when_marks_were_stored() {
    // Brick 0 wrote while brick 2 was away; now brick 0 is away. AFR's heal
    // would ignore brick 1's word about brick 2.
    let seen = [Seen::Away, copy(&[1, 2]), copy(&[])];
    assert_eq!(
        decide(&shape(2, None), &seen),
        Err(Refusal::Stale {
            fresh: BrickSet::only(0),
            accusers: BrickSet::only(1),
        })
    );
}

#[test]
fn a_different_file_under_the_same_name_is_refused() {
    let mut seen = [copy(&[]), copy(&[]), copy(&[])];
    seen[1] = Seen::Copy {
        gfid: Uuid::from_u128(8),
        size: SIZE,
        accuses: BrickSet::EMPTY,
    };
    let others = BrickSet::only(1);
    assert_eq!(
        decide(&shape(0, None), &seen),
        Err(Refusal::IdentitiesDiffer { others })
    );
}

#[test]
fn unaccused_copies_of_different_size_are_refused_but_an_accused_one_may_differ() {
    let short = |accuses: &[usize]| Seen::Copy {
        gfid: GFID,
        size: SIZE / 2,
        accuses: accuses.iter().copied().collect(),
    };
    let others = BrickSet::only(1);
    assert_eq!(
        decide(&shape(0, None), &[copy(&[]), short(&[]), copy(&[])]),
        Err(Refusal::SizesDiffer { others })
    );
    let opening = decide(&shape(0, None), &[copy(&[1]), short(&[1]), copy(&[1])]);
    assert_eq!(opening.map(|o| o.behind), Ok(BrickSet::only(1)));
}

#[test]
fn an_arbiter_counts_for_quorum_but_its_empty_file_is_not_compared() {
    let arbiter = Seen::Copy {
        gfid: GFID,
        size: 0,
        accuses: BrickSet::only(1),
    };
    let shape = shape(0, Some(2));
    let opening = decide(&shape, &[copy(&[1]), Seen::Away, arbiter]);
    assert_eq!(opening.map(|o| o.behind), Ok(BrickSet::only(1)));
}
