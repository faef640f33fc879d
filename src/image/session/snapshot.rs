//! A session's state at one moment, for the status report, and what a peer's debt was
//! before ([`Lag`]).

use std::time::{Duration, Instant};

use crate::image::heal::HealReport;
use crate::image::layout::FileIndex;
use crate::image::local::SyncFailure;
use crate::image::replica::brick_port::Fence;
use crate::image::replica::brick_set::BrickSet;
use crate::image::replica::holder::Holder;

use super::state_machine::Phase;

/// One copy, as the session knows it.
#[derive(Clone, Debug)]
pub struct CopySnapshot {
    /// `host:/path`.
    pub brick: String,
    /// Our locks are held there: it is connected.
    pub locked: bool,
    /// Why not.
    pub why_away: Option<String>,
    /// Its data counters against each child, as last read; absent if that is not known.
    pub pending: Option<Vec<i32>>,
    /// When they were.
    pub read_at: Option<Instant>,
}

impl CopySnapshot {
    /// It was just read, or a change of it was not answered.
    pub fn saw(&mut self, pending: Option<Vec<i32>>) {
        self.read_at = pending.is_some().then(Instant::now);
        self.pending = pending;
    }
}

/// What one peer misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Its child index.
    pub child: usize,
    /// Extents that it misses.
    pub extents: u64,
    /// Bytes of the image in those extents.
    pub bytes: u64,
    /// They are not known to differ, but not known to be equal either.
    pub suspect: bool,
    /// What was seen of it over time.
    pub lag: Lagging,
}

/// What [`Lag`] says at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lagging {
    /// The peer missed nothing this long ago, or later; else the age of the session.
    pub since: Duration,
    /// It has not been seen without debt in this session, so `since` is only the
    /// session's age and the debt may be older.
    pub inherited: bool,
    /// The most bytes seen since it missed nothing.
    pub most: u64,
    /// It does not get less.
    pub growing: bool,
}

/// Over how long it is judged whether a debt gets less.
const TREND: Duration = Duration::from_secs(5);
/// Figures further apart than this say nothing of what happens now.
const TREND_LIMIT: Duration = Duration::from_secs(60);

/// One peer's debt over time, as it was seen now and then.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    begin: Instant,
    /// When a look at the map began that found nothing dirty.
    clean_at: Option<Instant>,
    most: u64,
    /// What the present debt is compared with.
    base: (Instant, u64),
    growing: bool,
}

impl Lag {
    /// Nothing was seen yet of a session that begins now.
    pub fn new(now: Instant) -> Self {
        Self {
            begin: now,
            clean_at: None,
            most: 0,
            base: (now, 0),
            growing: false,
        }
    }

    /// The peer missed nothing at `at`.
    pub fn note_clean(&mut self, at: Instant) {
        self.clean_at = self.clean_at.max(Some(at));
    }

    /// The peer missed so many bytes in a look at the map that began at `at`.
    pub fn note(&mut self, at: Instant, bytes: u64) {
        if bytes == 0 {
            self.clean_at = Some(at);
            (self.most, self.base, self.growing) = (0, (at, 0), false);
            return;
        }
        self.most = self.most.max(bytes);
        let (base_at, base_bytes) = self.base;
        let apart = at.saturating_duration_since(base_at);
        if apart >= TREND {
            self.growing = apart <= TREND_LIMIT && base_bytes != 0 && bytes >= base_bytes;
            self.base = (at, bytes);
        }
    }

    /// What is known at `now`.
    pub fn at(&self, now: Instant) -> Lagging {
        Lagging {
            since: now.saturating_duration_since(self.clean_at.unwrap_or(self.begin)),
            inherited: self.clean_at.is_none(),
            most: self.most,
            growing: self.growing,
        }
    }
}

/// What the peers miss, and who heals them.
#[derive(Clone, Debug)]
pub struct Healing {
    /// Per peer.
    pub behind: Vec<Behind>,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// The last report of the healer, its ages as of now; absent when none is at work.
    pub healer: Option<HealReport>,
}

/// Of an image that is several files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesSnapshot {
    /// How many there are.
    pub count: usize,
    /// Bytes of the image in each but the last.
    pub piece: u64,
    /// Those that are marked, or are being marked.
    pub marked: Vec<FileIndex>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Where the session stands.
    pub phase: Phase,
    /// It serves reads only.
    pub read_only: bool,
    /// How other clients are kept away.
    pub fence: Fence,
    /// Our own record.
    pub holder: Holder,
    /// The copies in child order.
    pub copies: Vec<CopySnapshot>,
    /// A guest's write waits at the gate.
    pub write_waiting: bool,
    /// When the gate was last about to be opened, and the children that missed nothing
    /// then.
    pub clean_before_writes: Option<(Instant, BrickSet)>,
    /// Absent for an image that is one file.
    pub files: Option<FilesSnapshot>,
    /// Absent in a read-only session.
    pub healing: Option<Healing>,
    /// Why the local copy cannot be vouched for.
    pub sync_failed: Option<SyncFailure>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_debt_is_at_most_as_old_as_the_last_look_that_found_none() {
        let begin = Instant::now();
        let mut lag = Lag::new(begin);
        lag.note(begin + 3 * SECOND, 0);
        lag.note(begin + 9 * SECOND, 100);
        let seen = lag.at(begin + 10 * SECOND);
        assert_eq!((seen.since, seen.inherited), (7 * SECOND, false));
    }

    #[test]
    fn a_debt_is_at_most_as_old_as_the_gate_is_open() {
        let begin = Instant::now();
        let mut lag = Lag::new(begin);
        lag.note(begin + SECOND, 0);
        lag.note_clean(begin + 8 * SECOND);
        lag.note(begin + 9 * SECOND, 100);
        lag.note_clean(begin + 2 * SECOND);
        assert_eq!(lag.at(begin + 10 * SECOND).since, 2 * SECOND);
    }

    #[test]
    fn a_debt_that_was_there_from_the_beginning_is_said_to_be_older() {
        let begin = Instant::now();
        let mut lag = Lag::new(begin);
        lag.note(begin, 100);
        let seen = lag.at(begin + 10 * SECOND);
        assert_eq!((seen.since, seen.inherited), (10 * SECOND, true));
    }

    #[test]
    fn the_most_is_that_of_the_present_debt_not_of_one_that_is_over() {
        let begin = Instant::now();
        let mut lag = Lag::new(begin);
        for (bytes, most) in [(500, 500), (100, 500), (0, 0), (50, 50)] {
            lag.note(begin, bytes);
            assert_eq!(lag.at(begin).most, most);
        }
    }

    #[test]
    fn a_debt_grows_when_it_is_not_less_than_seconds_before() {
        let begin = Instant::now();
        let mut lag = Lag::new(begin);
        let mut grows = |seconds: u32, bytes| {
            lag.note(begin + seconds * SECOND, bytes);
            lag.at(begin).growing
        };
        assert!(!grows(5, 100), "there was none before");
        assert!(!grows(8, 300), "too short a time");
        assert!(grows(10, 200));
        assert!(!grows(15, 199));
        assert!(!grows(600, 900), "too long ago");
        assert!(grows(605, 900));
        assert!(!grows(606, 0));
    }
}
