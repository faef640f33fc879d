//! How a session's thread ends, and what it may not do after a failure.

use super::*;

#[test]
fn a_thread_that_panics_keeps_the_locks_until_it_is_closed_and_then_gives_the_image_back() {
    let Session {
        mut runner,
        journal,
        _folder: folder,
        ..
    } = Session::open(
        &[0, 1, 2],
        Seen {
            untouched: || panic!("a fault"),
        },
    );
    runner.fence = Fence::Mandatory;
    let (stopped, why) = channel();
    runner.on_stop = Box::new(move |reason| stopped.send(reason).unwrap());
    let gate = runner.gate.load_full();
    gate.set(GateState::Open);
    let (inbox, events) = channel();
    let thread = std::thread::spawn(move || runner.run(&events));

    inbox.send(Input::Brick(1, rejoined())).unwrap();
    assert_eq!(why.recv(), Ok(StopReason::Panicked));
    assert_eq!(gate.state(), GateState::Hold, "no write without a guard");
    let (answer, unmarked) = channel();
    inbox
        .send(Input::Unmark {
            despite: BrickSet::EMPTY,
            answer,
        })
        .unwrap();
    assert!(unmarked.recv().is_err(), "nobody is there to answer");
    assert!(
        journal.lock().unwrap().is_empty(),
        "the device is not drained yet"
    );

    inbox.send(Input::Close).unwrap();
    assert_eq!(thread.join().unwrap(), Ending::Behind);
    let lifted = [0, 1, 2].map(|brick| (brick, Change::Lifted));
    assert_eq!(*journal.lock().unwrap(), lifted);
    let map = folder.path().join("map");
    let header = DirtyMap::attach(&map).unwrap().header().clone();
    assert!(!header.clean, "what is in it is not vouched for");
    // The session's role on it is free.
    DirtyMap::open(&map, &identity()).unwrap();
}

#[test]
fn a_session_whose_thread_never_ran_gives_the_image_back() {
    let mut session = Session::open(&[0, 1, 2], Seen { untouched: || true });
    session.runner.fence = Fence::Mandatory;
    drop(session.runner);
    let lifted = [0, 1, 2].map(|brick| (brick, Change::Lifted));
    assert_eq!(*session.journal.lock().unwrap(), lifted);
}

#[test]
fn after_a_sync_that_failed_no_mark_changes_and_the_copies_do_not_count_as_equal() {
    let mut session = Session::open(&[0, 1, 2], Seen { untouched: || true });
    let runner = &mut session.runner;
    runner.durability.fail_with("the guest's flush", libc::EIO);
    runner.note_sync_failure();
    assert!(runner.debt.as_ref().unwrap().map().record().unsynced);
    let vouched = |why: &str| why.contains("cannot be vouched for");
    assert!(matches!(runner.unmark(BrickSet::EMPTY), Unmarked::NotYet { why } if vouched(&why)));
    assert!(matches!(runner.settle_held(None), Err(why) if vouched(&why)));
    assert_eq!(runner.settle(), Ending::Behind);
    session.write_wanted();
    assert_eq!(session.phase(), &Phase::Stalled);
    let journal = session.journal.lock().unwrap();
    let is_mark = |(_, change): &(usize, Change)| matches!(change, Change::Add(_));
    assert!(!journal.iter().any(is_mark), "it vouches for no mark");
}

#[test]
fn a_session_that_begins_to_write_is_looked_at_within_a_second() {
    let mut session = Session::open(&[0, 1, 2], Seen { untouched: || true });
    session.runner.look();
    let clean = session.runner.next_due().unwrap();
    session.write_wanted();
    let dirty = session.runner.next_due().unwrap();
    assert_eq!(dirty - session.runner.looked_at, Duration::from_secs(1));
    assert!(dirty < clean);
}

#[test]
fn a_copy_that_misses_something_keeps_its_old_time_at_the_end() {
    let mut session = Session::open(&[0, 1, 2], Seen { untouched: || true });
    session.write_wanted();
    let behind = Peer::new(1).unwrap().into();
    let debt = session.runner.debt.as_mut().unwrap();
    debt.distrust_all(behind).unwrap();
    assert_eq!(session.runner.settle(), Ending::Behind);
    let journal = session.journal.lock().unwrap();
    let timed = |(_, change): &&(usize, Change)| matches!(change, Change::Times(_));
    let timed: BrickSet = journal
        .iter()
        .filter(timed)
        .map(|(brick, _)| *brick)
        .collect();
    assert_eq!(timed, [0, 1].into_iter().collect());
}

#[test]
fn who_waits_for_news_of_a_session_hears_that_marks_stand_and_that_it_is_over() {
    let Session {
        runner, _folder, ..
    } = Session::open(&[0, 1, 2], Seen { untouched: || true });
    let (bell, snapshot) = (runner.bell.clone(), runner.snapshot.clone());
    let (inbox, events) = channel();
    let thread = std::thread::spawn(move || runner.run(&events));
    let hears = |news: &dyn Fn() -> bool| {
        let long = Duration::from_secs(20);
        let begin = Instant::now();
        assert!(bell.wait(long, || news().then_some(())).is_some());
        assert!(begin.elapsed() < long / 2);
    };
    let phase = || snapshot.lock().unwrap().phase.clone();
    inbox.send(Input::WriteWanted(FileIndex::BASE)).unwrap();
    hears(&|| phase() == Phase::Dirty);
    inbox.send(Input::Close).unwrap();
    hears(&|| bell.is_over());
    thread.join().unwrap();
}
