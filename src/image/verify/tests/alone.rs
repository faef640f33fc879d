//! Nobody serves the image: what is found, and what hinders.

use std::sync::atomic::Ordering;

use super::super::{CopyVerdict, VerifyError};
use super::world::{CLIENT, SIZE, World};

/// Bytes of an extent where there is no map.
const EXTENT: u64 = 64 << 10;

#[test]
fn equal_copies_are_verified_to_the_last_byte() {
    let world = World::unserved(3, 1);
    let report = world.verify();
    assert!(!report.differs() && report.is_complete());
    assert_eq!(report.record().bytes_verified, 2 * SIZE);
    let progress = &world.options.progress;
    assert_eq!((progress.done(), progress.total()), (SIZE, SIZE));
}

#[test]
fn a_hole_of_all_copies_is_verified_without_a_sum_and_a_byte_in_one_is_found() {
    let world = World::unserved(3, 20);
    for copy in &mut world.inner().copies {
        copy.bytes[EXTENT as usize..].fill(0);
    }
    let report = world.verify();
    assert!(!report.differs() && report.is_complete());
    assert_eq!(report.record().bytes_verified, 2 * SIZE);
    let progress = &world.options.progress;
    assert_eq!((progress.done(), progress.total()), (SIZE, SIZE));
    assert!(world.inner().copies[1].summed <= 1 << 20);
    world.damage(2, SIZE - 9);
    let last = SIZE / EXTENT * EXTENT;
    assert_eq!(world.verify().copies[2].differing.ranges, [last..SIZE]);
}

#[test]
fn a_difference_is_found_where_it_is_and_for_whom() {
    let world = World::unserved(3, 2);
    world.damage(2, EXTENT);
    world.damage(2, 3 * EXTENT - 1);
    world.damage(1, 20 * EXTENT + 7);
    let report = world.verify();
    assert!(report.differs() && report.is_complete());
    assert_eq!(report.reference, 0);
    assert_eq!(
        report.copies[1].differing.ranges,
        [20 * EXTENT..21 * EXTENT]
    );
    assert_eq!(report.copies[2].differing.ranges, [EXTENT..3 * EXTENT]);
}

#[test]
fn the_last_byte_of_an_image_that_ends_within_an_extent_counts() {
    let world = World::unserved(2, 3);
    world.damage(1, SIZE - 1);
    let report = world.verify();
    let last = SIZE / EXTENT * EXTENT;
    assert_eq!(report.copies[1].differing.ranges, [last..SIZE]);
}

#[test]
fn a_sum_that_is_wrong_for_once_is_no_difference() {
    let world = World::unserved(2, 4);
    // Of the whole range, of the extent, and twice more.
    world.inner().copies[1].flaky = (4, 100..101);
    let report = world.verify();
    assert!(!report.differs() && report.is_complete());
}

#[test]
fn a_stale_copy_is_behind_and_not_compared_nor_the_reference() {
    let world = World::unserved(3, 5);
    world.damage(0, 5);
    world.inner().copies[1].pending[0] = 1;
    let report = world.verify();
    assert_eq!(report.reference, 1);
    assert_eq!(report.copies[0].state, CopyVerdict::Stale);
    assert_eq!(
        (report.copies[0].behind, world.inner().copies[0].summed),
        (SIZE, 0)
    );
    assert_eq!(report.copies[2].verified, SIZE);
    assert!(!report.differs() && !report.is_complete());
}

#[test]
fn an_arbiter_s_marks_count_and_its_empty_file_does_not() {
    let mut world = World::unserved(3, 6);
    world.arbiter = Some(2);
    {
        let arbiter = &mut world.inner().copies[2];
        arbiter.bytes.clear();
        arbiter.pending[0] = 1;
    }
    let report = world.verify();
    assert_eq!((report.reference, report.copies.len()), (1, 2));
    assert_eq!(report.copies[0].state, CopyVerdict::Stale);
}

#[test]
fn copies_that_all_accuse_each_other_have_no_reference() {
    let world = World::unserved(2, 7);
    world.inner().copies[0].pending[1] = 1;
    world.inner().copies[1].pending[0] = 1;
    let refused = world.try_verify(None);
    assert!(matches!(refused, Err(VerifyError::NoReference { accusers }) if accusers == "b0, b1"));
}

#[test]
fn a_brick_that_was_not_reached_is_not_verified_and_the_others_are() {
    let world = World::unserved(3, 8);
    world.inner().copies[0].away = true;
    let report = world.verify();
    assert_eq!(report.reference, 1);
    assert_eq!(report.copies[0].not_verified, SIZE);
    assert_eq!(report.copies[0].why.as_deref(), Some("it is down"));
    assert_eq!(report.copies[2].verified, SIZE);
    assert!(!report.is_complete());
}

#[test]
fn a_brick_that_goes_midway_leaves_the_rest_unverified_and_no_other_copy() {
    // Three ranges, four calls for each, and one for its state.
    for calls in 0..13 {
        let world = World::unserved(3, 9);
        world.inner().copies[1].lives_for = Some(calls);
        world.damage(2, SIZE / 2);
        let report = world.verify();
        assert!(!report.is_complete());
        assert!(report.copies[1].differing.is_empty());
        assert!(
            report.copies[2].differing.bytes == EXTENT,
            "after {calls} calls"
        );
        assert_eq!(report.copies[2].verified, SIZE - EXTENT);
    }
}

