//! A schedule's world and threads, shared by everybody in it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::rng::Rng;
use super::sched::{Process, Sched};
use super::world::{Layout, World};

#[derive(Clone)]
pub struct Sim {
    pub sched: Arc<Sched>,
    world: Arc<Mutex<World>>,
    directory: Arc<tempfile::TempDir>,
}

impl Sim {
    pub fn new(seed: u64, layout: Layout, in_shards: bool, told: bool) -> Self {
        let mut rng = Rng::new(seed);
        // In memory: nothing here survives the test, and syncing it costs nothing.
        let memory = Path::new("/dev/shm");
        let place = match memory.is_dir() {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        let directory = tempfile::Builder::new()
            .prefix("bypass-sim-")
            .tempdir_in(place);
        Self {
            sched: Sched::new(Rng::new(rng.next())),
            world: Arc::new(Mutex::new(World::new(rng, layout, in_shards, told))),
            directory: Arc::new(directory.unwrap()),
        }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The dirty map of a host.
    pub fn map(&self, host: usize) -> PathBuf {
        self.directory.path().join(format!("{host}.map"))
    }

    /// A new process with one thread.
    pub fn start(&self, name: &str, main: impl FnOnce(Process) + Send + 'static) -> Process {
        let process = {
            let mut world = self.world();
            world.next_process += 1;
            world.next_process
        };
        let body = Box::new(move || main(process));
        self.sched.spawn(process, name, body).unwrap();
        process
    }

    /// Ends a process at once: its connections go, each brick hears of it later.
    pub fn kill(&self, process: Process) {
        self.sched.kill(process);
        let mut world = self.world();
        let conns = world.conns.iter().filter(|(_, c)| c.process == process);
        let conns: Vec<_> = conns.map(|(id, _)| *id).collect();
        conns.into_iter().for_each(|id| world.hang_up(id));
    }
}
