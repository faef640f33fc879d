//! When marks are asked to go, and what is told to whom; with a clock by hand.

use crate::image::scheduler::Simulator;
use crate::image::scheduler::clock::Clock;

use super::*;

/// Shows what it is set to.
#[derive(Default)]
struct Hand(Mutex<Duration>);

impl Clock for Hand {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }

    fn sleep(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

impl Simulator for Hand {
    fn spawn(&self, _: &str, _: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
        unreachable!("a board has no threads")
    }

    fn until(&self, ready: &mut dyn FnMut() -> bool, limit: Option<Duration>) {
        if !ready() {
            self.sleep(limit.unwrap_or_default());
        }
    }
}

const IDLE: Duration = Duration::from_millis(250);
const SECOND: Duration = Duration::from_secs(1);

fn board() -> (Arc<Hand>, Board, [Peer; 2]) {
    let clock = Arc::new(Hand::default());
    let board = Board::new(2, Scheduler::simulated(clock.clone()));
    board.take_hint(marked());
    (clock, board, [0, 1].map(|peer| Peer::new(peer).unwrap()))
}

fn marked() -> Hint {
    Hint {
        marked: true,
        held: vec![true, true],
        ..Hint::default()
    }
}

#[test]
fn marks_are_asked_to_go_after_the_idle_time_of_any_one_peer() {
    let (clock, board, [first, second]) = board();
    assert_eq!(board.unmark_from(), None, "nothing is known to be clean");
    board.tell_clean(first, clock.now());
    clock.sleep(SECOND);
    board.tell_clean(second, clock.now());
    board.tell_clean(first, clock.now());
    assert_eq!(board.unmark_from(), Some(IDLE));
    board.tell_dirty(first, clock.now());
    assert_eq!(board.unmark_from(), Some(SECOND + IDLE));
    board.tell_dirty(second, clock.now());
    assert_eq!(board.unmark_from(), None);
}

#[test]
fn what_was_unmarked_is_not_asked_for_again() {
    let (clock, board, [first, second]) = board();
    board.tell_clean(first, clock.now());
    assert!(board.take_unmarked(Some(&[true, false])));
    assert_eq!(board.unmark_from(), None);
    assert!(!board.take_unmarked(Some(&[true, false])), "no news");
    board.tell_clean(second, SECOND);
    assert_eq!(board.unmark_from(), Some(SECOND + IDLE));
    assert!(board.take_unmarked(None));
    assert_eq!(board.unmark_from(), None);
}

#[test]
fn marks_that_are_back_soon_stay_longer_the_next_time() {
    let (clock, board, [first, _]) = board();
    board.tell_clean(first, clock.now());
    board.take_unmarked(None);
    board.tell_dirty(first, SECOND);
    board.tell_clean(first, SECOND);
    assert_eq!(board.unmark_from(), Some(SECOND + 2 * IDLE));
}

#[test]
fn marks_that_are_back_before_the_answer_count_too() {
    let (clock, board, [first, second]) = board();
    board.tell_clean(first, clock.now());
    board.tell_dirty(second, clock.now());
    assert!(board.take_unmarked(Some(&[true, true])));
    board.tell_clean(second, SECOND);
    assert_eq!(board.unmark_from(), Some(SECOND + 2 * IDLE));
}

#[test]
fn a_mark_that_nobody_else_accounts_for_is_back() {
    let (clock, board, [first, _]) = board();
    board.tell_clean(first, clock.now());
    board.take_unmarked(None);
    clock.sleep(SECOND);
    board.take_hint(Hint {
        removable: true,
        ..marked()
    });
    assert_eq!(board.unmark_from(), Some(SECOND + 2 * IDLE));
}

#[test]
fn without_marks_nothing_is_asked() {
    let (clock, board, [first, _]) = board();
    board.tell_clean(first, clock.now());
    board.take_hint(Hint {
        marked: false,
        ..marked()
    });
    assert_eq!(board.unmark_from(), None);
}

#[test]
fn the_session_is_asked_at_once_about_what_it_has_not_marked() {
    let (clock, board, [first, _]) = board();
    board.tell_dirty(first, clock.now());
    assert_eq!(board.wait_for_news(0, Duration::ZERO), (0, false));
    board.take_hint(Hint {
        marked: false,
        ..marked()
    });
    board.tell_dirty(first, clock.now());
    assert_eq!(board.wait_for_news(0, SECOND), (1, true));
    assert_eq!(board.wait_for_news(1, Duration::ZERO), (1, false));
}

#[test]
fn an_engine_is_halted_as_long_as_its_peer_is_not_held_and_for_good_at_the_end() {
    let (_, board, [first, second]) = board();
    let halted = |peer| board.switches(peer).halt.load(Ordering::Relaxed);
    assert!(!halted(first) && !halted(second));
    // A session says less than it should: what it does not hold is not copied to.
    board.take_hint(Hint {
        held: vec![true],
        ..marked()
    });
    assert!(!halted(first) && halted(second));
    board.take_hint(marked());
    assert!(!halted(second));
    assert_eq!(board.orders(second).returns, 2);
    board.stop();
    board.take_hint(marked());
    assert!(halted(first) && halted(second));
}

#[test]
fn copying_is_seen_also_when_it_was_short() {
    let (_, board, [first, _]) = board();
    assert!(!board.take_copied());
    board.tell(first, HealState::Copying);
    board.tell(first, HealState::Idle);
    assert!(board.take_copied());
    assert!(!board.take_copied());
    board.tell(first, HealState::Copying);
    assert!(board.take_copied());
    assert!(board.take_copied(), "it goes on");
}