#[test]
fn without_the_reference_nothing_more_is_verified() {
    let world = World::unserved(3, 10);
    world.inner().copies[0].lives_for = Some(4);
    let report = world.verify();
    assert!(!report.is_complete() && !report.differs());
    assert!(report.copies[1].not_verified > 0);
    assert!(
        report
            .ended_early
            .as_deref()
            .is_some_and(|why| why.contains("reference"))
    );
}

#[test]
fn a_brick_that_says_it_has_bytes_that_it_has_not_differs_there() {
    let world = World::unserved(2, 11);
    {
        let copy = &mut world.inner().copies[1];
        copy.claims = Some(SIZE);
        copy.bytes.truncate(30 * EXTENT as usize + 5);
    }
    let report = world.verify();
    assert_eq!(report.copies[1].differing.ranges, [30 * EXTENT..SIZE]);
}

#[test]
fn a_brick_that_says_it_has_less_or_more_than_the_image_differs() {
    for (claims, differing) in [
        (0, 0..SIZE),
        (2 * EXTENT, 2 * EXTENT..SIZE),
        (SIZE + 512, SIZE..SIZE + 512),
        (u64::MAX, SIZE..u64::MAX),
    ] {
        let world = World::unserved(2, 12);
        world.inner().copies[1].claims = Some(claims);
        let report = world.verify();
        assert_eq!(report.copies[1].differing.ranges, [differing]);
    }
}

#[test]
fn a_reference_that_lies_about_its_size_is_not_followed_for_ever() {
    let world = World::unserved(2, 13);
    world.inner().copies[0].claims = Some(1 << 40);
    let report = world.verify();
    assert!(report.differs());
    let summed = world.inner().copies[0].summed;
    assert!(summed <= 2 * SIZE, "{summed} bytes were asked for");
    assert_eq!(
        report.copies[1].differing.bytes,
        (1 << 40) - SIZE.next_multiple_of(EXTENT)
    );
}

#[test]
fn a_lock_of_another_client_is_waited_for() {
    let world = World::unserved(3, 14);
    world.inner().client = true;
    let report = world.verify();
    assert!(!report.differs() && report.is_complete(), "{report:?}");
    assert!(world.inner().writes > 0);
}

#[test]
fn a_client_s_write_that_is_half_done_for_long_is_no_difference() {
    for seed in 0..10 {
        let world = World::unserved(3, seed);
        {
            let mut inner = world.inner();
            inner.client_pace = 50;
            inner.half_written();
        }
        assert!(!world.verify().differs(), "seed {seed}");
    }
}

#[test]
fn a_lock_that_is_never_given_back_makes_its_range_busy_in_bounded_time() {
    let world = World::unserved(3, 15);
    assert!(world.inner().copies[1].lock(CLIENT, &(EXTENT..EXTENT + 1), true));
    let report = world.verify();
    for copy in &report.copies[1..] {
        assert_eq!((copy.busy, copy.verified), (1 << 20, SIZE - (1 << 20)));
    }
    assert!(!report.differs() && !report.is_complete());
    assert!(report.seconds < 10.0);
}

#[test]
fn a_lock_on_everything_costs_no_more_than_the_round_s_patience() {
    let world = World::unserved(3, 16);
    assert!(world.inner().copies[0].lock(CLIENT, &(0..u64::MAX), true));
    let report = world.verify();
    assert_eq!(report.copies[2].busy, SIZE);
    assert!(report.seconds < 15.0, "{:?}", report.seconds);
}

#[test]
fn a_client_s_write_that_fails_on_one_copy_makes_it_behind_and_no_difference() {
    let mut late = 0;
    for seed in 0..15 {
        let world = World::unserved(3, seed);
        {
            let mut inner = world.inner();
            inner.client = true;
            inner.fails_on = Some(2);
        }
        let report = world.verify();
        assert!(!report.differs(), "seed {seed}");
        let copy = &report.copies[2];
        late += u64::from(copy.state == CopyVerdict::Compared && copy.behind > 0);
    }
    assert!(late > 0, "never was a mark made after the beginning");
}

#[test]
fn bytes_that_cannot_be_read_are_not_verified_and_the_reason_is_told() {
    for child in [0, 1] {
        let world = World::unserved(3, 17);
        world.inner().copies[child].unreadable = 5 * EXTENT..5 * EXTENT + 1;
        let report = world.verify();
        let copy = &report.copies[1];
        assert_eq!((copy.not_verified, copy.verified), (EXTENT, SIZE - EXTENT));
        assert!(
            copy.why
                .as_deref()
                .is_some_and(|why| why.contains("input/output"))
        );
        assert!(!report.differs() && !report.is_complete());
    }
}

#[test]
fn stopped_it_tells_what_it_has_and_that_there_is_more() {
    let world = World::unserved(2, 18);
    world.options.stop.store(true, Ordering::Relaxed);
    let report = world.verify();
    assert_eq!(report.copies[1].not_verified, SIZE);
    assert!(report.ended_early.is_some());
}
