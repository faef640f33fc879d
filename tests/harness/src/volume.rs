//! A volume on a [`Cluster`]: its bricks, and the ways to break and mend it.
//!
//! What is on the bricks is read straight from their files; everything else
//! goes through Gluster's own command line.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::copies::{self, Copies};
use crate::error::AtPath;
use crate::heal::HealInfo;
use crate::marks::Marks;
use crate::mount::Mount;
use crate::node::read_pid;
use crate::run::make_dir;
use crate::status::BrickStatus;
use crate::{Cluster, Error, Node, Result, wait_until};

mod changing;

/// How long bricks may take to come up or to be noticed as gone.
pub(crate) const BRICK_DEADLINE: Duration = Duration::from_secs(60);
/// How long a new file may take to be on all bricks.
const FILE_DEADLINE: Duration = Duration::from_secs(30);
const CHUNK: usize = 1 << 20;

/// What kind of volume, and over which nodes: brick *k* is on node *k* modulo
/// the number of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// One replica set of so many full copies.
    Replica(usize),
    /// Two full copies and an arbiter as third brick.
    Arbiter,
    /// Files spread over several replica sets.
    DistributedReplicate {
        /// How many replica sets.
        sets: usize,
        /// How many copies in each.
        replica: usize,
    },
    /// Files spread over one brick per node, no copies.
    Distribute,
}

impl VolumeKind {
    fn bricks(self, nodes: usize) -> usize {
        match self {
            VolumeKind::Replica(replica) => replica,
            VolumeKind::Arbiter => 3,
            VolumeKind::DistributedReplicate { sets, replica } => sets * replica,
            VolumeKind::Distribute => nodes,
        }
    }

    fn create_args(self) -> Vec<String> {
        match self {
            VolumeKind::Replica(replica) | VolumeKind::DistributedReplicate { replica, .. } => {
                vec!["replica".into(), replica.to_string()]
            }
            VolumeKind::Arbiter => ["replica", "3", "arbiter", "1"].map(String::from).into(),
            VolumeKind::Distribute => Vec::new(),
        }
    }
}

/// One brick of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brick {
    /// Its number in the volume, from 0.
    pub index: usize,
    /// The node it is on.
    pub node: usize,
    /// Its folder.
    pub dir: PathBuf,
    /// Whether it is an arbiter, whose files are empty.
    pub arbiter: bool,
}

/// What a new image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Nothing: one hole.
    Sparse,
    /// Bytes that do not repeat, the same in every run.
    Noise,
}

/// A volume. Handles are cheap to clone; the volume goes with its cluster.
#[derive(Debug, Clone)]
pub struct Volume {
    cluster: Cluster,
    name: String,
    bricks: Vec<Brick>,
}

impl Volume {
    pub(crate) fn create(
        cluster: &Cluster,
        name: &str,
        kind: VolumeKind,
        options: &[(&str, &str)],
    ) -> Result<Volume> {
        let nodes = cluster.nodes().len();
        let bricks: Vec<Brick> = (0..kind.bricks(nodes))
            .map(|index| Brick {
                index,
                node: index % nodes,
                dir: cluster
                    .node(index % nodes)
                    .bricks_dir()
                    .join(format!("{name}-{index}")),
                arbiter: kind == VolumeKind::Arbiter && index == 2,
            })
            .collect();
        let volume = Volume {
            cluster: cluster.clone(),
            name: name.to_owned(),
            bricks,
        };
        let mut args = vec!["volume".to_owned(), "create".into(), name.into()];
        args.extend(kind.create_args());
        for brick in &volume.bricks {
            make_dir(&brick.dir)?;
            args.push(volume.brick_name(brick.index));
        }
        args.push("force".into());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        cluster.gluster(0, &args)?;
        for (key, value) in options {
            volume.set(key, value)?;
        }
        Ok(volume)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster it is on.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// All bricks, in the volume's order.
    pub fn bricks(&self) -> &[Brick] {
        &self.bricks
    }

    /// Brick number `index`, from 0.
    ///
    /// # Panics
    /// When there is no such brick: a mistake in the test.
    pub fn brick(&self, index: usize) -> &Brick {
        &self.bricks[index]
    }

    /// The node a brick is on.
    pub fn brick_node(&self, index: usize) -> &Node {
        self.cluster.node(self.brick(index).node)
    }

    /// A brick's folder.
    pub fn brick_dir(&self, index: usize) -> &Path {
        &self.brick(index).dir
    }

    /// A brick as Gluster names it: `ADDRESS:/folder`.
    pub fn brick_name(&self, index: usize) -> String {
        let node = self.brick_node(index);
        format!("{}:{}", node.address(), self.brick_dir(index).display())
    }

    /// The file of `image` (a path inside the volume) on a brick.
    pub fn brick_file(&self, index: usize, image: &str) -> PathBuf {
        self.brick_dir(index).join(image.trim_start_matches('/'))
    }

    /// Starts the volume and waits until every brick is up.
    pub fn start(&self) -> Result<()> {
        self.gluster(&["start"], &[])?;
        self.wait_bricks_up()
    }

    /// `volume start … force`: brings back the bricks that are down.
    pub fn start_force(&self) -> Result<()> {
        self.gluster(&["start"], &["force"])?;
        self.wait_bricks_up()
    }

    /// Stops the volume.
    pub fn stop(&self) -> Result<()> {
        self.gluster(&["stop"], &["force"]).map(drop)
    }

    /// Sets a volume option.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        self.gluster(&["set"], &[key, value]).map(drop)
    }

