//! What an engine does on the peer's copy, under AFR's data lock and while the mark
//! stands; why that is needed is said in [`super::engine`]. Lock and mark are of one file.

use std::ops::Range;
use std::time::Duration;

use super::engine::Engine;
use super::error::HealError;
use super::pass::{Pass, PassEnd};
use super::peer::PeerError;

/// How long a stretch waits for other clients' data locks.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

impl Engine {
    /// Runs `work` with AFR's data lock on `span`, if it is to be had, on a copy that
    /// still is this session's to heal.
    pub(super) fn under_lock(
        &mut self,
        span: Range<u64>,
        work: impl FnOnce(&mut Self) -> Result<(), HealError>,
    ) -> Result<PassEnd, HealError> {
        let stop = &self.options.stop;
        if !self.peer.lock(span.clone(), LOCK_LIMIT, stop)? {
            return Ok(match self.options.is_stopped() {
                true => PassEnd::Stopped,
                false => PassEnd::Locked,
            });
        }
        let done = self.check_mark(span.start).and_then(|()| work(self));
        // A lock that cannot be given back goes with the connection.
        let unlocked = self.peer.unlock(span).map_err(|error| match error {
            PeerError::Refused { peer, source } => PeerError::Away { peer, source },
            error => error,
        });
        match (done, unlocked) {
            (Ok(()), Ok(())) => Ok(PassEnd::Complete),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(_)) if error.lost_peer() => Err(error),
            (_, Err(error)) => Err(error.into()),
        }
    }

    /// Does the peer still accuse itself with a stamp of the map? Only then nobody has
    /// healed it behind the session's back, and nobody has written to it since: under
    /// the data lock, nobody can before our own write is answered.
    fn check_mark(&self, at: u64) -> Result<(), HealError> {
        let counter = self.peer.own_mark(at)?;
        let map = self.healer.map();
        match map.record().explains(counter) || map.read_record()?.explains(counter) {
            true => Ok(()),
            false => Err(HealError::Unexplained {
                peer: self.peer.name().to_owned(),
                file: self.layout.place(at).0,
                counter,
            }),
        }
    }

    /// Of an image in several files, one that does not carry the mark holds up no other: it
    /// is left out of this pass, which tells of it at its end. Where to go on after `extent`;
    /// any other error ends the pass.
    pub(super) fn leave_unmarked(
        &mut self,
        error: HealError,
        extent: u64,
        pass: &mut Pass,
    ) -> Result<u64, HealError> {
        if self.layout.is_whole() || !matches!(error, HealError::Unexplained { .. }) {
            return Err(error);
        }
        let geometry = *self.healer.map().geometry();
        let extent_size = geometry.extent_size().bytes();
        let file = self.layout.place(geometry.bytes_of(extent).start).0;
        let bytes = self.layout.range(file);
        // Others may have written to it since: what it got from us counts for nothing.
        let of_it = |extent: &u64| bytes.contains(&geometry.bytes_of(*extent).start);
        let (void, begun): (Vec<u64>, Vec<u64>) = self.begun.iter().partition(|e| of_it(e));
        for extent in void {
            self.healer.abandon_copy(self.id, extent);
        }
        self.accepted = begun.len();
        self.begun = begun;
        pass.covered = false;
        self.unmarked.get_or_insert(error);
        Ok(bytes.end.div_ceil(extent_size))
    }
}
