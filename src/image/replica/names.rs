//! What the bricks of a replica set are called, for people.

use super::brick_set::BrickSet;

/// The names of a replica set's bricks (`host:/path`) and of its volume, for
/// messages.
#[derive(Clone, Debug)]
pub struct Names {
    /// The volume's name.
    pub volume: String,
    /// The bricks' names, in child order.
    pub bricks: Vec<String>,
}

impl Names {
    /// One brick's name.
    pub fn one(&self, brick: usize) -> String {
        let unknown = || format!("brick {brick}");
        self.bricks.get(brick).cloned().unwrap_or_else(unknown)
    }

    /// The names of a set, separated by commas.
    pub fn list(&self, bricks: BrickSet) -> String {
        let names: Vec<_> = bricks.iter().map(|brick| self.one(brick)).collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    }

    /// The brick with this name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.bricks.iter().position(|brick| brick == name)
    }
}
