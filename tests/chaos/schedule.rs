//! What happens in a round, all drawn from its seed: where the image is served,
//! which faults come after which time, and how the session ends.

use std::fmt;
use std::time::Duration;

use super::rng::Rng;

/// Nodes, and bricks: one on each.
pub const NODES: usize = 3;

/// One thing that goes wrong, or comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL for the daemon; then it is started anew on its node, or first
    /// tried on another one.
    KillDaemon { elsewhere: Option<usize> },
    /// A second daemon on another node, while the first one lives.
    Rival(usize),
    /// SIGKILL for a brick's process.
    KillBrick(usize),
    /// `volume start force`.
    StartBricks,
    /// A node's cable is pulled.
    Cut(usize),
    /// And put back.
    Mend(usize),
    /// SIGKILL for a node's stock self-heal daemon.
    KillSelfHeal(usize),
    /// SIGKILL for a node's healer, which is started anew.
    KillHealer(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillDaemon { elsewhere: None } => f.write_str("kill daemon"),
            Self::KillDaemon {
                elsewhere: Some(node),
            } => write!(f, "kill daemon, try node {node}"),
            Self::Rival(node) => write!(f, "rival on node {node}"),
            Self::KillBrick(brick) => write!(f, "kill brick {brick}"),
            Self::StartBricks => f.write_str("start bricks"),
            Self::Cut(node) => write!(f, "cut node {node}"),
            Self::Mend(node) => write!(f, "mend node {node}"),
            Self::KillSelfHeal(node) => write!(f, "kill shd {node}"),
            Self::KillHealer(node) => write!(f, "kill healer {node}"),
        }
    }
}

/// How a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The session goes on, into the next round, and its healer makes all equal.
    GoOn,
    /// SIGTERM for the daemon.
    Term(Finisher),
    /// SIGKILL for it.
    Kill(Finisher),
}

/// Who makes the copies equal after the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finisher {
    /// The healers; the stock self-heal daemons are dead.
    Healers,
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
    /// Draws a round.
    pub fn draw(rng: &mut Rng) -> Plan {
        let serve_on = rng.below(NODES as u64) as usize;
        let quorum_timeout = rng.pick(&["2s", "10m", "10m"]);
        let count = 2 + rng.below(5) as usize;
        let mut faults = Vec::with_capacity(count);
        let mut cut = [false; NODES];
        while faults.len() < count {
            let fault = draw_fault(rng, &cut);
            match fault {
                Fault::Cut(node) => cut[node] = true,
                Fault::Mend(node) => cut[node] = false,
                _ => {}
            }
            // Some come all at once, and some when the last one was noticed long ago.
            let (from, to) = *rng.pick(&[(1, 100), (50, 1000), (50, 1000), (500, 9000)]);
            faults.push((rng.millis(from, to), fault));
        }
        Plan {
            serve_on,
            quorum_timeout,
            faults,
            ending: draw_ending(rng),
        }
    }
}

fn draw_ending(rng: &mut Rng) -> Ending {
    let finisher = *rng.pick(&[Finisher::Healers, Finisher::Stock, Finisher::Either]);
    match rng.below(3) {
        0 => Ending::GoOn,
        1 => Ending::Term(finisher),
        _ => Ending::Kill(finisher),
    }
}

fn draw_fault(rng: &mut Rng, cut: &[bool; NODES]) -> Fault {
    loop {
        let node = rng.below(NODES as u64) as usize;
        let fault = match rng.below(17) {
            0..=2 => Fault::KillDaemon { elsewhere: None },
            3 => Fault::KillDaemon {
                elsewhere: Some(node),
            },
            4 => Fault::Rival(node),
            5..=7 => Fault::KillBrick(node),
            8 | 9 => Fault::StartBricks,
            10 | 11 => Fault::Cut(node),
            12 | 13 => Fault::Mend(node),
            14 => Fault::KillSelfHeal(node),
            _ => Fault::KillHealer(node),
        };
        let possible = match fault {
            Fault::Cut(node) => !cut[node],
            Fault::Mend(node) => cut[node],
            // glusterd's transactions wait for nodes that are silent.
            Fault::StartBricks => !cut.contains(&true),
            _ => true,
        };
        if possible {
            return fault;
        }
    }
}
