//! A follower with a simulated session, guest and bricks, threads and all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use crate::image::dirty_map::{MapError, Peers};

use super::super::backoff::FLOOR;
use super::super::{FollowEnd, FollowError, FollowOptions, HealState, LinkError, Unmarked};
use super::brick::{Call, Fault};
use super::session::{Session, at_once, make_clean, slowly, wait_until, write_until};
use super::world::{EXTENT, SIZE};

#[test]
fn copies_are_equal_and_unmarked_soon_after_the_guest_stops() {
    for seed in 0..3 {
        let session = Session::new(seed, 2);
        let follower = session.follow(&at_once());
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for guest in 0..2 {
                let (session, over) = (&session, &over);
                scope.spawn(move || write_until(session, over, seed + guest));
            }
            // Both were copied to more than once over while the guest wrote.
            wait_until("copying meanwhile", || {
                let report = follower.snapshot().report;
                let copied = |figures: u64| figures > 2 * SIZE / EXTENT;
                let mut peers = report.peers.iter();
                report.peers.len() == 2 && peers.all(|p| copied(p.figures.extents_cleared))
            });
            over.store(true, Ordering::SeqCst);
        });
        session.wait_until_unmarked();
        wait_until("it is told", || {
            follower.snapshot().unmarked == Some(Unmarked::All)
        });
        assert_eq!(follower.stop().unwrap(), FollowEnd::Stopped);
        session.check();
    }
}

#[test]
fn a_guest_that_rests_now_and_then_is_unmarked_each_time() {
    let session = Session::new(10, 2);
    let follower = session.follow(&at_once());
    for round in 0..3 {
        session.write(5 * EXTENT, &[round; 512]);
        session.wait_until_unmarked();
    }
    drop(follower);
    session.check();
}

#[test]
fn a_peer_that_is_away_holds_up_no_other_and_is_healed_when_it_returns() {
    let session = Session::new(11, 2);
    session.cut_off(1);
    let follower = session.follow(&at_once());
    wait_until("the other is unmarked", || {
        let unmarked = follower.snapshot().unmarked;
        let peers = vec![true, false];
        unmarked == Some(Unmarked::Some { peers })
    });
    assert!(session.is_equal(0));
    session.write(0, &[3; 512]);
    wait_until("the other is unmarked again", || {
        session.debt(0) == 0 && session.known().asked >= 2
    });
    session.come_back(1);
    session.wait_until_unmarked();
}

#[test]
fn a_peer_that_only_the_healer_cannot_reach_holds_up_no_copying() {
    let session = Session::new(12, 2);
    let options = slowly();
    let follower = session.follow(&options);
    wait_until("copying", || !session.bricks[1].state().written.is_empty());
    session.bricks[1].cut_off();
    options.bandwidth.store(0, Ordering::Relaxed);
    wait_until("the other is healed", || session.debt(0) == 0);
    session.wait_until_missed(1, "out of reach");
    assert!(session.debt(1) > 0);
    session.bricks[1].state().away = false;
    session.wait_until_unmarked();
    drop(follower);
    session.check();
}

#[test]
fn a_peer_whose_disk_is_full_holds_up_no_other_and_is_asked_less_and_less_often() {
    let session = Session::new(29, 2);
    session.bricks[1].state().full = true;
    let follower = session.follow(&at_once());
    let unmarked = || {
        let peers = vec![true, false];
        follower.snapshot().unmarked == Some(Unmarked::Some { peers })
    };
    wait_until("the other is unmarked", unmarked);
    assert!(session.is_equal(0) && session.debt(1) > 0);
    session.wait_until_missed(1, "refused");
    let failing = |at_least: u64| {
        let failing = session.last_report(1).and_then(|peer| peer.failing_for);
        failing >= Some(Duration::from_millis(at_least))
    };
    wait_until("some attempts", || failing(2000));
    // After 0, 0.25, 0.75, 1.75 and 3.75 seconds.
    let refusals = session.bricks[1].state().refusals;
    assert!((2..=5).contains(&refusals), "{refusals}");
    // It is copied to without marks against the other.
    session.bricks[1].state().full = false;
    session.wait_until_unmarked();
    assert_eq!(session.last_report(1).unwrap().failing_for, None);
    drop(follower);
    session.check();
}

#[test]
fn a_guest_that_writes_beside_a_full_peer_is_unmarked_each_time_it_rests() {
    let session = Session::new(30, 2);
    session.bricks[1].state().full = true;
    let _follower = session.follow(&at_once());
    for round in 0..2 {
        session.write(5 * EXTENT, &[round; 512]);
        wait_until("the other is unmarked", || {
            session.debt(0) == 0 && !session.marks()[0]
        });
        assert!(session.is_equal(0) && session.marks()[1]);
    }
    session.check();
}

