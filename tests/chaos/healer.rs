//! The healers, one per node.

use bypass_harness::Cluster;

use crate::support::healer::Healer;

/// One healer per node, or none while they are stopped.
pub struct Healers {
    cluster: Cluster,
    running: Vec<Healer>,
}

impl Healers {
    /// Starts one on every node.
    pub fn start(cluster: &Cluster) -> Self {
        let mut healers = Self {
            cluster: cluster.clone(),
            running: Vec::new(),
        };
        healers.start_all();
        healers
    }

    /// Starts one on every node.
    pub fn start_all(&mut self) {
        let nodes = self.cluster.nodes().iter();
        self.running = nodes.map(|node| Healer::start(node, &[])).collect();
    }

    /// SIGKILL for all of them.
    pub fn kill_all(&mut self) {
        self.running.drain(..).for_each(Healer::kill);
    }

    /// SIGKILL for a node's healer, and a new one.
    pub fn kill(&mut self, node: usize) {
        self.running.remove(node).kill();
        let new = Healer::start(self.cluster.node(node), &[]);
        self.running.insert(node, new);
    }

    /// The process id of a node's healer.
    pub fn pid(&self, node: usize) -> u32 {
        self.running[node].pid()
    }

    /// Whether all of them run.
    ///
    /// # Errors
    /// Which one ended by itself.
    pub fn check(&mut self) -> Result<(), String> {
        for (node, healer) in self.running.iter_mut().enumerate() {
            if let Some(status) = healer.exited() {
                return Err(format!(
                    "the healer of node {node} ended: {status}\n{}",
                    healer.log()
                ));
            }
        }
        Ok(())
    }
}
