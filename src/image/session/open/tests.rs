//! Which locks an opening session takes, over bricks that write them down.

use std::sync::{Arc, Mutex};

use uuid::Uuid;

use crate::image::replica::brick_set::SetChange;
use crate::image::replica::recording_port::{Change, Journal, RecordingPort};
use crate::image::session::terms::{FenceWish, HOT_FILES};

use super::*;

const SHAPE: Shape = Shape {
    bricks: 3,
    local: 0,
    arbiter: None,
    since: SetChange::NONE,
};

#[test]
fn a_marked_file_is_kept_from_heals_and_no_lock_is_given_up_for_that() {
    let names = Names {
        volume: "v".into(),
        bricks: ["a:/b", "b:/b", "c:/b"].map(String::from).into(),
    };
    let claim = Claim {
        session: Uuid::from_u128(9),
        read_only: false,
        files: 2,
    };
    let terms = Terms {
        read_only: false,
        fence: FenceWish::Exactly(Fence::Advisory),
        lock_timeout: Duration::ZERO,
        urgent: false,
        hot_files: HOT_FILES,
    };
    let copy = CopyState {
        gfid: Uuid::from_u128(1),
        size: 4096,
        pending: vec![0, 5, 5],
        dirty: 0,
        fenced: false,
    };
    let (journal, threads) = (Journal::default(), Scheduler::default());
    let worker = |brick| {
        let port = RecordingPort {
            brick,
            journal: journal.clone(),
            copy: Arc::new(Mutex::new(Some(copy.clone()))),
            ..RecordingPort::default()
        };
        Worker::start("brick", Box::new(port), claim, &threads, |_| {}).unwrap()
    };
    let workers: Vec<_> = (0..3).map(worker).collect();
    let waiting = Waiting {
        cancelled: &AtomicBool::new(false),
        threads: &threads,
    };
    let local = |_: &CopyState, _: &[FileCopies]| Ok(());
    let opened = open(&SHAPE, &names, &workers, claim, &terms, waiting, local);
    let (opened, ()) = opened.unwrap();
    assert_eq!(opened.guarded, [0, 1].map(FileIndex).into());
    let journal = journal.lock().unwrap();
    let guarded = journal.iter().filter_map(|(brick, change)| match change {
        Change::Guarded(file, guarded) => Some((*brick, *file, *guarded)),
        _ => None,
    });
    let once = (0..3).map(|brick| (brick, FileIndex(1), true));
    assert_eq!(guarded.collect::<Vec<_>>(), once.collect::<Vec<_>>());
}
