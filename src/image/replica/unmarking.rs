//! One round of removing marks against peers that miss nothing.
//!
//! Called by the session thread when a healer asks for it, under AFR's data lock
//! ([`super::data_lock`]). It does not judge whether a peer misses anything: the
//! caller does, at the one moment when it can be known. It changes no state of the
//! session.

use std::time::Duration;

use super::brick_port::{BrickPort, CopyState, Counter, PortError};
use super::brick_set::{BrickSet, Shape};
use super::brick_worker::Team;
use super::data_lock::{self, wait};

/// How long a round waits on one brick for other clients' data locks. Nothing is
/// lost by trying again later.
const DATA_LOCK_LIMIT: Duration = Duration::from_secs(2);

/// Locks and reads every brick on which the session's locks are. The round has to be
/// ended by [`data_lock::Round::end`].
pub fn begin(team: Team<'_>, held: BrickSet) -> data_lock::Round {
    data_lock::Round::begin(team, held, DATA_LOCK_LIMIT)
}

/// Gives the file one new time on every brick of the round that has all data (`fresh`), so
/// that mounts forget what they have of it in their caches: with `keep_cache`, which mounts
/// turn on by themselves, only another time or size makes them do so, and direct writes
/// change neither as they see it (`trusted.glusterfs.mdata`). Before any mark is removed:
/// cut short in between, the marks stand, and whoever removes them does this anew.
///
/// A copy that misses something keeps its old time: a mount that has not seen the marks
/// yet, for it looks once a second, reads that copy and would take its old data for what
/// belongs to the new time, for good.
///
/// A brick that is away keeps its old time, and no metadata mark says so: its copy is
/// marked for the data that it misses, and whoever heals that, AFR too
/// (`afr_selfheal_restore_time`), gives it the time with it. An arbiter misses none, and
/// nobody reads its times. A metadata mark would be one more thing in which two hosts can
/// come to accuse each other.
pub fn set_times(team: Team<'_>, fresh: BrickSet, time: Duration, locked: &mut data_lock::Round) {
    let bricks = locked.copies.iter().map(|(brick, _)| *brick);
    let asked: Vec<_> = bricks
        .filter(|&brick| fresh.contains(brick))
        .filter_map(|brick| {
            let worker = team.get(brick)?;
            Some((brick, worker.ask(move |port| port.set_times(time))))
        })
        .collect();
    for (brick, answer) in asked {
        if let Err(error) = wait(answer) {
            locked.fail(brick, error);
        }
    }
}

/// Removes the marks against `equal` from every brick of the round (against all
/// peers: AFR's own counter of writes under way goes too). Only with every brick of the
/// session in the round, the gate closed, and nothing dirty for these peers. Nothing is
/// removed after a failure.
///
/// In this order, each step durable before the next, which is not begun if one failed:
/// the local brick, then those that do not accuse themselves, then the others. Cut short
/// in between, what is left accuses nobody who is believed: bricks that accuse
/// themselves are not (`afr_selfheal_find_direction`). The other way round, a session on
/// a peer that nobody accuses any more and an old mark here would accuse each other.
///
/// The removal is made durable: a mark that came back after a power cut, when the
/// locks are long gone, could accuse a copy that was written to since.
pub fn remove(shape: &Shape, team: Team<'_>, equal: BrickSet, locked: &mut data_lock::Round) {
    let step = |(brick, copy): &(usize, CopyState)| match *brick == shape.local {
        true => 0,
        false if !copy.accuses().contains(*brick) => 1,
        false => 2,
    };
    let steps = [0, 1, 2].map(|number| {
        let at = locked.copies.iter().filter(|copy| step(copy) == number);
        at.map(|(brick, _)| *brick).collect::<BrickSet>()
    });
    for bricks in steps {
        if !locked.failed.is_empty() {
            return;
        }
        remove_from(shape, team, bricks, equal, locked);
    }
}

