//! The local copy, as a session sees it past its brick's process.

use std::sync::Arc;
use std::time::Duration;

use bypass_blk::image::local::error::LocalError;
use bypass_blk::image::local::{CopyWatch, Durability, Local};
use bypass_blk::image::replica::brick_set::BrickSet;

use super::brick::{SIZE, Syncs};
use super::piece::Piece;
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
    file: usize,
    baseline: u64,
}

impl SimLocal {
    fn watch_file(&self, file: usize) -> Box<dyn CopyWatch> {
        Box::new(SimWatch {
            sim: self.sim.clone(),
            host: self.host,
            file,
            baseline: self.sim.world().bricks[self.host].files[file].changes,
        })
    }
}

impl Local for SimLocal {
    fn size(&self) -> u64 {
        SIZE
    }

    fn durability(&self) -> Arc<Durability> {
        self.durability.clone()
    }

    fn watch(&self, _pending_names: Arc<[String]>) -> Result<Box<dyn CopyWatch>, LocalError> {
        Ok(self.watch_file(0))
    }

    fn watch_all(&self, _: Arc<[String]>) -> Result<Vec<Box<dyn CopyWatch>>, LocalError> {
        let files = self.sim.world().each_file();
        Ok(files.map(|file| self.watch_file(file)).collect())
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
    fn look<T>(&self, look: impl FnOnce(&Piece) -> T) -> T {
        look(&self.sim.world().bricks[self.host].files[self.file])
    }

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
        world.tell(|| {
            format!(
                "host {} marks {children:?} on file {}",
                self.host, self.file
            )
        });
        world.bricks[self.host].files[self.file].change_row(|row| {
            for child in children
                .iter()
                .filter(|child| row.pending[*child] == 0)
                .collect::<Vec<_>>()
            {
                row.pending[child] = stamp;
            }
        });
        world
            .sync_disk(self.host, self.file, Syncs::Session)
            .map_err(sync_error)
    }

    fn accuses(&self, child: usize) -> bool {
        self.look(|file| file.row.pending[child] != 0)
    }

    fn is_untouched(&self) -> bool {
        self.look(|file| file.changes == self.baseline)
    }

    fn rebase(&mut self) -> Result<(), LocalError> {
        self.baseline = self.look(|file| file.changes);
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
        world.tell(|| format!("host {} flushes file {}", self.host, self.file));
        let synced = world.sync_disk(self.host, self.file, Syncs::Session);
        drop(world);
        self.sim.sched.step();
        synced.map_err(sync_error)
    }
}
