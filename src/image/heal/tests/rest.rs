//! A follower with nothing to do: how often it wakes up, and how soon it is at work again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::{FollowEnd, FollowOptions, Follower};
use super::session::{Session, at_once, make_clean, wait_until};
use super::world::EXTENT;
use crate::image::scheduler::clock::{Clock, SystemClock};
use crate::image::scheduler::{Scheduler, Simulator};

/// The system's threads and time; how often any of them waits is counted.
#[derive(Default)]
struct Counting {
    clock: SystemClock,
    waits: AtomicUsize,
}

impl Clock for Counting {
    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn sleep(&self, time: Duration) {
        self.clock.sleep(time);
    }
}

impl Simulator for Counting {
    fn spawn(&self, _: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        thread::Builder::new().spawn(body).map(drop)
    }

    fn until(&self, ready: &mut dyn FnMut() -> bool, limit: Option<Duration>) {
        self.waits.fetch_add(1, Ordering::SeqCst);
        let begin = Instant::now();
        while !ready() && limit.is_none_or(|limit| begin.elapsed() < limit) {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// One of two peers that are equal, once it rests.
fn at_rest(session: &Arc<Session>, options: &FollowOptions) -> Follower {
    make_clean(session);
    let follower = session.follow(options);
    wait_for_rest(session);
    follower
}

fn wait_for_rest(session: &Session) {
    wait_until("rest", || session.known().waiting);
}

#[test]
fn an_idle_follower_wakes_up_less_than_once_a_second() {
    let session = Session::new(40, 2);
    let counting = Arc::new(Counting::default());
    let options = FollowOptions {
        threads: Scheduler::simulated(counting.clone()),
        ..at_once()
    };
    let _follower = at_rest(&session, &options);
    let seen = || {
        let reports = session.known().reports.len();
        (reports, counting.waits.load(Ordering::SeqCst))
    };
    // The healers of the peers may have had to hear of it first.
    thread::sleep(Duration::from_millis(200));
    let before = seen();
    thread::sleep(Duration::from_secs(2));
    let after = seen();
    let woken = (after.0 - before.0) + (after.1 - before.1);
    assert!(woken <= 2, "{before:?} {after:?}");
    session.check();
}

#[test]
fn after_a_rest_what_the_guest_writes_is_copied_at_once() {
    let session = Session::new(41, 2);
    let _follower = at_rest(&session, &at_once());
    for round in 0..2 {
        let begin = Instant::now();
        session.write(5 * EXTENT, &[round + 1; 512]);
        session.wait_until_unmarked();
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
    session.check();
}

#[test]
fn a_peer_that_returns_ends_the_rest() {
    let session = Session::new(42, 2);
    let _follower = at_rest(&session, &at_once());
    session.cut_off(1);
    session.write(0, &[3; 512]);
    wait_until("the other is unmarked", || !session.marks()[0]);
    session.come_back(1);
    let begin = Instant::now();
    session.wait_until_unmarked();
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_follower_at_rest_ends_as_soon_as_it_is_told() {
    let session = Session::new(43, 2);
    let follower = at_rest(&session, &at_once());
    let begin = Instant::now();
    assert_eq!(follower.stop().unwrap(), FollowEnd::Stopped);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_session_that_answers_at_once_is_not_asked_more_often_than_another() {
    let session = Session::new(44, 1);
    session.known().answers_at_once = true;
    make_clean(&session);
    let _follower = session.follow(&at_once());
    wait_until("reports", || session.known().reports.len() > 2);
    let before = session.known().reports.len();
    thread::sleep(Duration::from_secs(2));
    let more = session.known().reports.len() - before;
    assert!(more <= 5, "{more}");
}
