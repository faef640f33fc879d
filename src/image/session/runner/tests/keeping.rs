//! What a session must be like to be left to another process. The bricks of these tests cannot
//! be left: they are asked last.

use super::*;

const SECOND: FileIndex = FileIndex(1);

/// Why it rests not.
fn refused(session: &mut Session) -> String {
    let (answer, answered) = channel();
    session.runner.rest(&answer);
    let kept = answered.recv().unwrap();
    kept.expect_err("these bricks stay")
}

#[test]
fn an_image_in_files_rests_with_marks_that_stand_and_what_is_guarded_on_every_brick() {
    let mut session = pieces::open_marked();
    assert!(refused(&mut session).contains("this kind of brick stays"));
    session.runner.file_mut(SECOND).guarded.remove(2);
    let why = refused(&mut session);
    assert!(why.contains("not kept from shard 1"), "{why}");
}

#[test]
fn a_file_whose_marks_wait_for_a_quorum_keeps_the_image_here() {
    let mut session = pieces::open();
    (1..3).for_each(|brick| session.silence(brick));
    session.runner.take(SECOND, Event::WriteWanted);
    assert_eq!(session.runner.phase(SECOND), &Phase::Stalled);
    let why = refused(&mut session);
    assert!(why.contains("wait for a quorum"), "{why}");
}

/// The next process would be refused when it opens the image.
#[test]
fn a_file_that_somebody_else_marked_keeps_the_image_here_though_the_session_never_wrote_to_it() {
    let mut session = pieces::open();
    session.set_marks(1, [7, 0, 0]);
    let why = refused(&mut session);
    assert!(why.contains("misses data"), "{why}");
}
