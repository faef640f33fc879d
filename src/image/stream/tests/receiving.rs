//! The receiver: its record, its syncs, its answers.

use std::time::Duration;

use uuid::Uuid;

use super::super::cells::EntryKind;
use super::super::message::{FromReceiver, Item};
use super::super::receiving::{Do, Receiving};
use super::super::standing::{CopyRecord, CopyStanding};

const NOW: Duration = Duration::from_secs(100);
const LATER: Duration = Duration::from_secs(102);

fn write(offset: u64) -> Item {
    Item {
        kind: EntryKind::Write,
        offset,
        len: 512,
    }
}

fn begin() -> Receiving<u8> {
    let (mut receiving, first) = Receiving::begin(Uuid::from_u128(1), Uuid::from_u128(2), NOW);
    let is_inconsistent = |record: &CopyRecord| record.standing == CopyStanding::Inconsistent;
    assert!(matches!(first, Do::Store(record) if is_inconsistent(&record) && !record.settled));
    receiving.item(write(0), 1);
    receiving.whole();
    assert_eq!(
        receiving.next(NOW),
        None,
        "nothing before the record is stored"
    );
    receiving.stored();
    receiving
}

/// Until nothing is to be done, all of it being done at once; what it was.
fn run(receiving: &mut Receiving<u8>, now: Duration) -> Vec<Do<u8>> {
    let mut done = Vec::new();
    while let Some(act) = receiving.next(now) {
        match &act {
            Do::Change { number, item, .. } => receiving.over(*number, item.len),
            Do::Sync => receiving.synced(),
            Do::Store(_) => receiving.stored(),
            Do::Tell(_) => {}
        }
        done.push(act);
    }
    done
}

fn records(done: &[Do<u8>]) -> Vec<(CopyStanding, bool)> {
    let record = |act: &Do<u8>| match act {
        Do::Store(record) => Some((record.standing, record.settled)),
        _ => None,
    };
    done.iter().filter_map(record).collect()
}

#[test]
fn items_count_when_they_are_said_to_have_been_whole() {
    let mut receiving = begin();
    run(&mut receiving, NOW);
    receiving.item(write(512), 2);
    assert_eq!(run(&mut receiving, NOW), []);
    receiving.whole();
    let done = run(&mut receiving, NOW);
    assert!(matches!(
        done[0],
        Do::Change {
            number: 1,
            data: 2,
            ..
        }
    ));
}

#[test]
fn durable_is_what_was_over_when_a_sync_began() {
    let mut receiving = begin();
    let Some(Do::Change { number, .. }) = receiving.next(NOW) else {
        panic!("the change should begin");
    };
    receiving.over(number, 512);
    assert_eq!(receiving.next(LATER), Some(Do::Sync));
    receiving.item(write(512), 2);
    receiving.whole();
    let Some(Do::Change { number, .. }) = receiving.next(LATER) else {
        panic!("the second change should begin");
    };
    receiving.over(number, 512);
    receiving.synced();
    let told = receiving.next(LATER);
    let progress = FromReceiver::Progress {
        applied: 2,
        durable: 1,
    };
    assert_eq!(told, Some(Do::Tell(progress)));
}

#[test]
fn a_sync_is_done_at_once_when_the_sender_waits_for_it() {
    let mut receiving = begin();
    receiving.sync_asked();
    let done = run(&mut receiving, NOW);
    assert!(
        matches!(done[..2], [Do::Change { .. }, Do::Sync]),
        "{done:?}"
    );
    receiving.item(write(0), 1);
    receiving.whole();
    let done = run(&mut receiving, NOW);
    assert!(!done.contains(&Do::Sync), "{done:?}");
}

#[test]
fn it_is_consistent_when_all_was_applied_and_as_of_a_time_that_was_said() {
    let mut receiving = begin();
    receiving.consistent();
    receiving.as_of(7);
    let Some(Do::Change { number, .. }) = receiving.next(NOW) else {
        panic!("the change should begin");
    };
    assert_eq!(receiving.next(NOW), None);
    receiving.over(number, 512);
    let consistent = CopyStanding::Consistent { as_of: 7 };
    assert_eq!(records(&run(&mut receiving, NOW)), [(consistent, false)]);
    assert_eq!(records(&run(&mut receiving, LATER)), [(consistent, true)]);
}

#[test]
fn a_settled_record_is_taken_back_before_anything_changes() {
    let mut receiving = begin();
    run(&mut receiving, LATER);
    receiving.item(write(0), 3);
    receiving.whole();
    let done = run(&mut receiving, LATER);
    assert!(
        matches!(done[0], Do::Store(CopyRecord { settled: false, .. })),
        "{done:?}"
    );
    assert!(matches!(done[1], Do::Change { .. }), "{done:?}");
}

#[test]
fn no_more_is_read_than_it_can_hold() {
    let mut receiving = begin();
    while receiving.wants_more() {
        receiving.item(write(0), 0);
        assert!(
            receiving
                .next(NOW)
                .is_none_or(|act| matches!(act, Do::Change { .. }))
        );
    }
    receiving.whole();
    assert!(!receiving.wants_more());
}
