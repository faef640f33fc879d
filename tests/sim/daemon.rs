//! A daemon's process: the real session, opened over simulated bricks.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, UNIX_EPOCH};

use bypass_blk::image::dirty_map::{DirtyMap, ExtentSize};
use bypass_blk::image::replica::brick_port::{BrickPort, Fence};
use bypass_blk::image::replica::holder::Holder;
use bypass_blk::image::replica::names::Names;
use bypass_blk::image::scheduler::Scheduler;
use bypass_blk::image::session::ending::Ending;
use bypass_blk::image::session::life::{Session, Setup};
use bypass_blk::image::session::map_place::MapPlace;
use bypass_blk::image::session::terms::{FenceWish, HOT_FILES, Terms};

use super::brick::EXTENT;
use super::guest::Guest;
use super::local::SimLocal;
use super::port::SimPort;
use super::sched::{self, Process};
use super::sim::Sim;
use super::world::Serving;

/// How long a write waits for a quorum: about as long as a short partition.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(4);
/// How long an open waits for locks.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Starts one on `host`.
pub fn start(sim: &Sim, host: usize) {
    let own = sim.clone();
    let process = sim.start(&format!("daemon-{host}"), move |process| {
        serve(&own, host, process);
        let mut world = own.world();
        world.reveal_lost(host);
        world.hosts[host].daemon = None;
        world.hosts[host].close = false;
    });
    let mut world = sim.world();
    world.tell(|| format!("host {host}: a daemon starts"));
    world.hosts[host].daemon = Some(process);
    world.hosts[host].close = false;
}

fn serve(sim: &Sim, host: usize, process: Process) {
    let me = holder(sim, host, process);
    let threads = Scheduler::simulated(Arc::new(sched::Scheduler {
        sched: sim.sched.clone(),
        process,
    }));
    let local = SimLocal {
        sim: sim.clone(),
        host,
        durability: Arc::default(),
    };
    let stopping = sim.clone();
    let opened = Session::open_on(
        threads,
        setup(sim, host, process, &me),
        &AtomicBool::new(false),
        |_| Ok(local),
        move |why| {
            let mut world = stopping.world();
            world.tell(|| format!("host {host}: stopped: {why:?}"));
            world.hosts[host].close = true;
        },
    );
    let session = match opened {
        Ok((session, _)) => session,
        Err(error) => {
            sim.world()
                .tell(|| format!("host {host}: not opened: {error}"));
            return;
        }
    };
    {
        let mut world = sim.world();
        world.opened += 1;
        world.tell(|| format!("host {host}: open"));
        let copy = world.bricks[host].cache.clone();
        let lost = world.oracle.missing(&copy);
        assert!(
            lost.is_none(),
            "host {host} serves a stale copy: {}",
            lost.unwrap_or_default()
        );
        world.oracle.opened(host, &copy);
        world.hosts[host].serving = Some(Serving {
            process,
            session: me.session,
            handle: session.handle(),
            map: DirtyMap::attach(&sim.map(host)).unwrap(),
            guest: Guest::new(session.gate()),
        });
    }
    // The guest ends what it began; then the daemon lets go of the disk.
    let mut drained = || {
        let mut world = sim.world();
        let close = world.hosts[host].close;
        let Some(serving) = &mut world.hosts[host].serving else {
            return true;
        };
        serving.guest.quiet |= close;
        close && serving.guest.is_idle()
    };
    sim.sched.wait(&mut drained, None);
    sim.world().hosts[host].serving = None;
    let ending = session.close();
    sim.world()
        .tell(|| format!("host {host}: closed: {ending:?}"));
    if ending == Ending::AllEqual {
        // As the state directory does then.
        let _ = std::fs::remove_file(sim.map(host));
    }
}

/// A process's ways to all bricks.
pub fn ports(sim: &Sim, host: usize, process: Process, me: &Holder) -> Vec<Box<dyn BrickPort>> {
    let port = |brick| -> Box<dyn BrickPort> {
        Box::new(SimPort {
            sim: sim.clone(),
            process,
            host,
            brick,
            me: me.clone(),
            conn: None,
            file: 0,
            taken: Vec::new(),
        })
    };
    let bricks = sim.world().bricks.len();
    (0..bricks).map(port).collect()
}

/// Who a process says it is.
pub fn holder(sim: &Sim, host: usize, process: Process) -> Holder {
    Holder {
        host: format!("host{host}"),
        pid: process as u32,
        since: UNIX_EPOCH,
        session: sim.world().rng.uuid(),
    }
}

fn setup(sim: &Sim, host: usize, process: Process, me: &Holder) -> Setup {
    let mut world = sim.world();
    let (shape, layout) = (world.shape(host), world.files.clone());
    // With few, each file cools down as soon as it is healed.
    let few = !layout.is_whole() && world.rng.chance(2);
    drop(world);
    Setup {
        shape,
        names: Names {
            volume: "gv0".to_owned(),
            bricks: (0..shape.bricks)
                .map(|brick| format!("host{brick}:/brick"))
                .collect(),
        },
        ports: ports(sim, host, process, me),
        layout,
        pending_names: vec![String::new(); shape.bricks].into(),
        me: me.clone(),
        terms: Terms {
            read_only: false,
            fence: FenceWish::Exactly(Fence::Advisory),
            lock_timeout: LOCK_TIMEOUT,
            urgent: false,
            hot_files: if few { 1 } else { HOT_FILES },
        },
        quorum_timeout: QUORUM_TIMEOUT,
        map: MapPlace {
            path: sim.map(host),
            extent_size: Some(ExtentSize::new(EXTENT as u32).unwrap()),
        },
        on_end: Box::new(|_, _| {}),
        on_return: Box::new(|| {}),
    }
}
