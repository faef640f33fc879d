//! Who holds an image: the record that a refused session reads.
//!
//! The record is the lock owner's bytes of the posix lock that a session keeps
//! on every brick. A lock and its record are one thing, so no record outlives
//! its session and nothing is left behind in the volume. This module is the
//! text's codec only; [`super::brick_port`] stores and reads it.

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

/// What a record begins with.
const MAGIC: [u8; 8] = *b"bypass1\0";
/// Magic, session, pid and time.
const FIXED: usize = 36;
/// The longest host name kept, in bytes; a longer one is cut. A lock's owner has
/// room for 91 bytes ([`crate::gluster::LkOwner::MAX`]).
pub const MAX_HOST: usize = 91 - FIXED;

/// The last second of the year 9999: a later one is no time that can be shown.
const MAX_SINCE: u64 = 253_402_300_799;

impl Holder {
    /// A new session of this process on `host`, beginning now.
    pub fn here(host: &str) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            host: host
                .chars()
                .filter(char::is_ascii_graphic)
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

    /// The bytes for a lock's owner: magic, session (16 bytes), pid and time
    /// (big-endian, 4 and 8 bytes), host name.
    pub fn encode(&self) -> Vec<u8> {
        let mut owner = MAGIC.to_vec();
        owner.extend_from_slice(self.session.as_bytes());
        owner.extend_from_slice(&self.pid.to_be_bytes());
        owner.extend_from_slice(&self.since_secs().to_be_bytes());
        owner.extend_from_slice(self.host.as_bytes());
        owner
    }

    /// Reads a lock owner's bytes; `None` when they are not ours (QEMU, a mount).
    pub fn decode(owner: &[u8]) -> Option<Self> {
        let rest = owner.strip_prefix(&MAGIC)?;
        let (session, rest) = rest.split_first_chunk::<16>()?;
        let (pid, rest) = rest.split_first_chunk::<4>()?;
        let (since, host) = rest.split_first_chunk::<8>()?;
        let host = std::str::from_utf8(host).ok()?;
        if host.len() > MAX_HOST || host.chars().any(char::is_control) {
            return None;
        }
        let since = u64::from_be_bytes(*since);
        if since > MAX_SINCE {
            return None;
        }
        Some(Self {
            host: host.to_owned(),
            pid: u32::from_be_bytes(*pid),
            since: UNIX_EPOCH + Duration::from_secs(since),
            session: Uuid::from_bytes(*session),
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
        assert!(holder.encode().len() <= crate::gluster::LkOwner::MAX);
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
            if let Some(holder) = Holder::decode(&owner) {
                let _ = holder.to_string();
            }
        }
    }
}