#[test]
fn when_the_session_ends_nothing_is_written_any_more_and_the_copy_lock_is_free() {
    let session = Session::new(13, 2);
    let follower = session.follow(&slowly());
    wait_until("copying", || {
        let mut bricks = session.bricks.iter();
        bricks.all(|brick| !brick.state().written.is_empty())
    });
    let next = Uuid::from_u128(99);
    for brick in &session.bricks {
        assert!(!brick.take_over(next), "a healer copies, unseen");
    }
    session.known().ended = Some(LinkError::Ended("its guest is gone".into()));
    for brick in &session.bricks {
        wait_until("the copy lock is free", || brick.take_over(next));
    }
    let written = || -> Vec<usize> {
        let bricks = session.bricks.iter();
        bricks.map(|brick| brick.state().written.len()).collect()
    };
    let before = written();
    let end = follower.join().unwrap();
    assert_eq!(end, FollowEnd::SessionEnded("its guest is gone".into()));
    assert_eq!(written(), before);
    assert!(session.debt(0) > 0, "it was over before the session ended");
    session.check();
}

#[test]
fn a_session_that_does_not_answer_is_no_session_that_ended() {
    let session = Session::new(14, 1);
    let follower = session.follow(&slowly());
    wait_until("copying", || !session.bricks[0].state().written.is_empty());
    let mut known = session.known();
    known.ended = Some(LinkError::Failed("busy".into()));
    let before = session.bricks[0].state().written.len();
    drop(known);
    wait_until("it goes on", || {
        session.bricks[0].state().written.len() > before + 5
    });
    assert!(!follower.is_over());
    session.check();
}

#[test]
fn a_killed_follower_leaves_what_the_next_one_finishes() {
    for (seed, call) in [(15, Call::Write), (16, Call::Fsync)] {
        let session = Session::new(seed, 2);
        session.bricks[0].state().fault = Some((call, 0, Fault::HealerDies));
        let killed = session.follow(&at_once());
        assert!(matches!(killed.join(), Err(FollowError::Died)));
        session.bricks.iter().for_each(|b| b.state().power_cut());
        assert!(session.debt(0) > 0);
        session.write(0, &[1; 1024]);
        let next = session.follow(&at_once());
        session.wait_until_unmarked();
        assert_eq!(next.stop().unwrap(), FollowEnd::Stopped);
    }
}

#[test]
fn only_one_follower_works_on_an_image() {
    let session = Session::new(17, 1);
    let first = session.follow(&slowly());
    let second = session.try_follow(&at_once());
    assert!(matches!(
        second.err(),
        Some(FollowError::Map(MapError::InUse { .. }))
    ));
    first.stop().unwrap();
    let _third = session.follow(&at_once());
    session.wait_until_unmarked();
}

#[test]
fn a_peer_that_the_session_does_not_hold_is_not_even_connected_to() {
    let session = Session::new(18, 2);
    session.known().held[1] = false;
    let follower = session.follow(&at_once());
    wait_until("the other is unmarked", || {
        matches!(follower.snapshot().unmarked, Some(Unmarked::Some { .. }))
    });
    assert_eq!(session.bricks[1].state().calls, 0);
    session.wait_until_missed(1, "does not hold");
    session.known().held[1] = true;
    session.wait_until_unmarked();
}

#[test]
fn a_peer_that_the_session_loses_is_let_go() {
    let session = Session::new(19, 1);
    let _follower = session.follow(&slowly());
    let brick = &session.bricks[0];
    wait_until("copying", || !brick.state().written.is_empty());
    session.known().held[0] = false;
    wait_until("the copy lock is free", || {
        brick.state().copy_lock.is_none()
    });
    let written = brick.state().written.len();
    let reports = session.known().reports.len();
    wait_until("more reports", || {
        session.known().reports.len() > reports + 2
    });
    assert_eq!(brick.state().written.len(), written);
    assert!(session.debt(0) > 0);
    session.check();
}

#[test]
fn a_brick_with_another_session_s_record_is_not_copied_to() {
    let session = Session::new(20, 1);
    session.bricks[0].state().record = Some(Uuid::from_u128(5));
    let _follower = session.follow(&at_once());
    session.wait_until_missed(0, "not held");
    assert!(session.bricks[0].state().written.is_empty());
    session.bricks[0].state().record = Some(session.id);
    session.wait_until_unmarked();
}

#[test]
fn what_is_dirty_but_not_marked_is_not_copied() {
    let session = Session::new(21, 1);
    session.set_marked(false);
    session.known().marks_debt = false;
    let _follower = session.follow(&at_once());
    session.wait_until_missed(0, "marked");
    assert_eq!(session.bricks[0].state().calls, 0);
    session.set_marked(true);
    session.wait_until_unmarked();
}

