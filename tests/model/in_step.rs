//! Who is on record as in step, while flushes wait for peers: three bricks, a session on the first
//! one's host, peers that follow, lag and are lost, records that reach some bricks only. At every
//! moment the host may be gone: whoever takes a copy over reads the record on a quorum of
//! bricks, and what was answered must be on each copy that the newest of them names.
//!
//! Real is the machine (`image::stream::in_step`). Each rule is broken once.

#![allow(clippy::unwrap_used)]

use bypass_blk::image::dirty_map::{Peer, Peers};
use bypass_blk::image::stream::in_step::{Act, InStep, Replicate, WhenAlone};
use stateright::{Checker, HasDiscoveries, Model, Property};

const BRICKS: usize = 3;
const SAFE: &str = "what was answered is on every copy that a quorum calls in step";
const USEFUL: &str = "a copy that is in step has something that was answered";
const ALONE: &str = "a flush is answered with no peer in step";

/// The rule that a setting breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// One brick that has the record is enough.
    OneBrickIsEnough,
    /// A record counts as stored when it is sent.
    StoredWhenSent,
    /// Whoever reads takes any record, not the newest.
    AnyRecord,
    /// A peer counts as following before it has what was answered before.
    PeerSaysTooMuch,
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    peers: usize,
    alone: WhenAlone,
    flushes: u64,
    losses: u8,
    broken: Broken,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    machine: InStep,
    /// Flushes that were asked for: numbers from one on.
    asked: u64,
    /// All before this is answered.
    answered: u64,
    /// What each peer has durably.
    durable: [u64; BRICKS - 1],
    follows: [bool; BRICKS - 1],
    losses: u8,
    /// Per brick, the newest record: its number, and whom it names.
    bricks: [(u8, u8); BRICKS],
    /// On its way: its number, whom it names, the bricks that have it.
    storing: Option<(u8, u8, [bool; BRICKS])>,
    records: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Flush,
    /// The peer has all that was asked for, durably.
    Sync(usize),
    /// The session hears what it has.
    Hear(usize),
    Lose(usize),
    Follow(usize),
    StoreOn(usize),
}

fn peer(index: usize) -> Peer {
    Peer::new(index).unwrap()
}

impl World {
    fn settle(&mut self, broken: Broken) {
        while let Some(act) = self.machine.next_act() {
            match act {
                Act::Answer(flush) => self.answered = self.answered.max(flush),
                Act::Store(peers) => {
                    self.records += 1;
                    self.storing = Some((self.records, peers.bits(), [false; BRICKS]));
                    if broken == Broken::StoredWhenSent {
                        self.machine.stored();
                    }
                }
            }
        }
    }

    fn store_on(&mut self, brick: usize, broken: Broken) {
        let Some((record, peers, on)) = &mut self.storing else {
            return;
        };
        on[brick] = true;
        self.bricks[brick] = (*record, *peers);
        let enough = match broken {
            Broken::OneBrickIsEnough => 1,
            _ => BRICKS / 2 + 1,
        };
        if on.iter().filter(|on| **on).count() >= enough {
            self.storing = None;
            self.machine.stored();
        }
    }

    /// Whom a reader of these two bricks takes for in step.
    fn read(&self, one: usize, other: usize, broken: Broken) -> u8 {
        let pair = [self.bricks[one], self.bricks[other]];
        let found = match broken {
            Broken::AnyRecord => pair.iter().min(),
            _ => pair.iter().max(),
        };
        found.map_or(0, |(_, peers)| *peers)
    }

    fn is_safe(&self, broken: Broken) -> bool {
        let pairs = [(0, 1), (0, 2), (1, 2)];
        pairs.iter().all(|&(one, other)| {
            let named = Peers::from_bits(self.read(one, other, broken));
            named
                .iter()
                .all(|peer| self.durable[peer.index()] >= self.answered)
        })
    }
}

impl Model for Setting {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        let replicate = Replicate::Flush {
            peers: self.peers,
            alone: self.alone,
        };
        vec![World {
            machine: InStep::new(replicate, Peers::NONE),
            asked: 0,
            answered: 0,
            durable: [0; BRICKS - 1],
            follows: [false; BRICKS - 1],
            losses: 0,
            bricks: [(0, 0); BRICKS],
            storing: None,
            records: 0,
        }]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        if world.asked < self.flushes {
            events.push(Event::Flush);
        }
        for at in 0..BRICKS - 1 {
            match world.follows[at] {
                true => events.extend([Event::Sync(at), Event::Hear(at)]),
                false => events.push(Event::Follow(at)),
            }
            if world.follows[at] && world.losses < self.losses {
                events.push(Event::Lose(at));
            }
        }
        if let Some((.., on)) = &world.storing {
            let left = (0..BRICKS).filter(|brick| !on[*brick]);
            events.extend(left.map(Event::StoreOn));
        }
    }

    fn next_state(&self, before: &World, event: Event) -> Option<World> {
        let mut world = before.clone();
        match event {
            Event::Flush => {
                world.asked += 1;
                world.machine.flushed(world.asked);
            }
            Event::Sync(at) => world.durable[at] = world.asked,
            Event::Hear(at) => {
                let heard = match self.broken {
                    Broken::PeerSaysTooMuch => world.asked,
                    _ => world.durable[at],
                };
                world.machine.durable(peer(at), heard);
            }
            Event::Follow(at) => world.follows[at] = true,
            Event::Lose(at) => {
                world.follows[at] = false;
                world.losses += 1;
                world.machine.lost(peer(at));
            }
            Event::StoreOn(brick) => world.store_on(brick, self.broken),
        }
        world.settle(self.broken);
        (world != *before && world.records < 7).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SAFE, |setting: &Setting, world: &World| {
                world.is_safe(setting.broken)
            }),
            Property::sometimes(USEFUL, |_: &Setting, world: &World| {
                world.answered > 1 && world.bricks.iter().all(|(_, peers)| *peers != 0)
            }),
            Property::sometimes(ALONE, |setting: &Setting, world: &World| {
                let stalls = setting.alone == WhenAlone::Stall;
                stalls || world.answered > 0 && world.machine.recorded() == Peers::NONE
            }),
        ]
    }
}

const SETTING: Setting = Setting {
    peers: 1,
    alone: WhenAlone::Continue,
    flushes: 3,
    losses: 2,
    broken: Broken::Nothing,
};

#[test]
fn a_copy_that_is_on_record_as_in_step_misses_nothing_that_was_answered() {
    let stalls = Setting {
        alone: WhenAlone::Stall,
        flushes: 2,
        ..SETTING
    };
    let both = Setting {
        peers: 2,
        flushes: 2,
        ..SETTING
    };
    for setting in [SETTING, stalls, both] {
        let checker = setting.checker().spawn_bfs().join();
        println!("{} states: {setting:?}", checker.unique_state_count());
        checker.assert_properties();
    }
}

#[test]
fn each_rule_of_being_in_step_is_needed() {
    for broken in [
        Broken::OneBrickIsEnough,
        Broken::StoredWhenSent,
        Broken::AnyRecord,
        Broken::PeerSaysTooMuch,
    ] {
        let setting = Setting { broken, ..SETTING };
        let only = HasDiscoveries::AnyOf([SAFE].into());
        let checker = setting.checker().finish_when(only).spawn_bfs().join();
        assert!(
            checker.discovery(SAFE).is_some(),
            "{broken:?} is not noticed"
        );
    }
}
