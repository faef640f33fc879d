//! When to ping a silent peer and when to give it up: pure, told the time.
//!
//! Nobody looks at the clock on the off chance: who waits for an answer, or for the next
//! byte, sleeps until the instant at which that silence calls for something ([`Pulse::due`]).
//!
//! **What notices what.** A peer that owes an answer is pinged after
//! [`Timeouts::ping_interval`] of silence, by whoever waits for the answer. One that owes
//! none is pinged every [`Timeouts::idle_interval`] only, for each ping wakes two
//! processes up. That is enough, as a connection can be lost in three ways:
//!
//! - *The brick's process ends, or closes the connection.* Its kernel says so.
//! - *The link or the host is lost.* Only then can a brick take us for dead, free our locks
//!   and grant them to others while we know of nothing. The kernel notices it without us:
//!   it asks the other one after `ping_interval` without a segment, and gives up
//!   after [`Timeouts::dead_after`] (`socket.rs`): 9 s. A ping that was sent into the
//!   broken link silences those questions, but is itself given up `ping_timeout` later: 15 s
//!   at most. The brick is slower. It gives a client up 42 s after it last heard of it
//!   (`server.tcp-user-timeout`; without that 20 s and 9 questions 2 s apart,
//!   `server.keepalive-*`: 38 s; defaults of GlusterFS 10.3), and it heard of us
//!   `idle_interval` before the break at the latest: 23 s remain to it. An operator who
//!   makes those options shorter than ten seconds has the same gap as ever, in which what is
//!   written stands behind the marks (invariant 7).
//! - *The brick's process hangs.* As long as it does it grants our locks to nobody, and when
//!   it goes on it still has them: there is no hurry. Pings of an idle connection are for
//!   this case alone, so that a hung brick is mostly known to be away before a first write
//!   would have to wait for it.

use std::time::{Duration, Instant};

/// How long a peer may take for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Making the TCP connection. The resolver has time-outs of its own.
    pub connect: Duration,
    /// One call, unless it is given another.
    pub call: Duration,
    /// Taking one record. A peer that does not is disconnected.
    pub send: Duration,
    /// Silence after which a brick that owes an answer is pinged, and any brick's host
    /// is asked by the kernel.
    pub ping_interval: Duration,
    /// Silence after which a brick that owes no answer is pinged.
    pub idle_interval: Duration,
    /// Silence after a ping after which a brick is given up.
    pub ping_timeout: Duration,
}

impl Default for Timeouts {
    /// A lost link is noticed within ten seconds, mostly; see the module.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            call: Duration::from_secs(30),
            send: Duration::from_secs(9),
            ping_interval: Duration::from_secs(3),
            idle_interval: Duration::from_secs(15),
            ping_timeout: Duration::from_secs(6),
        }
    }
}

impl Timeouts {
    /// Silence after which a peer is taken for dead.
    pub(super) fn dead_after(&self) -> Duration {
        self.ping_interval.saturating_add(self.ping_timeout)
    }
}

/// What silence calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Nothing yet.
    Quiet,
    /// A ping should be sent.
    Ping,
    /// The peer is dead.
    Dead {
        /// How long it has been silent.
        after: Duration,
    },
}

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// The reader, whom nobody owes anything.
    Reader,
    /// A caller who has waited since then.
    Caller(Instant),
}

/// A peer's signs of life. Any byte from it is one.
#[derive(Debug)]
pub(super) struct Pulse {
    interval: Duration,
    idle_interval: Duration,
    timeout: Duration,
    heard: Instant,
    pinged: Option<Instant>,
}