fn remove_from(
    shape: &Shape,
    team: Team<'_>,
    bricks: BrickSet,
    equal: BrickSet,
    locked: &mut data_lock::Round,
) {
    let asked: Vec<_> = locked
        .copies
        .iter()
        .filter(|(brick, _)| bricks.contains(*brick))
        .filter_map(|(brick, copy)| {
            let changes = changes(shape, copy, equal);
            let worker = team.get(*brick)?;
            Some((*brick, worker.ask(move |port| remove_on(port, &changes))))
        })
        .collect();
    for (brick, answer) in asked {
        match wait(answer) {
            Ok(()) => note_removal(&mut locked.copies, brick, equal, shape),
            Err(error) => locked.fail_change(brick, error),
        }
    }
}

/// Whom a brick that is away accuses, as far as known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Absent {
    /// These, when the session last read it.
    Read(BrickSet),
    /// Not read in this session. If it is believed, these at most.
    AtMost(BrickSet),
    /// Nobody knows.
    Unknown,
}

/// What is known of the bricks that a session did not reach when it opened, from those
/// that it reached: a quorum, under its locks.
///
/// A brick that is believed accuses a peer only if a quorum did with it: the brick of a
/// session's own copy is marked last, and only with a quorum (`marking.rs`), an ordinary
/// client raises its counter of writes under way everywhere before it writes. And none
/// takes its accusation back while a believed one that is away goes on with it: not we
/// ([`removable`]), not stock heal, which needs all bricks. The quorums of then and now
/// have a brick in common. So whom nobody here accuses nobody there accuses either.
/// Only a write cut short or a promotion may have left less; both show in the counter.
pub fn not_reached(copies: &[Option<CopyState>]) -> Absent {
    let mut accused = BrickSet::EMPTY;
    for copy in copies.iter().flatten() {
        if copy.dirty != 0 {
            return Absent::Unknown;
        }
        accused = accused.iter().chain(copy.accuses().iter()).collect();
    }
    Absent::AtMost(accused)
}

/// Which of the peers that miss nothing may lose their marks. `copies` are the rows of
/// the bricks in the round; `absent` what is known of those that are not.
///
/// * Whatever others may heal from next accuses every peer that still misses something,
///   whether that is away or only cannot be healed now: the local brick, and the own brick
///   of each peer that is named, which must be in the round and accuse itself, too.
/// * A brick that is away and is believed must not accuse it: that accusation would stay,
///   and stand against what the peer writes later.
pub fn removable(
    shape: &Shape,
    equal: BrickSet,
    copies: &[(usize, CopyState)],
    absent: &[(usize, Absent)],
) -> BrickSet {
    let behind = shape.peers().without(equal);
    let accuses = |of: usize, expected: BrickSet| {
        let mut rows = copies.iter().filter(|(brick, _)| *brick == of);
        rows.any(|(_, copy)| copy.accuses().covers(expected))
    };
    if !accuses(shape.local, behind) {
        return BrickSet::EMPTY;
    }
    let marked = |peer: &usize| accuses(*peer, behind.iter().chain([*peer]).collect());
    let left_alone = |peer: &usize| {
        absent.iter().all(|(brick, known)| match known {
            Absent::Read(accuses) => accuses.contains(*brick) || !accuses.contains(*peer),
            Absent::AtMost(accuses) => !accuses.contains(*peer),
            Absent::Unknown => false,
        })
    };
    let peers = equal.iter();
    peers.filter(marked).filter(left_alone).collect()
}

/// What makes the counters against `equal` zero. The others are named too, for the
/// index.
fn changes(shape: &Shape, copy: &CopyState, equal: BrickSet) -> Vec<(Counter, i32)> {
    let change = |peer: usize| {
        let counter = copy.pending.get(peer).copied().unwrap_or_default();
        let goes = equal.contains(peer);
        let change = if goes { counter.wrapping_neg() } else { 0 };
        (Counter::Pending(peer), change)
    };
    let mut changes: Vec<_> = shape.peers().iter().map(change).collect();
    if equal.covers(shape.peers()) && copy.dirty != 0 {
        changes.push((Counter::Dirty, copy.dirty.wrapping_neg()));
    }
    changes
}

