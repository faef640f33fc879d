//! The healers, one per node: `bypass-blk heald`. Where the program has no such
//! command yet, there are none.

use std::fs::File;
use std::process::Stdio;
use std::sync::LazyLock;

use bypass_harness::{Background, Cluster};

use crate::support::daemon::{BINARY, run_dir, state_dir};

/// Whether the program has healers.
pub static EXISTS: LazyLock<bool> = LazyLock::new(|| {
    let help = std::process::Command::new(BINARY)
        .arg("--help")
        .output()
        .unwrap();
    String::from_utf8_lossy(&help.stdout)
        .lines()
        .any(|line| line.trim_start().starts_with("heald "))
});

/// One healer per node.
pub struct Healers {
    cluster: Cluster,
    running: Vec<Background>,
}

impl Healers {
    /// Starts one on every node.
    pub fn start(cluster: &Cluster) -> Self {
        let mut healers = Self {
            cluster: cluster.clone(),
            running: Vec::new(),
        };
        if *EXISTS {
            let nodes = 0..cluster.nodes().len();
            healers.running = nodes.map(|node| healers.launch(node)).collect();
        }
        healers
    }

    fn launch(&self, node: usize) -> Background {
        let node = self.cluster.node(node);
        let log = File::options()
            .create(true)
            .append(true)
            .open(node.place().dir().join("heald.log"))
            .unwrap();
        let mut command = node.command(BINARY);
        command
            .args(["heald", "--log-level", "debug", "--server", node.address()])
            .arg("--run-dir")
            .arg(run_dir(node))
            .arg("--state-dir")
            .arg(state_dir(node))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Background::start(&mut command).unwrap()
    }

    /// SIGKILL for a node's healer, and a new one.
    pub fn kill(&mut self, node: usize) {
        if *EXISTS {
            self.running[node].kill();
            self.running[node] = self.launch(node);
        }
    }

    /// Whether all of them run.
    ///
    /// # Errors
    /// Which one ended by itself.
    pub fn check(&mut self) -> Result<(), String> {
        let ended = self.running.iter_mut().enumerate();
        for (node, healer) in ended {
            if let Some(status) = healer.exited() {
                return Err(format!("the healer of node {node} ended: {status}"));
            }
        }
        Ok(())
    }
}
