//! What may be promoted, and what every counter becomes.

use super::*;
use crate::image::replica::brick_set::SetChange;
use crate::image::replica::recording_port::{Change, Journal, RecordingPort};

/// Brick 1 is to be promoted, 0 is gone, 2 is stale too.
const SHAPE: Shape = Shape {
    bricks: 3,
    local: 1,
    arbiter: None,
    since: SetChange::NONE,
};
const OLD: i32 = 9;
const NEW: i32 = 7;

fn copy(pending: [i32; 3]) -> Option<CopyState> {
    Some(CopyState {
        gfid: uuid::Uuid::nil(),
        size: 0,
        pending: pending.to_vec(),
        dirty: 0,
        fenced: false,
    })
}

fn left_behind() -> [Option<CopyState>; 3] {
    [None, copy([0, OLD, OLD]), copy([0, OLD, OLD])]
}

fn apply(copy: &mut CopyState, changes: &[(Counter, i32)]) {
    for (counter, change) in changes {
        match counter {
            Counter::Pending(child) => copy.pending[*child] += change,
            Counter::Dirty => copy.dirty += change,
        }
    }
}

#[test]
fn only_a_stale_copy_whose_fresh_one_is_gone_is_promoted() {
    assert!(plan(&SHAPE, &left_behind()).is_ok());
    let refused = |copies: [Option<CopyState>; 3]| plan(&SHAPE, &copies).unwrap_err();
    let accusing = || copy([0, OLD, OLD]);
    let away = [0, 2].into_iter().collect();
    assert_eq!(
        refused([None, accusing(), None]),
        PromotionRefusal::NoQuorum(away)
    );
    assert_eq!(
        refused([accusing(), None, accusing()]),
        PromotionRefusal::LocalAway(1)
    );
    assert_eq!(
        refused([None, copy([0; 3]), copy([0; 3])]),
        PromotionRefusal::NotStale(1)
    );
    let mut other = accusing();
    other.as_mut().unwrap().gfid = uuid::Uuid::from_u128(1);
    assert_eq!(
        refused([None, accusing(), other]),
        PromotionRefusal::IdentitiesDiffer(BrickSet::only(2))
    );
    assert_eq!(
        refused([accusing(), accusing(), accusing()]),
        PromotionRefusal::FreshReached(BrickSet::only(0))
    );
    assert_eq!(
        refused([None, copy([0, OLD, 0]), copy([0; 3])]),
        PromotionRefusal::FreshReached(BrickSet::only(2))
    );
    let split = || copy([OLD, OLD, OLD]);
    assert_eq!(
        refused([split(), split(), split()]),
        PromotionRefusal::NobodyLost
    );
}

#[test]
fn of_several_files_those_are_promoted_that_are_stale_and_one_that_may_not_forbids_all() {
    let clean = || vec![None, copy([0; 3]), copy([0; 3])];
    let other = vec![None, copy([0, 8, 8]), copy([0, 8, 8])];
    let image = [clean(), left_behind().into(), clean(), other];
    let planned = plan_image(&SHAPE, &image).unwrap();
    let files: Vec<_> = planned.files.iter().map(|(file, _)| file.0).collect();
    assert_eq!((files, planned.all.stamps), (vec![1, 3], vec![8, OLD]));
    assert_eq!(planned.all.lost, BrickSet::only(0));

    let fresh = vec![None, copy([0, OLD, 0]), copy([0; 3])];
    let on = PromotionRefusal::FreshReached(BrickSet::only(2));
    let refused = plan_image(&SHAPE, &[clean(), left_behind().into(), fresh]);
    assert_eq!(refused, Err((FileIndex(2), on)));
    let not_stale = PromotionRefusal::NotStale(1);
    let refused = plan_image(&SHAPE, &[clean(), clean()]);
    assert_eq!(refused, Err((FileIndex::BASE, not_stale)));
}

