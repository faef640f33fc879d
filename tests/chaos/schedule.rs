//! What happens in a round, all drawn from its seed: where the image is served,
//! which faults come after which time, and how it ends.

use std::time::Duration;

use super::rng::Rng;

/// Nodes, and bricks: one on each.
pub const NODES: usize = 3;

/// One thing that goes wrong, or comes back. Numbers are those of nodes, and of
/// the bricks on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL for the daemon, which is then started anew.
    KillDaemon,
    /// The same, but this node is tried first.
    KillDaemonAndMove(usize),
    /// A second daemon on this node, while the first one lives.
    Rival(usize),
    /// SIGKILL for a brick's process.
    KillBrick(usize),
    /// `volume start force`.
    StartBricks,
    /// A node's cable is pulled.
    Cut(usize),
    /// And put back.
    Mend(usize),
    /// These two nodes hear each other no more; the third hears both.
    Part(usize, usize),
    /// And hear each other again.
    Rejoin(usize, usize),
    /// SIGKILL for a node's stock self-heal daemon.
    KillSelfHeal(usize),
    /// SIGKILL for a node's healer, which is then started anew.
    KillHealer(usize),
    /// SIGUSR1 for the daemon: another process goes on with its connections.
    Upgrade,
    /// SIGSTOP for the daemon.
    FreezeDaemon,
    /// SIGSTOP for a node's healer.
    FreezeHealer(usize),
    /// SIGSTOP for a brick's process.
    FreezeBrick(usize),
    /// `volume clear-locks` for the image, all of them.
    ClearLocks,
    /// A node's disk, that of its brick, has no room left.
    Fill(usize),
    /// And has room again.
    MakeRoom(usize),
    /// SIGCONT for all that were stopped.
    Thaw,
}

/// How a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The session goes on, into the next round, and its healer makes all equal.
    GoOn,
    /// The guest ends, and then SIGTERM for the daemon.
    Term(Finisher),
    /// SIGKILL for the daemon, under load.
    Kill(Finisher),
}

/// Who makes the copies equal after the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finisher {
    /// The healers; the stock self-heal daemons are dead.
    Healers,
    /// Healers that were not there when the session ended.
    NewHealers,
    /// The stock self-heal daemons; the healers are dead.
    Stock,
    /// Whoever comes first.
    Either,
}

/// A round.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the image is served, if no session goes on from the round before.
    pub serve_on: usize,
    /// The daemon's `--quorum-timeout`.
    pub quorum_timeout: &'static str,
    /// Pauses, and what comes after each.
    pub faults: Vec<(Duration, Fault)>,
    /// How it ends.
    pub ending: Ending,
}

impl Plan {
    /// Draws round number `number`. Every kind of ending is there in three rounds.
    pub fn draw(rng: &mut Rng, number: u64) -> Plan {
        let serve_on = rng.below(NODES as u64) as usize;
        let quorum_timeout = rng.pick(&["2s", "10m", "10m"]);
        let count = 2 + rng.below(7) as usize;
        let mut faults = Vec::with_capacity(count);
        let mut broken = Broken::default();
        while faults.len() < count {
            let fault = draw_fault(rng, &mut broken);
            // Some come all at once, and some when the last one was noticed long ago.
            let (from, to) = *rng.pick(&[(1, 100), (50, 1000), (50, 1000), (500, 9000)]);
            let pause = rng.millis(from, to) + noticing(&faults);
            faults.push((pause, fault));
        }
        if !noticing(&faults).is_zero() {
            faults.push((noticing(&faults), Fault::Thaw));
        }
        Plan {
            serve_on,
            quorum_timeout,
            faults,
            ending: draw_ending(rng, number),
        }
    }
}

/// A daemon that is killed before it has noticed what it has lost, has no chance: it looks
/// every second.
fn noticing(faults: &[(Duration, Fault)]) -> Duration {
    match faults.last() {
        Some((_, Fault::ClearLocks)) => Duration::from_secs(3),
        _ => Duration::ZERO,
    }
}

fn draw_ending(rng: &mut Rng, number: u64) -> Ending {
    let finisher = *rng.pick(&[
        Finisher::Healers,
        Finisher::NewHealers,
        Finisher::Stock,
        Finisher::Either,
    ]);
    match number % 3 {
        0 => Ending::GoOn,
        1 => Ending::Term(finisher),
        _ => Ending::Kill(finisher),
    }
}

/// What is broken so far and can be mended.
#[derive(Default)]
struct Broken {
    cut: [bool; NODES],
    /// The pair without this node.
    parted: [bool; NODES],
    full: [bool; NODES],
    frozen: bool,
}

impl Broken {
    fn is_silent_somewhere(&self) -> bool {
        self.frozen || self.cut.contains(&true) || self.parted.contains(&true)
    }

    /// Takes a fault in; `false` when it makes no sense now.
    fn take(&mut self, fault: Fault) -> bool {
        let (flag, becomes) = match fault {
            Fault::Cut(node) => (&mut self.cut[node], true),
            Fault::Mend(node) => (&mut self.cut[node], false),
            Fault::Part(one, other) => (&mut self.parted[third(one, other)], true),
            Fault::Rejoin(one, other) => (&mut self.parted[third(one, other)], false),
            Fault::Fill(node) => (&mut self.full[node], true),
            Fault::MakeRoom(node) => (&mut self.full[node], false),
            Fault::Thaw => (&mut self.frozen, false),
            Fault::FreezeDaemon | Fault::FreezeHealer(_) | Fault::FreezeBrick(_) => {
                self.frozen = true;
                return true;
            }
            // glusterd's transactions wait for nodes that are silent.
            Fault::StartBricks | Fault::ClearLocks => return !self.is_silent_somewhere(),
            _ => return true,
        };
        std::mem::replace(flag, becomes) != becomes
    }
}

fn third(one: usize, other: usize) -> usize {
    NODES - one - other
}

fn draw_fault(rng: &mut Rng, broken: &mut Broken) -> Fault {
    loop {
        let node = rng.below(NODES as u64) as usize;
        let next = (node + 1) % NODES;
        let fault = match rng.below(38) {
            0..=4 => Fault::KillDaemon,
            5 => Fault::KillDaemonAndMove(node),
            6 => Fault::Rival(node),
            7..=9 => Fault::KillBrick(node),
            10..=12 => Fault::StartBricks,
            13 | 14 => Fault::Cut(node),
            15 | 16 => Fault::Mend(node),
            17 => Fault::Part(node, next),
            18 => Fault::Rejoin(node, next),
            19 => Fault::KillSelfHeal(node),
            20 | 21 => Fault::KillHealer(node),
            22 => Fault::FreezeDaemon,
            23 | 24 => Fault::FreezeHealer(node),
            25 => Fault::FreezeBrick(node),
            26 | 27 => Fault::Upgrade,
            28 | 29 => Fault::ClearLocks,
            30..=33 => Fault::Fill(node),
            34 | 35 => Fault::MakeRoom(node),
            _ => Fault::Thaw,
        };
        if broken.take(fault) {
            return fault;
        }
    }
}
