//! A trusted pool of real `glusterd`s, one per network namespace.
//!
//! Owns the nodes and the cables between them. Volumes are in `volume.rs`.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::network::{Network, address};
use crate::process::kill_and_wait;
use crate::volume::{Volume, VolumeKind};
use crate::{Error, Node, Place, Result, Run, wait_until};

/// How long the nodes may take to accept each other.
const PEERS_DEADLINE: Duration = Duration::from_secs(60);
/// How long the pool may be busy with another transaction.
const BUSY_DEADLINE: Duration = Duration::from_secs(60);

/// The cluster. All of it is gone when the last handle to it is dropped.
#[derive(Debug, Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    nodes: Vec<Node>,
    network: Network,
}

impl Cluster {
    /// Brings up `nodes` nodes as one pool; about five seconds for three.
    pub fn start(nodes: usize) -> Result<Cluster> {
        let run = Run::begin()?;
        let network = Network::build(&run, nodes)?;
        let nodes = (0..nodes)
            .map(|index| {
                let dir = run.dir().join(format!("n{}", index + 1));
                Ok(Node {
                    index,
                    address: address(index),
                    place: Place::in_netns(&run, network.netns(index), dir)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let cluster = Cluster {
            inner: Arc::new(Inner { nodes, network }),
        };
        cluster.start_all_glusterds()?;
        cluster.join()?;
        Ok(cluster)
    }

    fn start_all_glusterds(&self) -> Result<()> {
        thread::scope(|scope| {
            let starts: Vec<_> = self
                .nodes()
                .iter()
                .map(|node| scope.spawn(|| node.start_glusterd()))
                .collect();
            starts.into_iter().try_for_each(|start| {
                start
                    .join()
                    .unwrap_or_else(|_| Err(Error::Unsuitable("a node's start panicked".into())))
            })
        })
    }

    fn join(&self) -> Result<()> {
        for node in self.nodes().iter().skip(1) {
            self.gluster(0, &["peer", "probe", node.address()])?;
        }
        self.wait_peers()
    }

    /// Waits until every node that runs and is not cut sees all others of that
    /// kind as connected peers.
    pub fn wait_peers(&self) -> Result<()> {
        let up =
            |node: &&Node| !self.is_cut(node.index()) && matches!(node.glusterd_pid(), Ok(Some(_)));
        let up: Vec<&Node> = self.nodes().iter().filter(up).collect();
        wait_until("all peers to be connected", PEERS_DEADLINE, || {
            for node in &up {
                let status = node
                    .gluster_once(&["peer", "status"])
                    .map_err(|error| error.to_string())?;
                if status.matches("Peer in Cluster (Connected)").count() < up.len() - 1 {
                    return Err(format!("node {}: {status}", node.index()));
                }
            }
            Ok(())
        })
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.inner.nodes
    }

    /// Node number `index`, from 0.
    ///
    /// # Panics
    /// When there is no such node: a mistake in the test.
    pub fn node(&self, index: usize) -> &Node {
        &self.inner.nodes[index]
    }

    /// The `gluster` command line on a node, never asking back; returns what it
    /// printed. Waits while another transaction has the pool.
    pub fn gluster(&self, node: usize, args: &[&str]) -> Result<String> {
        wait_until("the pool to be free", BUSY_DEADLINE, || {
            match self.node(node).gluster_once(args) {
                Err(error) if is_busy(&error) => Err(error.to_string()),
                other => Ok(other),
            }
        })?
    }

    /// Creates a volume (not started yet) with its `options` set.
    pub fn create_volume(
        &self,
        name: &str,
        kind: VolumeKind,
        options: &[(&str, &str)],
    ) -> Result<Volume> {
        Volume::create(self, name, kind, options)
    }

    /// Pulls a node's cable: it hears nobody and nobody hears it, without any
    /// connection being closed.
    pub fn cut(&self, node: usize) -> Result<()> {
        self.inner.network.cut(node)
    }

    /// Puts a node's cable back.
    pub fn restore(&self, node: usize) -> Result<()> {
        self.inner.network.restore(node)
    }

    /// Makes two nodes silent to each other, while all others hear both.
    pub fn part(&self, one: usize, other: usize) -> Result<()> {
        self.inner.network.part(one, other)
    }

    /// Undoes [`Cluster::part`], if it was done.
    pub fn rejoin(&self, one: usize, other: usize) -> Result<()> {
        self.inner.network.rejoin(one, other)
    }

    /// Whether a node's cable is pulled.
    pub fn is_cut(&self, node: usize) -> bool {
        self.inner.network.is_cut(node)
    }

    /// Kills a node's `glusterd` with SIGKILL; its bricks live on.
    pub fn kill_glusterd(&self, node: usize) -> Result<()> {
        self.node(node).kill_glusterd()
    }

    /// Starts a node's `glusterd` again; it starts the bricks that are missing.
    pub fn restart_glusterd(&self, node: usize) -> Result<()> {
        self.node(node).start_glusterd()
    }

    /// A power cut: the node goes silent first, then everything on it is
    /// killed, so that no peer sees a connection closed. Page cache survives; /run does
    /// not, or glusterd might take another process for the brick of an old pid file.
    pub fn crash_node(&self, node: usize) -> Result<()> {
        self.cut(node)?;
        for pid in self.inner.network.processes(node) {
            kill_and_wait(pid)?;
        }
        self.node(node).empty_run_dir()
    }

    /// Brings a crashed node back: cable, `glusterd`, bricks, peers.
    pub fn boot_node(&self, node: usize) -> Result<()> {
        self.restore(node)?;
        self.restart_glusterd(node)?;
        self.wait_peers()
    }
}

/// Whether glusterd refused because another transaction has the cluster's or
/// the volume's lock.
fn is_busy(error: &Error) -> bool {
    let Error::Command { output, .. } = error else {
        return false;
    };
    ["Another transaction", "Locking failed", "Please try again"]
        .iter()
        .any(|text| output.contains(text))
}