#[test]
fn with_nothing_dirty_nothing_is_sent() {
    let session = Session::new(22, 1);
    let _follower = session.follow(&at_once());
    session.wait_until_unmarked();
    let calls = || {
        let brick = session.bricks[0].state();
        (brick.calls, brick.fsyncs)
    };
    // Marked, without anything dirty: the session does not remove them.
    for marked in [false, true] {
        session.set_marked(marked);
        let (before, reports) = (calls(), session.known().reports.len());
        wait_until("reports, or rest", || {
            let known = session.known();
            known.waiting || known.reports.len() > reports + 2
        });
        assert_eq!(calls(), before);
    }
}

#[test]
fn marks_that_are_back_without_a_write_are_removed_too() {
    let session = Session::new(23, 2);
    let _follower = session.follow(&at_once());
    session.wait_until_unmarked();
    session.set_marked(true);
    session.wait_until_unmarked();
}

#[test]
fn what_is_suspect_is_compared_and_that_may_change_at_any_time() {
    let session = Session::new(24, 1);
    let _follower = session.follow(&at_once());
    session.wait_until_unmarked();
    assert_eq!(session.bricks[0].state().compared, 0);
    session.known().suspect[0] = true;
    let reports = session.known().reports.len();
    wait_until("the hint", || session.known().reports.len() > reports + 1);
    let written = session.bricks[0].state().written.len();
    session.map.mark_all_dirty(Peers::first(1));
    session.set_marked(true);
    session.wait_until_unmarked();
    let brick = session.bricks[0].state();
    assert_eq!((brick.compared, brick.written.len()), (SIZE, written));
}

#[test]
fn the_session_hears_how_it_goes() {
    let session = Session::new(25, 2);
    session.cut_off(1);
    let options = slowly();
    let _follower = session.follow(&options);
    wait_until("a rate", || {
        session.last_report(0).is_some_and(|peer| peer.rate > 0)
    });
    let first = session.last_report(0).unwrap();
    assert_eq!(first.state, HealState::Copying);
    assert_eq!(first.sent_before, None, "no pass is over yet");
    let report = session.known().reports.last().cloned().unwrap();
    assert_eq!(report.pid, std::process::id());
    assert_eq!(report.bandwidth, 8 * EXTENT);
    options.bandwidth.store(0, Ordering::Relaxed);
    wait_until("idle", || {
        let peer = session.last_report(0).unwrap();
        peer.state == HealState::Idle && peer.sent_before == Some(Duration::ZERO)
    });
    let done = session.last_report(0).unwrap().figures;
    assert_eq!(done.bytes_sent + done.bytes_zeroed, SIZE);
    assert_eq!(session.last_report(1).unwrap().sent_before, None);
}

#[test]
fn the_age_of_what_is_not_sent_grows_while_a_peer_is_away() {
    let session = Session::new(26, 1);
    let _follower = session.follow(&at_once());
    session.wait_until_unmarked();
    session.cut_off(0);
    session.write(0, &[1; 512]);
    let age = || session.last_report(0).and_then(|peer| peer.sent_before);
    wait_until("it ages", || age() > Some(Duration::from_secs(1)));
    session.come_back(0);
    wait_until("it is sent", || age() == Some(Duration::ZERO));
}

#[test]
fn the_limit_is_the_operator_s_or_a_lower_one_for_the_guest() {
    let session = Session::new(27, 1);
    let options = FollowOptions {
        quiet: Duration::from_secs(3600),
        ..at_once()
    };
    let follower = session.follow(&options);
    let limit = |wanted: u64| {
        wait_until("the limit", || follower.snapshot().limit == wanted);
    };
    options.bandwidth.store(100 * FLOOR, Ordering::Relaxed);
    limit(100 * FLOOR);
    // A guest that nothing is known of while copying goes on.
    session.known().latency = Some(Duration::from_millis(1));
    limit(FLOOR);
    session.known().latency = None;
    limit(100 * FLOOR);
    session.known().latency = Some(Duration::from_millis(50));
    limit(FLOOR);
    session.known().forced = true;
    limit(100 * FLOOR);
    options.bandwidth.store(FLOOR / 4, Ordering::Relaxed);
    session.known().forced = false;
    limit(FLOOR / 4);
}

#[test]
fn a_clean_image_is_left_alone() {
    let session = Session::new(28, 2);
    make_clean(&session);
    let follower = session.follow(&at_once());
    wait_until("rest", || session.known().waiting);
    assert_eq!(session.known().asked, 0);
    assert!(session.bricks.iter().all(|brick| brick.state().calls == 0));
    assert_eq!(follower.stop().unwrap(), FollowEnd::Stopped);
}