    /// Sets all options of a group, as `gluster volume set NAME group GROUP` does.
    pub fn set_group(&self, group: &str) -> Result<()> {
        for node in self.cluster.nodes() {
            node.install_option_groups()?;
        }
        self.set("group", group)
    }

    /// Takes every lock of an image away, of one kind (`inode`, `posix`), from whoever has it.
    pub fn clear_locks(&self, image: &str, kind: &str) -> Result<()> {
        let path = format!("/{image}");
        self.gluster(&["clear-locks"], &[&path, "kind", "all", kind])
            .map(drop)
    }

    /// Switches the self-heal daemons of all nodes on or off.
    pub fn set_self_heal_daemon(&self, on: bool) -> Result<()> {
        self.set("cluster.self-heal-daemon", if on { "on" } else { "off" })
    }

    /// `gluster volume VERB… NAME ARGS…` on the first node that lives and is in touch.
    pub(crate) fn gluster(&self, verb: &[&str], args: &[&str]) -> Result<String> {
        let mut line = vec!["volume"];
        line.extend_from_slice(verb);
        line.push(&self.name);
        line.extend_from_slice(args);
        self.cluster.gluster(self.live_node(), &line)
    }

    fn live_node(&self) -> usize {
        let fit = |node: &&Node| {
            !self.cluster.is_cut(node.index()) && node.glusterd_pid().is_ok_and(|pid| pid.is_some())
        };
        self.cluster.nodes().iter().find(fit).map_or(0, Node::index)
    }

    /// The process id of a brick's `glusterfsd`; `None` when it is down.
    pub fn brick_pid(&self, index: usize) -> Result<Option<u32>> {
        // The name is made as in glusterd.h, GLUSTERD_GET_BRICK_PIDFILE.
        let node = self.brick_node(index);
        let path = self.brick_dir(index).display().to_string();
        let file = format!(
            "{}-{}.pid",
            node.address(),
            path.trim_start_matches('/').replace('/', "-")
        );
        read_pid(&node.run_dir().join("vols").join(&self.name).join(file))
    }

    /// Waits until all bricks on nodes with a live glusterd are up.
    pub fn wait_bricks_up(&self) -> Result<()> {
        wait_until("all bricks to be up", BRICK_DEADLINE, || {
            let statuses = self.brick_statuses()?;
            match statuses.iter().find(|brick| !brick.online) {
                Some(brick) => Err(format!("{} is down", brick.name)),
                None if statuses.is_empty() => Err("no brick is listed".into()),
                None => Ok(()),
            }
        })
    }

    pub(crate) fn brick_statuses(&self) -> std::result::Result<Vec<BrickStatus>, String> {
        let xml = self
            .gluster(&["status"], &["--xml"])
            .map_err(|error| error.to_string())?;
        Ok(BrickStatus::parse_all(&xml))
    }

    /// `gluster volume heal … info`, asked on a node.
    pub fn heal_info(&self, node: usize) -> Result<HealInfo> {
        let text = self.cluster.node(node).heal_info(&self.name)?;
        HealInfo::parse(&text)
    }

    /// `gluster volume heal`: the self-heal daemons look at their indices now.
    pub fn trigger_heal(&self) -> Result<()> {
        self.gluster(&["heal"], &[]).map(drop)
    }

