//! Who holds an image: the record that a refused session reads.
//!
//! The record is the lock owner's bytes of the posix lock that a session keeps
//! on every brick. A lock and its record are one thing, so no record outlives
//! its session and nothing is left behind in the volume. This module is the
//! text's codec only; [`super::port`] stores and reads it.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// The record of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Host name of the machine that serves the image.
    pub host: String,
    /// Process id of the daemon there.
    pub pid: u32,
    /// When the session began (whole seconds).
    pub since: SystemTime,
    /// Names the session uniquely, so that it recognises a lock of its own on a
    /// connection that the brick has not given up yet.
    pub session: Uuid,
}

const MAGIC: &str = "bypass-blk/1";

/// The longest host name kept; a longer one is cut.
pub const MAX_HOST: usize = 64;

impl Holder {
    /// A new session of this process on `host`, beginning now.
    pub fn here(host: &str) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            host: host
                .chars()
                .filter(|c| !c.is_whitespace())
                .take(MAX_HOST)
                .collect(),
            pid: std::process::id(),
            since: UNIX_EPOCH + Duration::from_secs(now.as_secs()),
            session: Uuid::new_v4(),
        }
    }

    /// Seconds since the epoch at which the session began.
    pub fn since_secs(&self) -> u64 {
        self.since
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    }

    /// The bytes for a lock's owner.
    pub fn encode(&self) -> Vec<u8> {
        format!(
            "{MAGIC} {} {} {} {}",
            self.session,
            self.pid,
            self.since_secs(),
            self.host
        )
        .into_bytes()
    }

    /// Reads a lock owner's bytes; `None` when they are not ours (QEMU, a mount).
    pub fn decode(owner: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(owner).ok()?.trim_end_matches('\0');
        let mut words = text.split(' ');
        if words.next()? != MAGIC {
            return None;
        }
        let session = words.next()?.parse().ok()?;
        let pid = words.next()?.parse().ok()?;
        let since = UNIX_EPOCH.checked_add(Duration::from_secs(words.next()?.parse().ok()?))?;
        let host = words.next()?.to_owned();
        words.next().is_none().then_some(Self {
            host,
            pid,
            since,
            session,
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = humantime::format_rfc3339_seconds(self.since);
        write!(f, "host {}, pid {}, since {since}", self.host, self.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_survives_the_trip_through_a_lock_owner() {
        let holder = Holder::here("node-1.example");
        assert_eq!(Holder::decode(&holder.encode()), Some(holder));
    }

    #[test]
    fn a_host_name_cannot_break_the_record_or_outgrow_it() {
        let holder = Holder::here(&format!("two words {}", "x".repeat(1000)));
        assert!(holder.encode().len() < 200);
        assert_eq!(Holder::decode(&holder.encode()), Some(holder));
    }

    proptest! {
        #[test]
        fn foreign_lock_owners_are_not_taken_for_ours(owner: Vec<u8>) {
            prop_assert_eq!(Holder::decode(&owner), None);
        }

        #[test]
        fn a_damaged_record_never_panics(cut in 0usize..100, byte: u8) {
            let mut owner = Holder::here("node").encode();
            owner.truncate(cut);
            owner.push(byte);
            let _ = Holder::decode(&owner);
        }
    }
}
