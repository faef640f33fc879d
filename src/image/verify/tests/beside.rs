//! Beside a session: a guest, a healer and a client at work.

use std::cell::RefCell;
use std::ops::Range;

use crate::image::dirty_map::{Peer, Peers};
use crate::image::heal::LinkError;

use super::super::Repair;
use super::world::{EXTENT, SIZE, World};

#[test]
fn an_extent_known_to_be_behind_is_no_difference_for_that_peer() {
    let world = World::served(3, 1);
    world.damage(1, 10 * EXTENT);
    world.damage(2, 10 * EXTENT);
    let one = Peers::from(Peer::new(0).unwrap());
    let map = world.inner().map.clone().unwrap();
    map.mark_dirty(one, 10 * EXTENT, EXTENT);
    let report = world.verify();
    let [first, second] = [&report.copies[1], &report.copies[2]];
    assert_eq!((first.behind, first.verified), (EXTENT, SIZE - EXTENT));
    assert!(first.differing.is_empty());
    assert_eq!(second.differing.ranges, [10 * EXTENT..11 * EXTENT]);
    assert!(report.is_complete());
}

#[test]
fn copies_are_not_called_equal_while_one_is_behind() {
    let world = World::served(2, 1);
    let map = world.inner().map.clone().unwrap();
    assert!(world.verify().is_equal());
    map.mark_dirty(Peers::first(1), 10 * EXTENT, EXTENT);
    let report = world.verify();
    assert!(!report.differs() && !report.is_equal());
    assert_eq!(report.record().bytes_behind, EXTENT);
}

#[test]
fn what_is_healed_meanwhile_is_compared_after_all() {
    // A healer at work, and a guest that is quiet.
    let world = World::served(2, 1);
    let map = world.inner().map.clone().unwrap();
    map.mark_dirty(Peers::first(1), 10 * EXTENT, 3 * EXTENT);
    world.damage(1, 11 * EXTENT);
    world.inner().heals = true;
    let report = world.verify();
    assert_eq!((report.copies[1].verified, report.behind()), (SIZE, 0));
    assert!(report.is_equal());
}

#[test]
fn of_a_copy_that_is_behind_everywhere_nothing_is_asked() {
    let world = World::served(2, 2);
    world
        .inner()
        .map
        .as_ref()
        .unwrap()
        .mark_all_dirty(Peers::first(1));
    world.inner().copies[1].bytes.truncate(4096);
    let report = world.verify();
    assert_eq!(report.copies[1].behind, SIZE);
    assert_eq!(world.inner().copies[1].summed, 0);
}

#[test]
fn an_extent_with_a_write_in_flight_all_the_time_is_busy_and_nothing_else() {
    let world = World::served(3, 3);
    world.inner().hot = Some(100);
    let report = world.verify();
    for copy in &report.copies[1..] {
        assert_eq!((copy.busy, copy.verified), (EXTENT, SIZE - EXTENT));
    }
    assert!(!report.differs() && !report.is_complete());
}

#[test]
fn a_write_that_comes_while_sums_are_on_their_way_is_no_difference() {
    // Before the sum of the whole range, of the extent, and of each time it is read
    // again because the sums differed.
    for reads in 0..5 {
        let world = World::served(2, 7);
        {
            let mut inner = world.inner();
            inner.copies[1].flaky = (reads, 20 * EXTENT..20 * EXTENT + 1);
            inner.strike = Some((reads, 20));
        }
        let report = world.verify();
        assert!(!report.differs(), "after {reads} reads");
        assert_eq!(report.copies[1].behind, EXTENT, "after {reads} reads");
    }
}

#[test]
fn guest_healer_and_client_at_work_make_no_false_difference() {
    let (mut writes, mut heals, mut compared) = (0, 0, 0);
    for seed in 0..25 {
        let world = World::served(3, seed);
        {
            let mut inner = world.inner();
            (inner.guest, inner.heals) = (true, true);
            inner.client = seed % 2 == 0;
        }
        let report = world.verify();
        assert!(!report.differs(), "seed {seed}: {report:?}");
        let inner = world.inner();
        writes += inner.writes;
        heals += inner.heals_done;
        compared += report.copies[1].verified;
    }
    assert!(writes > 250 && heals > 60 && compared > 22 * SIZE);
}

#[test]
fn real_differences_are_found_while_everybody_is_at_work() {
    for seed in 0..20 {
        let world = World::served(3, seed);
        // One in a range that is all quiet, one among those that are written to.
        world.damage(1, 300 * EXTENT + seed);
        world.damage(2, 249 * EXTENT);
        {
            let mut inner = world.inner();
            (inner.guest, inner.heals, inner.client) = (true, true, true);
        }
        let report = world.verify();
        let ranges = |child: usize| report.copies[child].differing.ranges.clone();
        assert_eq!(ranges(1), [300 * EXTENT..301 * EXTENT], "seed {seed}");
        assert_eq!(ranges(2), [249 * EXTENT..250 * EXTENT], "seed {seed}");
    }
}

#[test]
fn nothing_is_called_a_difference_once_the_session_has_ended() {
    let world = World::served(2, 4);
    world.damage(1, 7 * EXTENT);
    let repair = Marks(RefCell::default(), &world);
    world.inner().ends_after = Some(3);
    let report = world.try_verify(Some(&repair)).unwrap();
    assert!(!report.differs() && !report.is_complete());
    assert!(report.copies[1].not_verified > 0);
    assert!(repair.0.borrow().is_empty());
}

#[test]
fn what_differs_is_handed_over_for_repair_in_whole_ranges() {
    let world = World::served(3, 5);
    for extent in [3, 4, 5, 500] {
        world.damage(2, extent * EXTENT + 9);
    }
    let repair = Marks(RefCell::default(), &world);
    let report = world.try_verify(Some(&repair)).unwrap();
    assert!(report.repaired && report.differs());
    let expected = [(2, 3 * EXTENT..6 * EXTENT), (2, 500 * EXTENT..501 * EXTENT)];
    assert_eq!(*repair.0.borrow(), expected);
}

#[test]
fn a_difference_that_was_not_taken_is_not_repaired() {
    let world = World::served(2, 6);
    world.damage(1, 1);
    let report = world.try_verify(Some(&Refuses)).unwrap();
    assert!(report.differs() && !report.repaired && !report.record().repaired);
}

struct Marks<'a>(RefCell<Vec<(usize, Range<u64>)>>, &'a World);

impl Repair for Marks<'_> {
    fn mark_differing(&self, child: usize, ranges: &[Range<u64>]) -> Result<(), LinkError> {
        self.1.assert_no_locks();
        let mut marked = self.0.borrow_mut();
        marked.extend(ranges.iter().map(|range| (child, range.clone())));
        Ok(())
    }
}

struct Refuses;

impl Repair for Refuses {
    fn mark_differing(&self, _: usize, _: &[Range<u64>]) -> Result<(), LinkError> {
        Err(LinkError::Failed("busy".to_owned()))
    }
}
