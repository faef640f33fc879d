//! Who has the image: this daemon, or somebody else for now.
//!
//! A daemon that only serves has it from its start to its end. One that takes part in a
//! live migration does not: the target waits for its first ring start, the source gives
//! the image away when its rings have stopped, and takes it again if they start after
//! all. Events in, actions out; no session, socket or clock. Carried out by
//! [`crate::daemon::ownership_worker`]. Whether the image *may* be opened is not decided here.
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
pub enum OwnershipEvent {
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
pub enum OwnershipAction {
    /// Open a session; [`OwnershipEvent::Opened`] or [`OwnershipEvent::OpenFailed`] follows.
    Open,
    /// Let the queues take requests, or not.
    Gate {
        /// They may.
        open: bool,
    },
    /// Bring the copies together and close the session; [`OwnershipEvent::Left`] follows,
    /// unless the ownership is no longer [`Ownership::Leaving`] by then.
    Leave,
    /// End the daemon.
    End,
}

/// The ownership of one image. See the module's diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnershipMachine {
    ownership: Ownership,
    rings: bool,
}

impl OwnershipMachine {
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
    pub fn step(&mut self, event: OwnershipEvent) -> Vec<OwnershipAction> {
        match event {
            OwnershipEvent::RingsStarted => self.rings = true,
            OwnershipEvent::RingsStopped => self.rings = false,
            _ => {}
        }
        let (next, actions) = self.after(event);
        self.ownership = next;
        actions
    }

