//! The order at the peer, against what a guest may rely on.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::applying::{Applying, OrderedStep};

#[test]
fn what_is_before_a_flush_is_over_before_anything_behind_it_begins() {
    let mut applying = Applying::new(7);
    applying.push(OrderedStep::Change(0..1, 'a'));
    applying.push(OrderedStep::Change(1..2, 'b'));
    applying.push(OrderedStep::Flush);
    applying.push(OrderedStep::Change(2..3, 'c'));
    assert_eq!(applying.begin(), Some((7, 0..1, 'a')));
    assert_eq!(applying.begin(), Some((8, 1..2, 'b')));
    assert_eq!(applying.begin(), None);
    applying.over(8);
    assert_eq!(applying.begin(), None);
    assert_eq!(applying.applied(), 7);
    applying.over(7);
    assert_eq!(applying.begin(), Some((10, 2..3, 'c')));
    assert_eq!(applying.applied(), 10);
}

#[test]
fn of_what_lies_on_the_same_bytes_the_earlier_is_over_first() {
    let mut applying = Applying::new(0);
    applying.push(OrderedStep::Change(10..20, 'a'));
    applying.push(OrderedStep::Change(19..30, 'b'));
    applying.push(OrderedStep::Change(20..21, 'c'));
    assert_eq!(applying.begin(), Some((0, 10..20, 'a')));
    assert_eq!(applying.begin(), None);
    applying.over(0);
    assert_eq!(applying.begin(), Some((1, 19..30, 'b')));
    assert_eq!(applying.begin(), None);
}

/// Changes of some of sixteen blocks, and flushes.
fn steps() -> impl Strategy<Value = Vec<OrderedStep<()>>> {
    let step = prop_oneof![
        5 => (0..16_u64, 1..5_u64).prop_map(|(at, len)| OrderedStep::Change(at..at + len, ())),
        1 => Just(OrderedStep::Flush),
    ];
    prop::collection::vec(step, 1..60)
}

/// The number of flushes before each entry.
fn epochs(steps: &[OrderedStep<()>]) -> Vec<usize> {
    let mut epoch = 0;
    let number = |step: &OrderedStep<()>| {
        let now = epoch;
        epoch += usize::from(*step == OrderedStep::Flush);
        now
    };
    steps.iter().map(number).collect()
}

proptest! {
    /// Changes land in any order that the disk likes; at every moment what has landed and what
    /// may have is something that a power cut could have left of the guest's own disk.
    #[test]
    fn a_copy_is_at_every_moment_what_the_guest_could_be_left_with(
        steps in steps(),
        choices in prop::collection::vec(any::<(bool, u8)>(), 400),
    ) {
        let epochs = epochs(&steps);
        let mut applying = Applying::new(0);
        steps.iter().cloned().for_each(|step| applying.push(step));
        let (mut begun, mut over) = (BTreeSet::new(), BTreeSet::new());
        let before = |epoch: usize| {
            let numbers = (0..steps.len()).filter(|&n| steps[n] != OrderedStep::Flush);
            numbers.filter(|&n| epochs[n] < epoch).collect::<BTreeSet<_>>()
        };
        for (begin, which) in choices {
            if begin {
                let Some((number, range, ())) = applying.begin() else { continue };
                let number = number as usize;
                prop_assert!(before(epochs[number]).is_subset(&over), "{number} crossed a flush");
                for other in begun.difference(&over) {
                    let OrderedStep::Change(busy, ()) = &steps[*other] else { continue };
                    let apart = busy.end <= range.start || range.end <= busy.start;
                    prop_assert!(apart, "{number} and {other} are on the same bytes");
                }
                begun.insert(number);
            } else {
                let under_way: Vec<_> = begun.difference(&over).copied().collect();
                let Some(&number) = under_way.get(which as usize % under_way.len().max(1)) else {
                    continue;
                };
                applying.over(number as u64);
                over.insert(number);
            }
            let applied = applying.applied() as usize;
            let all = (0..applied).filter(|&n| steps[n] != OrderedStep::Flush);
            prop_assert!(all.clone().all(|n| over.contains(&n)), "applied says too much");
        }
    }
}