fn remove_on(port: &mut dyn BrickPort, changes: &[(Counter, i32)]) -> Result<(), PortError> {
    port.add_to_counters(changes)?;
    port.fsync()
}

fn note_removal(copies: &mut [(usize, CopyState)], brick: usize, equal: BrickSet, shape: &Shape) {
    for (_, copy) in copies.iter_mut().filter(|(known, _)| *known == brick) {
        for peer in equal.iter() {
            if let Some(counter) = copy.pending.get_mut(peer) {
                *counter = 0;
            }
        }
        if equal.covers(shape.peers()) {
            copy.dirty = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::layout::FileIndex;
    use crate::image::replica::brick_set::SetChange;
    use crate::image::replica::brick_worker::Worker;
    use crate::image::replica::recording_port::{Change, Journal, RecordingPort};
    use crate::image::replica::session_lock::Claim;
    use crate::image::scheduler::Scheduler;

    const SHAPE: Shape = Shape {
        bricks: 3,
        local: 0,
        arbiter: None,
        since: SetChange::NONE,
    };

    fn row(brick: usize, pending: [i32; 3]) -> (usize, CopyState) {
        let copy = CopyState {
            gfid: uuid::Uuid::nil(),
            size: 0,
            pending: pending.to_vec(),
            dirty: 0,
            fenced: false,
        };
        (brick, copy)
    }

    fn set(bricks: &[usize]) -> BrickSet {
        bricks.iter().copied().collect()
    }

    #[test]
    fn a_peer_whose_brick_does_not_accuse_those_still_behind_keeps_its_marks() {
        let full = [0, 9, 9];
        let rows = |second| [row(0, full), row(1, second), row(2, full)];
        let equal = set(&[1]);
        assert_eq!(removable(&SHAPE, equal, &rows(full), &[]), equal);
        assert!(removable(&SHAPE, equal, &rows([0, 9, 0]), &[]).is_empty());
        assert!(removable(&SHAPE, equal, &rows([0, 0, 9]), &[]).is_empty());
        assert!(removable(&SHAPE, equal, &rows(full)[..1], &[]).is_empty());
        // Nor if the local one does not: both may be healed from.
        let unknown = [row(0, [0, 9, 0]), row(1, full), row(2, full)];
        assert!(removable(&SHAPE, equal, &unknown, &[]).is_empty());
        assert!(removable(&SHAPE, equal, &rows(full)[1..], &[]).is_empty());
    }

    #[test]
    fn an_absent_brick_that_would_go_on_accusing_a_peer_keeps_that_peer_s_marks() {
        let rows = [row(0, [0, 9, 9]), row(1, [0, 9, 9])];
        let with = |absent| removable(&SHAPE, set(&[1]), &rows, &[(2, absent)]);
        let read = |accuses: &[usize]| Absent::Read(set(accuses));
        assert!(with(Absent::Unknown).is_empty());
        assert!(with(read(&[1])).is_empty());
        assert_eq!(with(read(&[1, 2])), set(&[1]), "it is not believed");
        assert_eq!(with(read(&[])), set(&[1]));
        let at_most = |accuses: &[usize]| Absent::AtMost(set(accuses));
        assert!(with(at_most(&[1])).is_empty());
        assert!(with(at_most(&[1, 2])).is_empty(), "it may be believed");
        assert_eq!(with(at_most(&[2])), set(&[1]));
    }

    #[test]
    fn a_brick_that_was_not_reached_accuses_nobody_whom_no_other_brick_accuses() {
        let copies = |rows: [[i32; 3]; 2]| rows.map(|pending| Some(row(0, pending).1));
        let mut some = copies([[0, 0, 9], [0, 0, 9]]).to_vec();
        some.push(None);
        assert_eq!(not_reached(&some), Absent::AtMost(set(&[2])));
        let one = copies([[0, 9, 9], [0, 0, 9]]);
        assert_eq!(not_reached(&one), Absent::AtMost(set(&[1, 2])));
        if let Some(copy) = &mut some[1] {
            copy.dirty = 1;
        }
        assert_eq!(not_reached(&some), Absent::Unknown, "a write was cut short");
    }

    const TIME: Duration = Duration::from_nanos(1_700_000_000_123_456_789);

    /// Of which one may fail.
    fn workers(journal: &Journal, failing: Option<usize>) -> [Worker; 3] {
        let threads = Scheduler::default();
        let claim = Claim {
            session: uuid::Uuid::nil(),
            read_only: false,
            files: 1,
        };
        [0, 1, 2].map(|brick| {
            let port = RecordingPort {
                brick,
                journal: journal.clone(),
                fails: failing == Some(brick),
                ..RecordingPort::default()
            };
            Worker::start("brick", Box::new(port), claim, &threads, |_| {}).unwrap()
        })
    }

    fn team(workers: &[Worker]) -> Team<'_> {
        Team::new(workers, FileIndex::BASE)
    }

    fn round(rows: [[i32; 3]; 3]) -> data_lock::Round {
        data_lock::Round {
            copies: [0, 1, 2].map(|brick| row(brick, rows[brick])).into(),
            ..data_lock::Round::default()
        }
    }

    /// Removes the marks against both peers from bricks that say these things, of which
    /// one may fail. Comes back: the bricks in the order of their changes.
    fn removed(rows: [[i32; 3]; 3], failing: Option<usize>) -> Vec<usize> {
        let journal = Journal::default();
        let workers = workers(&journal, failing);
        remove(&SHAPE, team(&workers), set(&[1, 2]), &mut round(rows));
        let journal = journal.lock().unwrap();
        let mut bricks = Vec::new();
        for change in journal.chunks(2) {
            let (brick, Change::Add(_)) = &change[0] else {
                panic!("{journal:?}");
            };
            assert_eq!(change[1], (*brick, Change::Durable), "{journal:?}");
            bricks.push(*brick);
        }
        bricks
    }

    #[test]
    fn no_mark_goes_when_a_brick_did_not_take_the_time_that_all_get() {
        let rows = [[0, 9, 9], [0, 9, 9], [0, 9, 9]];
        for failing in [None, Some(0), Some(2)] {
            let journal = Journal::default();
            let workers = workers(&journal, failing);
            let mut round = round(rows);
            set_times(team(&workers), SHAPE.all(), TIME, &mut round);
            remove(&SHAPE, team(&workers), set(&[1, 2]), &mut round);
            let journal = journal.lock().unwrap();
            let expected = (0..3).filter(|brick| failing != Some(*brick));
            let is_time = |(_, change): &&(usize, Change)| *change == Change::Times(TIME);
            let times = journal.iter().filter(is_time).map(|(brick, _)| *brick);
            let (mut times, expected): (Vec<_>, Vec<_>) = (times.collect(), expected.collect());
            times.sort_unstable();
            assert_eq!(times, expected);
            assert_eq!(journal.len() > times.len(), failing.is_none());
            assert!(
                journal
                    .iter()
                    .take(times.len())
                    .all(|change| is_time(&change))
            );
        }
    }

    #[test]
    fn marks_go_from_the_local_brick_first_and_last_from_one_that_accuses_itself() {
        // Brick 1 accuses itself, brick 2 does not.
        let rows = [[0, 9, 9], [0, 9, 9], [0, 9, 0]];
        assert_eq!(removed(rows, None), [0, 2, 1]);
    }

    #[test]
    fn a_brick_that_fails_keeps_the_later_ones_marked() {
        let rows = [[0, 9, 9], [0, 9, 9], [0, 9, 0]];
        assert_eq!(removed(rows, Some(0)), [0; 0]);
        assert_eq!(removed(rows, Some(2)), [0]);
    }
}
