//! Bricks that are added to a volume or take another's place.

use super::{Brick, Volume};
use crate::Result;
use crate::run::make_dir;

impl Volume {
    /// Adds a brick on a node to the only replica set, which gets one more copy.
    /// Returns the volume as it is then.
    pub fn add_brick(&self, node: usize) -> Result<Volume> {
        let mut grown = self.clone();
        let name = grown.new_brick(self.bricks.len(), node)?;
        let replica = grown.bricks.len().to_string();
        self.gluster(&["add-brick"], &["replica", &replica, &name, "force"])?;
        grown.wait_bricks_up()?;
        Ok(grown)
    }

    /// Adds a replica set as large as the first, `replica` bricks, on a node. Returns the volume as
    /// it is then.
    pub fn add_set(&self, replica: usize, node: usize) -> Result<Volume> {
        let mut grown = self.clone();
        let first = self.bricks.len();
        let names: Result<Vec<_>> = (first..first + replica)
            .map(|index| grown.new_brick(index, node))
            .collect();
        let names = names?;
        let mut args: Vec<&str> = names.iter().map(String::as_str).collect();
        args.push("force");
        self.gluster(&["add-brick"], &args)?;
        grown.wait_bricks_up()?;
        Ok(grown)
    }

    /// Has files moved to where their names belong, in the background.
    pub fn start_rebalance(&self) -> Result<()> {
        self.gluster(&["rebalance"], &["start", "force"]).map(drop)
    }

    /// What the command line says of that.
    pub fn rebalance_status(&self) -> Result<String> {
        self.gluster(&["rebalance"], &["status"])
    }

    /// Replaces a brick by an empty one on a node. Returns the volume as it is then.
    pub fn replace_brick(&self, index: usize, node: usize) -> Result<Volume> {
        let mut changed = self.clone();
        let (old, new) = (self.brick_name(index), changed.new_brick(index, node)?);
        self.gluster(&["replace-brick"], &[&old, &new, "commit", "force"])?;
        changed.wait_bricks_up()?;
        Ok(changed)
    }

    /// Makes the folder of a brick that takes place `index`, and returns its name.
    fn new_brick(&mut self, index: usize, node: usize) -> Result<String> {
        let folder = format!("{}-{index}-new", self.name);
        let brick = Brick {
            index,
            node,
            dir: self.cluster.node(node).bricks_dir().join(folder),
            arbiter: false,
        };
        make_dir(&brick.dir)?;
        match self.bricks.get_mut(index) {
            Some(place) => *place = brick,
            None => self.bricks.push(brick),
        }
        Ok(self.brick_name(index))
    }
}
