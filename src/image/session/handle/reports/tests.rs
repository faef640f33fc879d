//! When a report is answered.

use std::sync::mpsc;
use std::thread;

use super::super::tests::session;
use super::*;
use crate::image::dirty_map::Peers;
use crate::image::heal::Figures;
use crate::image::session::snapshot::CopySnapshot;

/// Much longer than any answer here takes that is not kept back.
const LONG: Duration = Duration::from_secs(20);

fn report() -> HealReport {
    HealReport {
        pid: 7,
        bandwidth: 0,
        trouble: None,
        peers: vec![PeerReport {
            state: HealState::Idle,
            rate: 1,
            sent_before: Some(Duration::from_secs(2)),
            failing_for: None,
            figures: Figures::default(),
        }],
    }
}

/// Reports to one that has nothing to say, lets `change` happen, and returns the answer.
fn told_after(change: impl FnOnce(&SessionHandle)) -> Result<Hint, LinkError> {
    let (_directory, _map, handle) = session(0);
    let known = handle.report(&report(), None, |hint| hint).unwrap();
    assert!(known.at_rest);
    let (answer, answered) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let wait = Wait {
                time: LONG,
                unlike: known,
            };
            let told = handle.report(&report(), Some(&wait), |hint| hint);
            answer.send(told).unwrap();
        });
        while locked(&handle.healer).number < 2 {
            thread::yield_now();
        }
        // What is not news is not told.
        handle.ring();
        let early = answered.recv_timeout(Duration::from_millis(100));
        assert!(early.is_err(), "{early:?}");
        change(&handle);
        answered.recv_timeout(LONG / 2).unwrap()
    })
}

#[test]
fn an_answer_that_is_kept_back_comes_as_soon_as_there_is_something_to_say() {
    let marked = told_after(|handle| {
        locked(&handle.snapshot).phase = Phase::Dirty;
        handle.ring();
    });
    let marked = marked.unwrap();
    assert!(marked.marked && !marked.at_rest);
    let behind = told_after(|handle| {
        handle.map().unwrap().mark_dirty(Peers::first(1), 0, 1);
        locked(&handle.snapshot).copies = vec![held(), held()];
        handle.ring();
    });
    assert!(!behind.unwrap().at_rest, "as for a copy that differs");
}

fn held() -> CopySnapshot {
    CopySnapshot {
        brick: "a:/b".to_owned(),
        locked: true,
        why_away: None,
        pending: Some(vec![0, 0]),
        read_at: None,
    }
}

#[test]
fn an_answer_that_is_kept_back_comes_when_the_session_ends_or_changes_its_size() {
    let ended = told_after(|handle| handle.bell.end());
    assert!(matches!(ended, Err(LinkError::Ended(_))), "{ended:?}");
    let mut away = None;
    let resized = told_after(|handle| away = Some(handle.send_healers_away()));
    assert!(matches!(resized, Err(LinkError::Ended(_))), "{resized:?}");
}

#[test]
fn a_later_report_ends_the_wait_of_an_earlier_one() {
    let mut later = None;
    let earlier = told_after(|handle| later = Some(handle.report(&report(), None, |hint| hint)));
    assert_eq!(earlier, later.unwrap());
    assert!(earlier.unwrap().at_rest);
}

#[test]
fn an_answer_is_not_kept_back_for_longer_than_asked_nor_if_it_is_news() {
    let (_directory, _map, handle) = session(0);
    let mut wait = Wait {
        time: Duration::from_millis(50),
        unlike: handle.report(&report(), None, |hint| hint).unwrap(),
    };
    let begin = Instant::now();
    let told = handle.report(&report(), Some(&wait), |hint| hint);
    assert!(begin.elapsed() >= wait.time);
    assert_eq!(told.unwrap(), wait.unlike);
    wait = Wait {
        time: LONG,
        unlike: Hint::default(),
    };
    let told = handle.report(&report(), Some(&wait), |hint| hint).unwrap();
    assert!(told.at_rest && begin.elapsed() < LONG / 2);
}

#[test]
fn with_anything_to_do_nothing_is_at_rest() {
    let at_rest = |dirty: u64, marked: i32, phase: Phase| {
        let (_directory, _map, handle) = session(dirty);
        let mut snapshot = locked(&handle.snapshot);
        snapshot.phase = phase;
        snapshot.copies = vec![held(), held()];
        snapshot.copies[0].pending = Some(vec![0, marked]);
        drop(snapshot);
        handle.report(&report(), None, |hint| hint).unwrap().at_rest
    };
    assert!(at_rest(0, 0, Phase::Unmarked));
    assert!(!at_rest(1, 0, Phase::Unmarked), "dirty");
    assert!(!at_rest(0, 1, Phase::Unmarked), "a mark could go");
    assert!(!at_rest(0, 0, Phase::Dirty) && !at_rest(0, 0, Phase::Marking));
}

#[test]
fn what_a_peer_that_is_away_misses_disturbs_no_rest() {
    let (_directory, _map, handle) = session(1);
    let away = CopySnapshot {
        locked: false,
        ..held()
    };
    locked(&handle.snapshot).copies = vec![held(), away];
    assert!(handle.report(&report(), None, |hint| hint).unwrap().at_rest);
}

#[test]
fn a_healer_s_figures_get_older_after_its_report() {
    let (_directory, _map, handle) = session(1);
    handle.report(&report(), None, |hint| hint).unwrap();
    let told = Duration::from_secs(2);
    let healer = handle.snapshot().healing.unwrap().healer.unwrap();
    assert!(healer.peers[0].sent_before.unwrap() > told);
    let later = aged(report(), Duration::MAX);
    assert_eq!(later.peers[0].sent_before, Some(Duration::MAX));
}

#[test]
fn a_healer_that_waits_for_an_answer_is_alive() {
    let mut heard = Heard::default();
    let long_ago = Instant::now().checked_sub(LONG).unwrap();
    let number = heard.take(&report(), LONG);
    heard.last.as_mut().unwrap().at = long_ago;
    let until = |heard: &Heard| heard.last.as_ref().unwrap().until;
    assert!(heard.alive().is_some() && until(&heard) > Instant::now() + LONG);
    heard.answered(number);
    assert!(until(&heard) < Instant::now() + LONG);
    heard.last.as_mut().unwrap().until = long_ago;
    assert!(heard.alive().is_none() && heard.last().is_some());
}
