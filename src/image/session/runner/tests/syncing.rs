//! What a session's thread makes durable before marks go, and what it believes of syncs.

use super::*;

/// The local file, and how the gate was at each of its syncs.
struct Synced {
    gate: Arc<ArcSwap<WriteGate>>,
    syncs: Arc<Mutex<Vec<GateState>>>,
}

impl CopyWatch for Synced {
    fn mark(&self, _children: BrickSet, _stamp: i32) -> Result<(), LocalError> {
        Ok(())
    }

    fn accuses(&self, _child: usize) -> bool {
        false
    }

    fn is_untouched(&self) -> bool {
        true
    }

    fn rebase(&mut self) -> Result<(), LocalError> {
        Ok(())
    }

    fn resize(&mut self, _from: u64, _to: u64) -> Result<(), LocalError> {
        Ok(())
    }

    fn free(&self) -> Result<u64, LocalError> {
        Ok(u64::MAX)
    }

    fn sync(&self) -> Result<(), LocalError> {
        self.syncs.lock().unwrap().push(self.gate.load().state());
        Ok(())
    }
}

#[test]
fn the_local_copy_is_durable_before_marks_go_with_all_that_was_written_until_the_gate_closed() {
    let mut session = Session::dirty();
    let syncs: Arc<Mutex<Vec<GateState>>> = Arc::default();
    session.runner.files[0].local = Box::new(Synced {
        gate: session.runner.gate.clone(),
        syncs: syncs.clone(),
    });
    assert_eq!(session.runner.unmark(BrickSet::EMPTY), Unmarked::All);
    let syncs = syncs.lock().unwrap();
    assert_eq!(*syncs, [GateState::Open, GateState::Hold]);
}

#[test]
fn marks_stay_while_a_flush_of_the_guest_is_under_way_that_may_fail() {
    let mut session = Session::dirty();
    assert!(session.runner.durability.begin());
    let unmarked = session.runner.unmark(BrickSet::EMPTY);
    assert!(matches!(unmarked, Unmarked::NotYet { .. }), "{unmarked:?}");
    session.runner.durability.end();
    assert_eq!(session.runner.unmark(BrickSet::EMPTY), Unmarked::All);
}

#[test]
fn what_the_local_brick_s_process_could_not_make_durable_is_the_guest_s_copy() {
    let session = Session::dirty();
    let unsynced = PortError::Unsynced("it has no room".into());
    session.runner.note_brick_sync(1, &unsynced);
    assert!(session.runner.durability.failure().is_none(), "a peer's");
    session.runner.note_brick_sync(0, &unsynced);
    assert!(session.runner.durability.failure().is_some());
}