    fn after(&self, event: OwnershipEvent) -> (Ownership, Vec<OwnershipAction>) {
        use Ownership::{Armed, Ended, Held, Leaving, Opening, Vacant};
        let open = || vec![OwnershipAction::Gate { open: true }];
        let leave = || {
            vec![
                OwnershipAction::Gate { open: false },
                OwnershipAction::Leave,
            ]
        };
        match (self.ownership, event) {
            (Ended, _) => (Ended, Vec::new()),
            // Its gate refuses everything: the guest is to see errors, not silence.
            (_, OwnershipEvent::SessionStopped) => (Ended, open()),
            (Vacant, OwnershipEvent::RingsStarted) => (Opening, vec![OwnershipAction::Open]),
            (Opening, OwnershipEvent::Opened) => (Held, open()),
            (Opening, OwnershipEvent::OpenFailed) => (Ended, vec![OwnershipAction::End]),
            (Held, OwnershipEvent::Arm) if self.rings => (Armed, Vec::new()),
            // Nobody writes: at once.
            (Held, OwnershipEvent::Arm) => (Leaving, leave()),
            (Held | Armed, OwnershipEvent::GiveAway) => (Leaving, leave()),
            (Armed, OwnershipEvent::Disarm) => (Held, Vec::new()),
            (Armed, OwnershipEvent::RingsStopped) => (Leaving, leave()),
            // The front-end goes on here: the migration has failed.
            (Leaving, OwnershipEvent::RingsStarted | OwnershipEvent::Disarm) => (Held, open()),
            (Leaving, OwnershipEvent::Left) => (Vacant, Vec::new()),
            (same, _) => (same, Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(held: bool, events: &[OwnershipEvent]) -> OwnershipMachine {
        let mut machine = OwnershipMachine::new(held);
        for event in events {
            machine.step(*event);
        }
        machine
    }

    const ARMED: [OwnershipEvent; 2] = [OwnershipEvent::RingsStarted, OwnershipEvent::Arm];

    #[test]
    fn a_target_opens_when_its_rings_start_and_takes_no_request_before() {
        let mut target = machine(false, &[]);
        assert_eq!(
            target.step(OwnershipEvent::RingsStarted),
            [OwnershipAction::Open]
        );
        assert_eq!(target.ownership(), Ownership::Opening);
        assert_eq!(
            target.step(OwnershipEvent::Opened),
            [OwnershipAction::Gate { open: true }]
        );
        assert_eq!(target.ownership(), Ownership::Held);
    }

    #[test]
    fn a_source_gives_the_image_away_only_when_it_was_armed_and_the_rings_have_stopped() {
        let mut unarmed = machine(true, &[OwnershipEvent::RingsStarted]);
        assert!(unarmed.step(OwnershipEvent::RingsStopped).is_empty());
        assert_eq!(unarmed.ownership(), Ownership::Held);
        let mut armed = machine(true, &ARMED);
        assert_eq!(armed.ownership(), Ownership::Armed);
        assert_eq!(
            armed.step(OwnershipEvent::RingsStopped),
            [
                OwnershipAction::Gate { open: false },
                OwnershipAction::Leave
            ]
        );
        armed.step(OwnershipEvent::Left);
        assert_eq!(armed.ownership(), Ownership::Vacant);
    }

    #[test]
    fn a_migration_that_fails_leaves_the_image_here() {
        let mut leaving = machine(true, &[ARMED[0], ARMED[1], OwnershipEvent::RingsStopped]);
        let actions = leaving.step(OwnershipEvent::RingsStarted);
        assert_eq!(actions, [OwnershipAction::Gate { open: true }]);
        assert_eq!(leaving.ownership(), Ownership::Held);
        // A late word of the session that was to be closed changes nothing.
        assert!(leaving.step(OwnershipEvent::Left).is_empty());
        assert_eq!(leaving.ownership(), Ownership::Held);
        assert!(
            leaving.step(OwnershipEvent::RingsStopped).is_empty(),
            "not armed any more"
        );
    }

    #[test]
    fn a_source_whose_rings_start_after_it_gave_the_image_away_asks_for_it_again() {
        let left = [
            ARMED[0],
            ARMED[1],
            OwnershipEvent::RingsStopped,
            OwnershipEvent::Left,
        ];
        let mut left = machine(true, &left);
        assert_eq!(
            left.step(OwnershipEvent::RingsStarted),
            [OwnershipAction::Open]
        );
        assert_eq!(
            left.step(OwnershipEvent::OpenFailed),
            [OwnershipAction::End]
        );
        assert!(left.step(OwnershipEvent::RingsStarted).is_empty());
    }

    #[test]
    fn an_image_without_a_running_front_end_is_given_away_at_once() {
        let mut idle = machine(
            true,
            &[OwnershipEvent::RingsStarted, OwnershipEvent::RingsStopped],
        );
        assert_eq!(
            idle.step(OwnershipEvent::Arm),
            [
                OwnershipAction::Gate { open: false },
                OwnershipAction::Leave
            ]
        );
    }

    #[test]
    fn an_image_that_no_guest_here_uses_is_given_away_though_rings_run() {
        for before in [&ARMED[..1], &ARMED] {
            let mut recovered = machine(true, before);
            let actions = recovered.step(OwnershipEvent::GiveAway);
            assert_eq!(
                actions,
                [
                    OwnershipAction::Gate { open: false },
                    OwnershipAction::Leave
                ]
            );
            recovered.step(OwnershipEvent::Left);
            assert_eq!(recovered.ownership(), Ownership::Vacant);
            // They stop when the QEMU that was left behind ends.
            assert!(recovered.step(OwnershipEvent::RingsStopped).is_empty());
            assert_eq!(recovered.ownership(), Ownership::Vacant);
        }
    }

    /// The queues take requests exactly while the image is held.
    #[test]
    fn in_every_state_that_can_be_reached_the_door_is_open_only_while_the_image_is_held() {
        let events = [
            OwnershipEvent::RingsStarted,
            OwnershipEvent::RingsStopped,
            OwnershipEvent::Opened,
            OwnershipEvent::OpenFailed,
            OwnershipEvent::Arm,
            OwnershipEvent::GiveAway,
            OwnershipEvent::Disarm,
            OwnershipEvent::Left,
            OwnershipEvent::SessionStopped,
        ];
        let mut seen = std::collections::HashSet::new();
        let mut left = vec![
            (OwnershipMachine::new(true), true),
            (OwnershipMachine::new(false), false),
        ];
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
                    if let OwnershipAction::Gate { open: now } = action {
                        open = now;
                    }
                }
                left.push((next, open));
            }
        }
        assert!(seen.len() > 8);
    }
}