#[test]
fn afterwards_a_quorum_that_does_not_accuse_itself_accuses_the_lost_copy_alone() {
    let mut copies = left_behind();
    let plan = plan(&SHAPE, &copies).unwrap();
    assert_eq!(plan.stamps, [OLD]);
    for (brick, copy) in copies.iter_mut().enumerate() {
        if let Some(copy) = copy {
            let changes = changes(&SHAPE, &plan, NEW, brick, copy);
            apply(copy, &changes.accuse);
            assert!(
                copy.accuses().contains(1),
                "not acquitted before all accuse"
            );
            assert!(copy.accuses().contains(0));
            apply(copy, &changes.acquit);
        }
    }
    let mut promoted = copy([NEW, 0, NEW]).unwrap();
    promoted.dirty = WITNESS;
    assert_eq!(copies, [None, Some(promoted), copy([NEW, 0, 0])]);
}

#[test]
fn nobody_is_believed_until_all_have_accused() {
    // The other stale copy's brick accuses only the promoted one so far.
    let mut copies = [None, copy([0, OLD, OLD]), copy([0, OLD, 0])];
    let plan = plan(&SHAPE, &copies).unwrap();
    for (brick, copy) in copies.iter_mut().enumerate() {
        if let Some(copy) = copy {
            let changes = changes(&SHAPE, &plan, NEW, brick, copy);
            apply(copy, &changes.accuse);
            assert!(copy.accuses().contains(brick));
            apply(copy, &changes.acquit);
        }
    }
    assert_eq!(copies[2], copy([NEW, 0, 0]));
}

#[test]
fn every_counter_that_matters_to_the_index_is_named_each_time() {
    let copies = left_behind();
    let plan = plan(&SHAPE, &copies).unwrap();
    for (brick, copy) in copies.iter().enumerate() {
        let Some(copy) = copy else { continue };
        let changes = changes(&SHAPE, &plan, NEW, brick, copy);
        for step in [changes.accuse, changes.acquit] {
            let named = |child| step.iter().any(|(c, _)| *c == Counter::Pending(child));
            assert!(named(0) && named(1), "{step:?}");
        }
    }
}

#[test]
fn only_the_lost_copy_s_old_accusation_is_overruled() {
    let promotion = Promotion {
        at: 0,
        lost: vec![0],
        stamps: vec![OLD],
    };
    assert!(promotion.overrules(0, OLD));
    assert!(!promotion.overrules(0, OLD + 1), "it wrote on");
    assert!(!promotion.overrules(2, OLD));
    assert!(!promotion.overrules(0, 0));
}

#[test]
fn each_step_changes_all_bricks_durably_and_ends_at_the_first_that_fails() {
    let copies = left_behind();
    let plan = plan(&SHAPE, &copies).unwrap();
    let all: Vec<_> = copies
        .iter()
        .enumerate()
        .filter_map(|(i, copy)| Some((i, changes(&SHAPE, &plan, NEW, i, copy.as_ref()?))))
        .collect();
    let run = |step, failing| {
        let journal = Journal::default();
        let port = |brick| -> Box<dyn BrickPort> {
            Box::new(RecordingPort {
                brick,
                journal: journal.clone(),
                fails: failing == Some(brick),
                ..RecordingPort::default()
            })
        };
        let done = carry_out(step, &all, &mut [0, 1, 2].map(port));
        (
            done.map_err(|(brick, _)| brick),
            journal.lock().unwrap().clone(),
        )
    };
    let [(_, first), (_, second)] = &all[..] else {
        panic!("{all:?}");
    };
    let steps = [
        (Step::Accuse, &first.accuse, &second.accuse),
        (Step::Acquit, &first.acquit, &second.acquit),
    ];
    for (step, first, second) in steps {
        let on = |brick, changes: &Vec<_>| {
            [
                (brick, Change::Add(changes.clone())),
                (brick, Change::Durable),
            ]
        };
        let (done, journal) = run(step, None);
        assert_eq!(done, Ok(()));
        assert_eq!(journal, [on(1, first), on(2, second)].concat());
        assert_eq!(run(step, Some(1)), (Err(1), Vec::new()));
    }
}