    /// Lets the stock self-heal daemons work until no copy of `image` carries a
    /// mark and `heal info` lists nothing. Says nothing of the copies' bytes:
    /// that is for [`Volume::copies_equal`].
    pub fn wait_healed(&self, image: &str, deadline: Duration) -> Result<()> {
        let node = self.live_node();
        wait_until(format!("{image} to be healed"), deadline, || {
            // Refused while a daemon is not connected to its bricks yet.
            let asked = self.trigger_heal();
            let marks = self.marks(image).map_err(|error| error.to_string())?;
            if !marks.is_clean() {
                return Err(format!("marks:\n{marks}heal asked: {asked:?}"));
            }
            let info = self.heal_info(node).map_err(|error| error.to_string())?;
            if info.entries() == 0 && info.all_connected() {
                Ok(())
            } else {
                Err(format!("{info:?}"))
            }
        })
    }

    /// Mounts the volume on a node through FUSE.
    pub fn mount(&self, node: usize) -> Result<Mount> {
        Mount::new(self.cluster.node(node), &self.name, &[])
    }

    /// As [`Volume::mount`], with more options for the `glusterfs` client.
    pub fn mount_with(&self, node: usize, options: &[&str]) -> Result<Mount> {
        Mount::new(self.cluster.node(node), &self.name, options)
    }

    /// Makes an image of `bytes` bytes through a mount, and waits until it is
    /// on every brick of one replica set.
    pub fn create_image(&self, image: &str, bytes: u64, fill: Fill) -> Result<()> {
        let mount = self.mount(self.live_node())?;
        let path = mount.path().join(image.trim_start_matches('/'));
        let file = File::create(&path).at("create", &path)?;
        match fill {
            Fill::Sparse => file.set_len(bytes).at("size", &path)?,
            Fill::Noise => write_noise(&file, bytes).at("fill", &path)?,
        }
        file.sync_all().at("sync", &path)?;
        drop(file);
        // The client removes its own "dirty" a moment after the last write.
        wait_until(format!("{image} to be settled"), FILE_DEADLINE, || {
            let marks = self.marks(image).map_err(|error| error.to_string())?;
            // Bricks of another replica set have no such file.
            let mut counters = marks.rows.iter().flatten().flat_map(|row| row.values());
            match counters.all(|pending| pending.is_zero()) {
                true => Ok(()),
                false => Err(marks.to_string()),
            }
        })?;
        drop(mount);
        wait_until(format!("{image} on the bricks"), FILE_DEADLINE, || {
            let missing = self
                .data_files(image)
                .into_iter()
                .find(|file| std::fs::metadata(file).map(|meta| meta.size()).ok() != Some(bytes));
            match missing {
                Some(file) => Err(format!("{} is missing or short", file.display())),
                None => Ok(()),
            }
        })
    }

    /// The files of `image` that hold data: not those on arbiters, not the link
    /// files of DHT, not those of other replica sets.
    fn data_files(&self, image: &str) -> Vec<PathBuf> {
        let full = self.bricks.iter().filter(|brick| !brick.arbiter);
        let mut files: Vec<PathBuf> = full
            .map(|brick| self.brick_file(brick.index, image))
            .collect();
        if self.bricks.len() > 3 {
            files.retain(|file| file.exists() && !copies::is_link_file(file));
        }
        files
    }

    /// The `trusted.afr.*` xattrs of all copies of `image`, straight from the
    /// bricks' files.
    pub fn marks(&self, image: &str) -> Result<Marks> {
        Marks::read(
            &self.name,
            self.bricks
                .iter()
                .map(|brick| self.brick_file(brick.index, image)),
        )
    }

    /// Compares all full copies of `image` byte for byte, straight from the
    /// bricks' files.
    pub fn copies_equal(&self, image: &str) -> Result<Copies> {
        let files = self.data_files(image);
        if files.len() < 2 {
            return Err(Error::Unsuitable(format!(
                "{image} has {} copies, nothing to compare",
                files.len()
            )));
        }
        copies::compare(&files)
    }
}

/// Fills a file with a fixed pseudo-random sequence (xorshift64).
fn write_noise(file: &File, bytes: u64) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(CHUNK, file);
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..bytes / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.write_all(&state.to_le_bytes())?;
    }
    out.write_all(&vec![0; (bytes % 8) as usize])?;
    out.flush()
}
