//! What an engine does on the peer's copy, under AFR's data lock and while the mark
//! stands; why that is needed is said in [`super::engine`].

use std::ops::Range;
use std::time::Duration;

use super::engine::Engine;
use super::error::HealError;
use super::pass::PassEnd;
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
        let done = self.check_mark().and_then(|()| work(self));
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
    fn check_mark(&self) -> Result<(), HealError> {
        let counter = self.peer.own_mark()?;
        let map = self.healer.map();
        match map.record().explains(counter) || map.read_record()?.explains(counter) {
            true => Ok(()),
            false => Err(HealError::Unexplained {
                peer: self.peer.name().to_owned(),
                counter,
            }),
        }
    }
}
