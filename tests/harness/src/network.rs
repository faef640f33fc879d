//! The cluster's network: a switch in a namespace of its own, one namespace per
//! node, one cable each. No interface is ever made in the machine's own network.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::process::all_pids;
use crate::{Result, Run, run_command};

const DEADLINE: Duration = Duration::from_secs(30);

/// The switch and its ports.
#[derive(Debug)]
pub(crate) struct Network {
    run: Arc<Run>,
    cut: Mutex<BTreeSet<usize>>,
}

impl Network {
    /// A switch with `nodes` nodes at its ports.
    pub(crate) fn build(run: &Arc<Run>, nodes: usize) -> Result<Network> {
        let network = Network {
            run: Arc::clone(run),
            cut: Mutex::default(),
        };
        let switch = network.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for node in 0..nodes {
            network.connect(node)?;
        }
        Ok(network)
    }

    fn connect(&self, node: usize) -> Result<()> {
        let (switch, netns, port) = (self.switch(), self.netns(node), port(node));
        ip(&["netns", "add", &netns])?;
        ip(&[
            "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
            &netns,
        ])?;
        ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", &netns, "link", "set", "lo", "up"])?;
        let address = format!("{}/24", address(node));
        ip(&["-n", &netns, "address", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &netns, "link", "set", "eth0", "up"])
    }

    /// The namespace of the switch.
    fn switch(&self) -> String {
        format!("{}-sw", self.run.name())
    }

    /// The namespace of a node.
    pub(crate) fn netns(&self, node: usize) -> String {
        format!("{}-n{}", self.run.name(), node + 1)
    }

    /// Pulls the cable at the switch: the node keeps its address, and reaches
    /// itself, but no packet goes in or out.
    pub(crate) fn cut(&self, node: usize) -> Result<()> {
        ip(&["-n", &self.switch(), "link", "set", &port(node), "down"])?;
        self.cut_nodes().insert(node);
        Ok(())
    }

    /// Puts the cable back.
    pub(crate) fn restore(&self, node: usize) -> Result<()> {
        ip(&["-n", &self.switch(), "link", "set", &port(node), "up"])?;
        self.cut_nodes().remove(&node);
        Ok(())
    }

    /// Makes two nodes silent to each other; all others hear both.
    pub(crate) fn part(&self, one: usize, other: usize) -> Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            // Nobody's hardware address: the switch delivers to no one who listens.
            let nobody = "02:00:00:00:00:00";
            let (netns, to) = (self.netns(from), address(to));
            ip(&[
                "-n",
                &netns,
                "neigh",
                "replace",
                &to,
                "lladdr",
                nobody,
                "dev",
                "eth0",
                "nud",
                "permanent",
            ])?;
        }
        Ok(())
    }

    /// Undoes [`Network::part`], if it was done.
    pub(crate) fn rejoin(&self, one: usize, other: usize) -> Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let (netns, to) = (self.netns(from), address(to));
            ip(&[
                "-n",
                &netns,
                "neigh",
                "flush",
                "to",
                &to,
                "dev",
                "eth0",
                "nud",
                "permanent",
            ])?;
        }
        Ok(())
    }

    /// Whether the node's cable is pulled.
    pub(crate) fn is_cut(&self, node: usize) -> bool {
        self.cut_nodes().contains(&node)
    }

    fn cut_nodes(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every process inside the node's namespace.
    pub(crate) fn processes(&self, node: usize) -> Vec<u32> {
        let Ok(netns) = fs::metadata(format!("/run/netns/{}", self.netns(node))) else {
            return Vec::new();
        };
        let mut pids = all_pids();
        pids.retain(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|ns| (ns.dev(), ns.ino()) == (netns.dev(), netns.ino()))
        });
        pids
    }
}

/// A node's address, valid inside the namespaces of its own cluster only.
pub(crate) fn address(node: usize) -> String {
    format!("10.77.0.{}", node + 1)
}

fn port(node: usize) -> String {
    format!("port{}", node + 1)
}

fn ip(args: &[&str]) -> Result<()> {
    run_command(Command::new("ip").args(args), DEADLINE).map(drop)
}
