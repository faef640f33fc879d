//! What fails: processes, hosts and connections, most of all while marks change or a
//! copy is not on the disk yet.

use bypass_blk::image::dirty_map::geometry::WORDS_AT;
use bypass_blk::image::dirty_map::header::{Header, LEN};

use super::act::Plan;
use super::brick::{Domain, Held, Owner};
use super::rng::Rng;
use super::sim::Sim;
use super::world::World;

/// Within so many steps a client finds out that nobody answers any more.
const DEAF: usize = 1000;

/// Who hangs.
pub const HANGING: Owner = 3;

#[derive(Clone, Copy, Debug)]
enum Fault {
    Daemon(usize),
    Healer(usize),
    Brick(usize),
    Host(usize),
    Connection,
    Parting(usize),
    Client(usize),
    /// An administrator clears the locks of a file of the image on every brick.
    ClearLocks,
    /// A client hangs while it has the data lock of a brick.
    Hang(usize),
    Sync(usize),
    Full(usize),
}

/// The hosts whose failure would do the most harm now: marks are being changed there,
/// or what was healed is not on the disk yet.
fn targets(world: &World) -> (Vec<usize>, Vec<usize>) {
    let whole = |held: &Held| held.domain == Domain::Data && held.last == u64::MAX;
    let marked = |brick: &usize| world.bricks[*brick].locks.iter().any(whole);
    let heals = world.conns.values().filter(|conn| conn.heals);
    let healed = heals.map(|conn| conn.brick);
    (
        (0..world.bricks.len()).filter(marked).collect(),
        healed
            .filter(|brick| world.bricks[*brick].is_unsynced())
            .collect(),
    )
}

/// Marks are being changed somewhere.
pub fn is_marking(world: &World) -> bool {
    !targets(world).0.is_empty()
}

fn choose(world: &mut World, plan: &mut Plan) -> Option<Fault> {
    let (marked, healed) = targets(world);
    let rarely = if marked.is_empty() { 120 } else { 40 };
    let heals = world.rng.chance(60);
    let target = world.rng.pick(if heals { &healed } else { &marked });
    let now = world.rng.chance(rarely) || heals && target.is_some();
    if plan.faults == 0 || !now {
        return None;
    }
    plan.faults -= 1;
    let anywhere = match world.rng.chance(2) {
        true => plan.home,
        false => world.any_brick(),
    };
    let host = target.filter(|_| world.rng.chance(2)).unwrap_or(anywhere);
    let mut faults = vec![
        Fault::Daemon(host),
        Fault::Healer(host),
        Fault::Brick(host),
        Fault::Host(host),
        Fault::Connection,
        Fault::Connection,
        Fault::Parting(host),
    ];
    if plan.rivals {
        faults.extend([Fault::Parting(host); 3]);
    }
    if plan.clients_fail {
        faults.push(Fault::Client(host));
    }
    if plan.syncs_fail {
        faults.extend([Fault::Sync(plan.home); 4]);
    }
    if plan.full {
        faults.extend([Fault::Full(host); 4]);
    }
    if heals {
        faults.extend([Fault::Host(host); 3]);
    }
    if plan.administrator {
        // Who is killed before it has noticed has no chance.
        faults = vec![
            Fault::ClearLocks,
            Fault::ClearLocks,
            Fault::Hang(host),
            Fault::Connection,
            Fault::Parting(host),
            Fault::Brick(host),
            Fault::Healer(host),
        ];
    }
    let index = world.rng.below(faults.len());
    world.tell(|| format!("FAULT {:?}", faults[index]));
    Some(faults[index])
}

/// Something fails, now and then.
pub fn break_something(sim: &Sim, plan: &mut Plan) {
    let Some(fault) = choose(&mut sim.world(), plan) else {
        return;
    };
    match fault {
        Fault::Daemon(host) => kill_daemon(sim, host),
        Fault::Healer(host) => kill_healer(sim, host),
        Fault::Brick(host) => stop_brick(&mut sim.world(), host),
        Fault::Host(host) => crash(sim, host),
        Fault::Connection => {
            let mut world = sim.world();
            let conns: Vec<_> = world.conns.keys().copied().collect();
            if let Some(id) = world.rng.pick(&conns)
                && let Some(conn) = world.conns.get_mut(&id)
            {
                conn.cut = true;
            }
        }
        Fault::Parting(host) => {
            part(&mut sim.world(), host);
        }
        Fault::Sync(host) => sim.world().bricks[host].sync_fails = true,
        Fault::Full(host) => sim.world().bricks[host].full ^= true,
        Fault::Client(brick) => {
            let mut world = sim.world();
            let mut client = std::mem::take(&mut world.client);
            client.toggle(brick, &mut world);
            world.client = client;
        }
        Fault::ClearLocks => {
            let mut world = sim.world();
            // A healer that hangs between its lock and its write would never notice.
            if world.stuck_host().is_none() {
                let file = world.any_file();
                world.clear_locks(file);
            }
        }
        Fault::Hang(brick) => {
            let mut world = sim.world();
            let file = world.any_file();
            world.bricks[brick].try_lock(Held::whole(HANGING, Domain::Data, file));
        }
    }
}

/// The network between a host and all others fails.
pub fn part(world: &mut World, host: usize) {
    world.hosts[host].parted = true;
    let (steps, rng) = (world.steps, &mut world.rng);
    for conn in world.conns.values_mut() {
        let lost = conn.host != conn.brick && (conn.host == host || conn.brick == host);
        if lost && !conn.cut && rng.chance(3) {
            conn.deaf = steps + rng.below(DEAF) as u64;
        }
        conn.cut |= lost;
    }
}

pub fn kill_daemon(sim: &Sim, host: usize) {
    let mut world = sim.world();
    let Some(process) = world.hosts[host].daemon.take() else {
        return;
    };
    if let Some(serving) = world.hosts[host].serving.take() {
        serving.guest.killed(host, &mut world);
    }
    world.reveal_lost(host);
    drop(world);
    sim.kill(process);
}

pub fn kill_healer(sim: &Sim, host: usize) {
    let healer = sim.world().hosts[host].healer.take();
    if let Some(process) = healer {
        sim.kill(process);
    }
}

fn stop_brick(world: &mut World, host: usize) {
    world.bricks[host].stop();
    world.server_dies(host);
}

/// The host loses power.
pub fn crash(sim: &Sim, host: usize) {
    kill_daemon(sim, host);
    kill_healer(sim, host);
    let mut world = sim.world();
    stop_brick(&mut world, host);
    world.hosts[host].up = false;
    let mut rng = world.rng.clone();
    world.bricks[host].crash(&mut rng);
    lose_map(&sim.map(host), &mut rng);
    world.rng = rng;
    world.oracle.crashed(host);
}

/// The next boot finds the map's header as it was last synced, which every change of it
/// is, and of its words what happened to be written back. In a file of its own: what the
/// killed threads do to theirs while they unwind, no process does that lost power.
fn lose_map(path: &std::path::Path, rng: &mut Rng) {
    let Ok(mut bytes) = std::fs::read(path) else {
        return;
    };
    let Ok(mut header) = Header::decode(&bytes, bytes.len() as u64) else {
        return;
    };
    header.boot_id = rng.uuid();
    bytes[..LEN].copy_from_slice(&header.encode());
    if !header.clean {
        let (_, words) = bytes.split_at_mut(WORDS_AT as usize);
        for word in words.chunks_mut(8) {
            if rng.chance(2) {
                word.fill(0);
            }
        }
    }
    let found = path.with_extension("found");
    std::fs::write(&found, bytes).unwrap();
    std::fs::rename(found, path).unwrap();
}
