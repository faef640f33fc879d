//! Who has the image: this daemon, or somebody else for now.
//!
//! A daemon that only serves has it from its start to its end. One that takes part in a
//! live migration does not: the target waits for its first ring start, the source gives
//! the image away when its rings have stopped, and takes it again if they start after
//! all. Events in, actions out; no session, socket or clock. Carried out by
//! [`crate::cli`]'s custodian. Whether the image *may* be opened is not decided here.
//!
//! ```text
//!            rings started                opened
//!  Vacant ─────────────────► Opening ─────────────► Held ◄───────────────┐
//!    ▲                          │                    │ ▲                 │
//!    │                          │ cannot             │ │ disarmed        │ rings started
//!    │                          ▼                  arm │                 │ (migration failed)
//!    │                        Ended                  ▼ │  rings stopped  │
//!    │                                             Armed ─────────────► Leaving
//!    └───────────────────────────────────────────────────────────────────┘
//!                          all copies that are held are equal
//! ```
//!
//! With no guest to be expected here (*give away*) it leaves at once, from *Held* and from
//! *Armed*, though rings may run: QEMU from 9.1 on starts them whenever it connects, also of
//! a guest that has gone to another host.

/// Where the daemon stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ownership {
    /// The image is not ours, and nobody here asks for it.
    Vacant,
    /// Somebody asked for it: its locks are being taken.
    Opening,
    /// It is ours.
    Held,
    /// It is ours until the rings stop.
    Armed,
    /// The rings have stopped: what the others miss is sent, then it is given away.
    Leaving,
    /// It could not be had, or the session stopped by itself: nothing more happens.
    Ended,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The first ring of a front-end started.
    RingsStarted,
    /// The last one has stopped, and what it took is done.
    RingsStopped,
    /// The session is open.
    Opened,
    /// It cannot be.
    OpenFailed,
    /// The image is to be given away when the rings stop.
    Arm,
    /// It is to be given away at once: no guest of this host uses it, whatever the rings do.
    GiveAway,
    /// It is not, after all.
    Disarm,
    /// No copy that is held misses anything, none of them is marked, and the session is
    /// closed.
    Left,
    /// The session ended by itself.
    SessionStopped,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Open a session; [`Event::Opened`] or [`Event::OpenFailed`] follows.
    Open,
    /// Let the queues take requests, or not.
    Gate {
        /// They may.
        open: bool,
    },
    /// Bring the copies together and close the session; [`Event::Left`] follows,
    /// unless the ownership is no longer [`Ownership::Leaving`] by then.
    Leave,
    /// End the daemon.
    End,
}

/// The ownership of one image. See the module's diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    ownership: Ownership,
    rings: bool,
}

impl Machine {
    /// Of a daemon that has the image, or waits for a migration.
    pub fn new(held: bool) -> Self {
        Self {
            ownership: if held {
                Ownership::Held
            } else {
                Ownership::Vacant
            },
            rings: false,
        }
    }