impl Pulse {
    pub fn new(timeouts: &Timeouts, now: Instant) -> Self {
        Self {
            interval: timeouts.ping_interval,
            idle_interval: timeouts.idle_interval,
            timeout: timeouts.ping_timeout,
            heard: now,
            pinged: None,
        }
    }

    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
    }

    pub fn pinged(&mut self, now: Instant) {
        self.pinged = Some(now);
    }

    /// How long a ping is put off that could not be sent.
    pub fn put_off(&self) -> Duration {
        self.interval / 4
    }

    /// By how much a look may come late and still prove something. The kernel ends a sleep up
    /// to an eighth later than it was told (its timer wheel).
    fn slack(&self) -> Duration {
        self.timeout / 4
    }

    /// When the next [`Pulse::beat`] is other than quiet, if nothing is heard.
    pub fn due(&self, watch: Watch) -> Instant {
        match (self.pinged, watch) {
            (Some(pinged), _) => pinged + self.timeout,
            (None, Watch::Reader) => self.heard + self.idle_interval,
            (None, Watch::Caller(since)) => self.heard.max(since) + self.interval,
        }
    }

    /// Only an unanswered ping proves anything: a process that was stopped for
    /// longer than the time-out finds no bytes either, at first. For the same reason a look
    /// that comes late proves nothing of a ping: its answer may be there, unread.
    pub fn beat(&self, watch: Watch, now: Instant) -> Beat {
        let due = self.due(watch);
        if now < due {
            return Beat::Quiet;
        }
        let late = now.saturating_duration_since(due);
        match self.pinged {
            Some(_) if late <= self.slack() => Beat::Dead {
                after: now.saturating_duration_since(self.heard),
            },
            _ => Beat::Ping,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What a brick grants a silent client at the defaults of GlusterFS 10.3, see the module.
    const BRICK_GIVES_UP: Duration = Duration::from_secs(38);

    fn pulse(start: Instant) -> Pulse {
        Pulse::new(&Timeouts::default(), start)
    }

    /// The looks of a reader whose peer answers each ping at once.
    fn looks_of_a_reader(length: Duration) -> Vec<Beat> {
        let start = Instant::now();
        let mut pulse = pulse(start);
        let mut looks = Vec::new();
        loop {
            let now = pulse.due(Watch::Reader);
            if now > start + length {
                return looks;
            }
            looks.push(pulse.beat(Watch::Reader, now));
            pulse.pinged(now);
            pulse.heard(now);
        }
    }

    #[test]
    fn three_idle_connections_wake_up_less_than_once_a_second() {
        let looks = looks_of_a_reader(60 * SECOND);
        assert!(looks.iter().all(|look| *look == Beat::Ping), "{looks:?}");
        // Each look is a wake-up, and the answer another one.
        assert!(3 * 2 * looks.len() < 60, "{looks:?}");
    }

    #[test]
    fn a_lost_link_is_noticed_before_a_brick_gives_us_up() {
        let timeouts = Timeouts::default();
        // By the kernel; or by a ping that was sent just before.
        let noticed = timeouts.dead_after() + timeouts.ping_timeout;
        let given_up = BRICK_GIVES_UP - timeouts.idle_interval;
        assert!(timeouts.dead_after() <= 10 * SECOND);
        assert!(noticed + 5 * SECOND <= given_up, "{noticed:?} {given_up:?}");
    }

    #[test]
    fn silence_to_a_caller_is_answered_by_a_ping_and_then_by_giving_up() {
        let start = Instant::now();
        let at = |seconds| start + seconds * SECOND;
        let mut pulse = pulse(start);
        // Heard of long ago: the silence begins when the call is sent.
        let caller = Watch::Caller(at(10));
        assert_eq!(pulse.beat(caller, at(12)), Beat::Quiet);
        assert_eq!(pulse.due(caller), at(13));
        assert_eq!(pulse.beat(caller, at(13)), Beat::Ping);
        pulse.pinged(at(13));
        assert_eq!(pulse.beat(caller, at(18)), Beat::Quiet);
        assert_eq!(pulse.due(caller), at(19));
        let after = 19 * SECOND;
        assert_eq!(pulse.beat(caller, at(19)), Beat::Dead { after });
        pulse.heard(at(19));
        assert_eq!(pulse.beat(caller, at(21)), Beat::Quiet);
        assert_eq!(pulse.due(caller), at(22));
    }

    #[test]
    fn a_reader_gives_up_too_after_its_ping() {
        let start = Instant::now();
        let mut pulse = pulse(start);
        let pinged = pulse.due(Watch::Reader);
        pulse.pinged(pinged);
        let due = pulse.due(Watch::Reader);
        assert_eq!(due, pinged + Timeouts::default().ping_timeout);
        assert!(matches!(pulse.beat(Watch::Reader, due), Beat::Dead { .. }));
    }

    #[test]
    fn a_process_that_slept_pings_before_it_gives_up() {
        let start = Instant::now();
        let mut pulse = pulse(start);
        let late = start + 3600 * SECOND;
        for watch in [Watch::Reader, Watch::Caller(start)] {
            assert_eq!(pulse.beat(watch, late), Beat::Ping);
        }
        // It slept after the ping: the answer may be there, not yet read.
        pulse.pinged(start + 3 * SECOND);
        for watch in [Watch::Reader, Watch::Caller(start)] {
            assert_eq!(pulse.beat(watch, late), Beat::Ping);
        }
    }
}
