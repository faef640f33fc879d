//! The whole screen in each situation, as kept in `snapshots/`. After a change:
//! `INSTA_UPDATE=always cargo test render`, and read what git shows.

use insta::assert_snapshot;

use crate::control::samples::{self, MIB, copying, healer, healing, waiting};
use crate::control::status::{Status, Verified};
use crate::image::machine::{Phase, StopReason};
use crate::image::snapshot::Snapshot;

fn screen(snapshot: &Snapshot) -> String {
    super::status(&samples::report(snapshot))
}

#[test]
fn clean() {
    let mut snapshot = samples::clean();
    healing(&mut snapshot).healer = Some(healer([copying(0), copying(0)]));
    assert_snapshot!(screen(&snapshot));
}

#[test]
fn dirty_with_a_healer() {
    let mut snapshot = samples::dirty(32 * MIB, 96 * MIB);
    let mut at_work = healer([copying(8 * MIB), copying(2 * MIB)]);
    at_work.bandwidth = 100 * MIB;
    healing(&mut snapshot).healer = Some(at_work);
    healing(&mut snapshot).behind[1].lag.growing = true;
    assert_snapshot!(screen(&snapshot));
}

#[test]
fn dirty_without_a_healer() {
    assert_snapshot!(screen(&samples::dirty(128 * MIB, 64 * MIB)));
}

#[test]
fn a_peer_is_away() {
    let mut snapshot = samples::dirty(0, 96 * MIB);
    snapshot.copies[2].locked = false;
    snapshot.copies[2].why_away = Some("connection refused".to_owned());
    let waits = waiting("the brick does not answer");
    healing(&mut snapshot).healer = Some(healer([copying(0), waits]));
    assert_snapshot!(screen(&snapshot));
}

#[test]
fn a_suspect_peer_that_another_client_s_lock_holds_up() {
    let mut snapshot = samples::dirty(1024 * MIB, 0);
    let behind = &mut healing(&mut snapshot).behind[0];
    (behind.suspect, behind.lag.inherited) = (true, true);
    let waits = waiting("another client holds a lock on a part of the image");
    healing(&mut snapshot).healer = Some(healer([waits, copying(0)]));
    assert_snapshot!(screen(&snapshot));
}

#[test]
fn a_queue_that_does_nothing_and_a_front_end_that_was_dropped() {
    let mut status = samples::report(&samples::clean());
    let serving = status.serving.as_mut().unwrap();
    serving.queues[1].dead = Some("the available index 9 is too far from 1".to_owned());
    serving.dropped = Some("the front-end uses rings of 1024 entries".to_owned());
    let screen = super::status(&status);
    let troubles: Vec<_> = screen
        .lines()
        .filter(|line| line.contains("TROUBLE"))
        .collect();
    assert_eq!(
        troubles,
        [
            "  TROUBLE  the last front-end was dropped: the front-end uses rings of 1024 entries",
            "  TROUBLE  queue 1 does nothing until the guest's driver starts it anew: the available index 9 is too far from 1",
        ]
    );
}

#[test]
fn stopped() {
    let mut snapshot = samples::dirty(64 * MIB, 64 * MIB);
    snapshot.phase = Phase::Stopped(StopReason::CopyAccused { by: 2 });
    assert_snapshot!(screen(&snapshot));
}

#[test]
fn from_the_bricks_alone() {
    let served = samples::report(&samples::dirty(0, 0));
    let mut identity = samples::identity();
    identity.local = None;
    identity.last_verified = Some(Verified {
        at: 1_795_425_664,
        complete: true,
        differing_bytes: 65536,
        behind_bytes: 0,
        repaired: false,
    });
    let mut seen = served.copies;
    seen.iter_mut().for_each(|copy| copy.behind = None);
    let report = Status::of_bricks(&identity, seen, None);
    assert_snapshot!(super::status(&report));
}

#[test]
fn what_was_compared_is_not_called_equal_where_it_was_behind() {
    let mut verified = Verified {
        at: 1_795_425_664,
        complete: true,
        differing_bytes: 0,
        behind_bytes: 67 * MIB,
        repaired: false,
    };
    let line = |verified| {
        let mut report = samples::report(&samples::clean());
        report.last_verified = Some(verified);
        let screen = super::status(&report);
        let line = screen.lines().find(|line| line.contains("verified"));
        line.unwrap().trim().to_owned()
    };
    assert_eq!(
        line(verified),
        "verified 2026-11-23T09:21:04Z: equal but for 67.00 MiB that was behind"
    );
    verified.behind_bytes = 0;
    assert_eq!(line(verified), "verified 2026-11-23T09:21:04Z: equal");
}

#[test]
fn a_document_of_another_program_with_absurd_figures_is_shown_all_the_same() {
    let mut report = samples::report(&samples::dirty(u64::MAX, 1));
    let heal = report.heal.as_mut().unwrap();
    for age in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
        heal.oldest_unsent_seconds = age;
        heal.peers[0].oldest_unsent_seconds = age;
    }
    heal.peers[0].most_behind_bytes = 0;
    heal.peers[1].copy = 99;
    report.holder.as_mut().unwrap().since = u64::MAX;
    assert!(super::status(&report).contains("9999"));
}
