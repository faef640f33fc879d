//! When to ping a silent peer and when to give it up: pure, told the time.

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
    /// Silence after which a brick is pinged.
    pub ping_interval: Duration,
    /// Silence after a ping after which a brick is given up. A lost link is
    /// noticed after the sum of both, and a quarter of the interval at most.
    pub ping_timeout: Duration,
}

impl Default for Timeouts {
    /// A lost link is noticed within ten seconds.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            call: Duration::from_secs(30),
            send: Duration::from_secs(9),
            ping_interval: Duration::from_secs(3),
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

/// A peer's signs of life. Any byte from it is one.
#[derive(Debug)]
pub(super) struct Pulse {
    interval: Duration,
    timeout: Duration,
    heard: Instant,
    pinged: Option<Instant>,
}

impl Pulse {
    /// The shortest time between two looks at the clock.
    const SHORTEST_TICK: Duration = Duration::from_millis(10);

    pub fn new(timeouts: &Timeouts, now: Instant) -> Self {
        Self {
            interval: timeouts.ping_interval,
            timeout: timeouts.ping_timeout,
            heard: now,
            pinged: None,
        }
    }

    /// How often to look: often enough to be late by a quarter of the interval.
    pub fn tick(&self) -> Duration {
        (self.interval.min(self.timeout) / 4).max(Self::SHORTEST_TICK)
    }

    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
    }

    pub fn pinged(&mut self, now: Instant) {
        self.pinged = Some(now);
    }

    /// Only an unanswered ping proves anything: a process that was stopped for
    /// longer than the time-out finds no bytes either, at first.
    pub fn beat(&self, now: Instant) -> Beat {
        let after = now.saturating_duration_since(self.heard);
        match self.pinged {
            Some(pinged) if now.saturating_duration_since(pinged) >= self.timeout => {
                Beat::Dead { after }
            }
            None if after >= self.interval => Beat::Ping,
            _ => Beat::Quiet,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_link_is_noticed_within_ten_seconds_by_default() {
        let timeouts = Timeouts::default();
        let pulse = Pulse::new(&timeouts, Instant::now());
        let noticed = timeouts.dead_after() + 2 * pulse.tick();
        assert!(noticed <= Duration::from_millis(10_500), "{noticed:?}");
    }

    #[test]
    fn silence_is_answered_by_a_ping_and_then_by_giving_up() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(&Timeouts::default(), start);
        assert_eq!(pulse.beat(at(2)), Beat::Quiet);
        assert_eq!(pulse.beat(at(3)), Beat::Ping);
        pulse.pinged(at(3));
        assert_eq!(pulse.beat(at(8)), Beat::Quiet);
        let after = Duration::from_secs(9);
        assert_eq!(pulse.beat(at(9)), Beat::Dead { after });
        pulse.heard(at(9));
        assert_eq!(pulse.beat(at(11)), Beat::Quiet);
    }

    #[test]
    fn a_process_that_slept_pings_before_it_gives_up() {
        let start = Instant::now();
        let pulse = Pulse::new(&Timeouts::default(), start);
        assert_eq!(pulse.beat(start + Duration::from_secs(3600)), Beat::Ping);
    }
}
