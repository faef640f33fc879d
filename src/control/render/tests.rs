//! The whole screen in each situation, as kept in `snapshots/`. After a change:
//! `INSTA_UPDATE=always cargo test render`, and read what git shows.

use std::time::{Duration, UNIX_EPOCH};

use insta::assert_snapshot;

use crate::control::samples::{self, MIB, copying, healer, healing, waiting};
use crate::control::serving_status::FullStatus;
use crate::control::status::{Fate, Status, Unserved, Verified};
use crate::image::local::SyncFailure;
use crate::image::session::snapshot::Snapshot;
use crate::image::session::state_machine::{Phase, StopReason};

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
fn a_full_disk() {
    let mut status = samples::report(&samples::dirty(64 * MIB, 64 * MIB));
    status.serving.as_mut().unwrap().full = Some(FullStatus {
        seconds: 83,
        waiting: 5,
        offset: 17 * MIB,
    });
    assert_snapshot!(super::status(&status));
}

#[test]
fn a_sync_that_failed() {
    let mut snapshot = samples::dirty(0, 0);
    snapshot.sync_failed = Some(SyncFailure {
        what: "the guest's flush",
        why: "Input/output error (os error 5)".to_owned(),
        at: UNIX_EPOCH + Duration::from_secs(1_795_425_700),
    });
    assert_snapshot!(screen(&snapshot));
}

#[test]
fn stopped() {
    let mut snapshot = samples::dirty(64 * MIB, 64 * MIB);
    snapshot.phase = Phase::Stopped(StopReason::CopyAccused { by: 2 });
    assert_snapshot!(screen(&snapshot));
}

#[test]
fn a_name_does_nothing_to_the_terminal_and_makes_no_line() {
    let mut report = samples::report(&samples::clean());
    report.image = "/a\x1b[2J\nvms/b.img  clean".to_owned();
    let screen = super::status(&report);
    let (first, _) = screen.split_once('\n').unwrap();
    assert!(first.starts_with("vms/a\\u{1b}[2J\\nvms/b.img"), "{first}");
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
fn clean_with_a_brick_away() {
    let mut snapshot = samples::clean();
    snapshot.copies[2].locked = false;
    snapshot.copies[2].why_away = Some("connection refused".to_owned());
    let screen = screen(&snapshot);
    let headline = screen.lines().next().unwrap();
    assert_eq!(
        headline,
        "vms/vm1.img  clean: no copy is marked as missing data, but 1 brick is AWAY"
    );
}

#[test]
fn no_copy_is_called_fresh_while_fewer_bricks_than_a_quorum_answer() {
    let mut copies = samples::report(&samples::clean()).copies;
    for copy in &mut copies[..2] {
        (copy.reachable, copy.marks) = (false, None);
    }
    let report = Status::of_bricks(&samples::identity(), copies, None);
    let screen = super::status(&report);
    assert!(!screen.contains("fresh"), "{screen}");
    assert!(screen.contains("node3:/bricks/vms  ? "), "{screen}");
    assert!(!screen.contains("held by  nobody\n"), "{screen}");
}

/// No daemon answers for it.
fn unserved(daemon: Fate, detail: &str) -> Status {
    let unserved = Unserved {
        daemon,
        pid: Some(7683),
        socket: Some("/run/bypass-blk/x.control".to_owned()),
        settled: Some(false),
    };
    let gfid = uuid::Uuid::from_u128(1);
    Status::unserved("vms", "/vm1.img", gfid, unserved, detail.to_owned())
}

#[test]
fn killed() {
    let detail = "its daemon (pid 7683) was killed. Start it again";
    assert_snapshot!(super::status(&unserved(Fate::Killed, detail)));
}

#[test]
fn many_images() {
    let mut stopped = samples::dirty(64 * MIB, 64 * MIB);
    stopped.phase = Phase::Stopped(StopReason::CopyAccused { by: 2 });
    let mut followed = samples::dirty(32 * MIB, 96 * MIB);
    healing(&mut followed).healer = Some(healer([copying(8 * MIB), copying(2 * MIB)]));
    let mut away = samples::clean();
    away.copies[2].locked = false;
    let ended = "nobody serves it, and its last session left copies that may miss data";
    let mut images = vec![
        samples::report(&samples::clean()),
        samples::report(&followed),
        samples::report(&away),
        samples::report(&samples::dirty(128 * MIB, 64 * MIB)),
        samples::report(&stopped),
        unserved(Fate::Killed, "its daemon (pid 7683) was killed"),
        unserved(Fate::Ended, ended),
    ];
    for (number, image) in images.iter_mut().enumerate() {
        image.image = format!("/vm{number}.img");
    }
    assert_snapshot!(super::table(&images));
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
