//! The local copy, as a session sees it past its brick's process.

use std::sync::Arc;
use std::time::Duration;

use bypass_blk::image::local::error::LocalError;
use bypass_blk::image::local::{CopyWatch, Durability, Local};
use bypass_blk::image::replica::brick_set::BrickSet;

use super::brick::{SIZE, Syncs};
use super::sim::Sim;

/// A part of the time that a slow flush takes.
const SLOW: Duration = Duration::from_secs(4);

pub struct SimLocal {
    pub sim: Sim,
    pub host: usize,
    /// As long as the daemon lives.
    pub durability: Arc<Durability>,
}

struct SimWatch {
    sim: Sim,
    host: usize,
    baseline: u64,
}

impl Local for SimLocal {
    fn size(&self) -> u64 {
        SIZE
    }

    fn durability(&self) -> Arc<Durability> {
        self.durability.clone()
    }

    fn watch(&self, _pending_names: Arc<[String]>) -> Result<Box<dyn CopyWatch>, LocalError> {
        Ok(Box::new(SimWatch {
            sim: self.sim.clone(),
            host: self.host,
            baseline: self.sim.world().bricks[self.host].changes,
        }))
    }
}

/// As long as a flush takes its time.
struct Slow<'a>(&'a SimWatch);

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        self.0.sim.world().hosts[self.0.host].slow -= 1;
    }
}

impl SimWatch {
    /// Now and then a flush takes long.
    fn dawdle(&self) {
        let mut world = self.sim.world();
        let slow = world.slow_flushes == Some(self.host) && world.rng.chance(4);
        if !slow {
            drop(world);
            return self.sim.sched.step();
        }
        world.tell(|| format!("host {}: its flush takes long", self.host));
        world.hosts[self.host].slow += 1;
        let limit = SLOW * (1 + world.rng.below(8) as u32);
        drop(world);
        let _slow = Slow(self);
        self.sim.sched.wait(&mut || false, Some(limit));
    }
}

fn sync_error(source: std::io::Error) -> LocalError {
    let path = "the simulated file".into();
    LocalError::Sync { path, source }
}

impl CopyWatch for SimWatch {
    fn mark(&self, children: BrickSet, stamp: i32) -> Result<(), LocalError> {
        self.sim.sched.step();
        let mut world = self.sim.world();
        world.tell(|| format!("host {} marks {children:?} on its file", self.host));
        world.bricks[self.host].change_row(|row| {
            for child in children
                .iter()
                .filter(|child| row.pending[*child] == 0)
                .collect::<Vec<_>>()
            {
                row.pending[child] = stamp;
            }
        });
        world
            .sync_disk(self.host, Syncs::Session)
            .map_err(sync_error)
    }

    fn accuses(&self, child: usize) -> bool {
        self.sim.world().bricks[self.host].row.pending[child] != 0
    }

    fn is_untouched(&self) -> bool {
        self.sim.world().bricks[self.host].changes == self.baseline
    }

    fn rebase(&mut self) -> Result<(), LocalError> {
        self.baseline = self.sim.world().bricks[self.host].changes;
        Ok(())
    }

    fn resize(&mut self, _from: u64, _to: u64) -> Result<(), LocalError> {
        unreachable!("simulated images keep their size")
    }

    fn free(&self) -> Result<u64, LocalError> {
        unreachable!("simulated images keep their size")
    }

    fn sync(&self) -> Result<(), LocalError> {
        self.dawdle();
        let mut world = self.sim.world();
        world.tell(|| format!("host {} flushes its file", self.host));
        let synced = world.sync_disk(self.host, Syncs::Session);
        drop(world);
        self.sim.sched.step();
        synced.map_err(sync_error)
    }
}