    /// Where it stands.
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Takes an event in; what to do comes out.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::RingsStarted => self.rings = true,
            Event::RingsStopped => self.rings = false,
            _ => {}
        }
        let (next, actions) = self.after(event);
        self.ownership = next;
        actions
    }

    fn after(&self, event: Event) -> (Ownership, Vec<Action>) {
        use Ownership::{Armed, Ended, Held, Leaving, Opening, Vacant};
        let open = || vec![Action::Gate { open: true }];
        let leave = || vec![Action::Gate { open: false }, Action::Leave];
        match (self.ownership, event) {
            (Ended, _) => (Ended, Vec::new()),
            // Its gate refuses everything: the guest is to see errors, not silence.
            (_, Event::SessionStopped) => (Ended, open()),
            (Vacant, Event::RingsStarted) => (Opening, vec![Action::Open]),
            (Opening, Event::Opened) => (Held, open()),
            (Opening, Event::OpenFailed) => (Ended, vec![Action::End]),
            (Held, Event::Arm) if self.rings => (Armed, Vec::new()),
            // Nobody writes: at once.
            (Held, Event::Arm) => (Leaving, leave()),
            (Held | Armed, Event::GiveAway) => (Leaving, leave()),
            (Armed, Event::Disarm) => (Held, Vec::new()),
            (Armed, Event::RingsStopped) => (Leaving, leave()),
            // The front-end goes on here: the migration has failed.
            (Leaving, Event::RingsStarted | Event::Disarm) => (Held, open()),
            (Leaving, Event::Left) => (Vacant, Vec::new()),
            (same, _) => (same, Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(held: bool, events: &[Event]) -> Machine {
        let mut machine = Machine::new(held);
        for event in events {
            machine.step(*event);
        }
        machine
    }

    const ARMED: [Event; 2] = [Event::RingsStarted, Event::Arm];

    #[test]
    fn a_target_opens_when_its_rings_start_and_takes_no_request_before() {
        let mut target = machine(false, &[]);
        assert_eq!(target.step(Event::RingsStarted), [Action::Open]);
        assert_eq!(target.ownership(), Ownership::Opening);
        assert_eq!(target.step(Event::Opened), [Action::Gate { open: true }]);
        assert_eq!(target.ownership(), Ownership::Held);
    }

    #[test]
    fn a_source_gives_the_image_away_only_when_it_was_armed_and_the_rings_have_stopped() {
        let mut unarmed = machine(true, &[Event::RingsStarted]);
        assert!(unarmed.step(Event::RingsStopped).is_empty());
        assert_eq!(unarmed.ownership(), Ownership::Held);
        let mut armed = machine(true, &ARMED);
        assert_eq!(armed.ownership(), Ownership::Armed);
        assert_eq!(
            armed.step(Event::RingsStopped),
            [Action::Gate { open: false }, Action::Leave]
        );
        armed.step(Event::Left);
        assert_eq!(armed.ownership(), Ownership::Vacant);
    }

    #[test]
    fn a_migration_that_fails_leaves_the_image_here() {
        let mut leaving = machine(true, &[ARMED[0], ARMED[1], Event::RingsStopped]);
        let actions = leaving.step(Event::RingsStarted);
        assert_eq!(actions, [Action::Gate { open: true }]);
        assert_eq!(leaving.ownership(), Ownership::Held);
        // A late word of the session that was to be closed changes nothing.
        assert!(leaving.step(Event::Left).is_empty());
        assert_eq!(leaving.ownership(), Ownership::Held);
        assert!(
            leaving.step(Event::RingsStopped).is_empty(),
            "not armed any more"
        );
    }

    #[test]
    fn a_source_whose_rings_start_after_it_gave_the_image_away_asks_for_it_again() {
        let left = [ARMED[0], ARMED[1], Event::RingsStopped, Event::Left];
        let mut left = machine(true, &left);
        assert_eq!(left.step(Event::RingsStarted), [Action::Open]);
        assert_eq!(left.step(Event::OpenFailed), [Action::End]);
        assert!(left.step(Event::RingsStarted).is_empty());
    }

    #[test]
    fn an_image_without_a_running_front_end_is_given_away_at_once() {
        let mut idle = machine(true, &[Event::RingsStarted, Event::RingsStopped]);
        assert_eq!(
            idle.step(Event::Arm),
            [Action::Gate { open: false }, Action::Leave]
        );
    }

    #[test]
    fn an_image_that_no_guest_here_uses_is_given_away_though_rings_run() {
        for before in [&ARMED[..1], &ARMED] {
            let mut recovered = machine(true, before);
            let actions = recovered.step(Event::GiveAway);
            assert_eq!(actions, [Action::Gate { open: false }, Action::Leave]);
            recovered.step(Event::Left);
            assert_eq!(recovered.ownership(), Ownership::Vacant);
            // They stop when the QEMU that was left behind ends.
            assert!(recovered.step(Event::RingsStopped).is_empty());
            assert_eq!(recovered.ownership(), Ownership::Vacant);
        }
    }

    /// The queues take requests exactly while the image is held.
    #[test]
    fn in_every_state_that_can_be_reached_the_door_is_open_only_while_the_image_is_held() {
        let events = [
            Event::RingsStarted,
            Event::RingsStopped,
            Event::Opened,
            Event::OpenFailed,
            Event::Arm,
            Event::GiveAway,
            Event::Disarm,
            Event::Left,
            Event::SessionStopped,
        ];
        let mut seen = std::collections::HashSet::new();
        let mut left = vec![(Machine::new(true), true), (Machine::new(false), false)];
        while let Some((machine, open)) = left.pop() {
            if !seen.insert((machine, open)) {
                continue;
            }
            let held = matches!(machine.ownership(), Ownership::Held | Ownership::Armed);
            assert!(!open || held || machine.ownership() == Ownership::Ended);
            for event in events {
                let mut next = machine;
                let mut open = open;
                for action in next.step(event) {
                    if let Action::Gate { open: now } = action {
                        open = now;
                    }
                }
                left.push((next, open));
            }
        }
        assert!(seen.len() > 8);
    }
}
