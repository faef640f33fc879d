//! What happens between two steps of the threads: news travels, guests and clients
//! write, stock heal heals, and now and then something fails.

use bypass_blk::image::dirty::geometry::WORDS_AT;
use bypass_blk::image::dirty::header::{Header, LEN};

use super::brick::{BRICKS, Domain, Held};
use super::sim::Sim;
use super::world::World;
use super::{daemon, healer};

/// What may happen in a schedule.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Faults still to come.
    pub faults: usize,
    /// Where daemons start.
    pub home: usize,
    /// And now and then on any other host.
    pub rivals: bool,
    /// Ordinary clients write.
    pub clients: bool,
    /// And now and then do not reach a brick.
    pub clients_fail: bool,
    /// Stock heal runs all the time.
    pub stock: bool,
    /// Nothing is started or broken: all comes to an end.
    pub calm: bool,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Daemon(usize),
    Healer(usize),
    Brick(usize),
    Host(usize),
    Connection,
    Parting(usize),
    Client(usize),
}

/// One step.
pub fn act(sim: &Sim, plan: &mut Plan) {
    {
        let mut world = sim.world();
        world.steps += 1;
        news(&mut world);
        guests(&mut world, plan);
        others(&mut world, plan);
        world.check_unaccused();
    }
    if !plan.calm {
        start_something(sim, plan);
        mend_something(sim);
        if plan.faults > 0 && is_bad_moment(sim) {
            plan.faults -= 1;
            break_something(sim, plan);
        }
    }
}

/// Things break more often while marks are stored or removed.
fn is_bad_moment(sim: &Sim) -> bool {
    let mut world = sim.world();
    let whole = |held: &Held| held.domain == Domain::Data && held.last == u64::MAX;
    let delicate = world.bricks.iter().any(|b| b.locks.iter().any(whole));
    world.rng.chance(if delicate { 15 } else { 60 })
}

/// Each end of a connection learns in its own time that it is gone.
fn news(world: &mut World) {
    if world.rng.chance(4) {
        let gone = world
            .conns
            .iter()
            .filter(|(_, c)| c.client && (c.cut || !c.server));
        let gone: Vec<_> = gone.map(|(id, _)| *id).collect();
        if let Some(id) = world.rng.pick(&gone) {
            world.client_notices(id);
        }
    }
    if world.rng.chance(6) {
        let gone = world
            .conns
            .iter()
            .filter(|(_, c)| c.server && (c.cut || !c.client));
        let gone: Vec<_> = gone.map(|(id, _)| *id).collect();
        if let Some(id) = world.rng.pick(&gone) {
            world.server_notices(id);
        }
    }
    if world.rng.chance(3) {
        world.carry_out_one();
    }
}

fn guests(world: &mut World, plan: &Plan) {
    for host in 0..BRICKS {
        if world.rng.chance(2)
            && let Some(mut serving) = world.hosts[host].serving.take()
        {
            serving.guest.quiet ^= !plan.calm && world.rng.chance(80);
            serving.guest.step(host, world);
            world.hosts[host].serving = Some(serving);
        }
    }
}

fn others(world: &mut World, plan: &Plan) {
    let idle = world.client.is_idle();
    if world.rng.chance(4) && (!idle || plan.clients && !plan.calm) {
        let mut client = std::mem::take(&mut world.client);
        client.step(world);
        world.client = client;
    }
    let begins = plan.stock && (plan.calm || world.rng.chance(30));
    if world.rng.chance(6) && (begins || !world.stock.is_idle()) {
        let mut stock = std::mem::take(&mut world.stock);
        stock.step(world);
        world.stock = stock;
    }
}

fn start_something(sim: &Sim, plan: &Plan) {
    let mut world = sim.world();
    if !world.rng.chance(30) {
        return;
    }
    let host = match plan.rivals && world.rng.chance(4) {
        true => world.rng.below(BRICKS),
        false => plan.home,
    };
    let on = &world.hosts[host];
    let (free, serving) = (
        on.up && on.daemon.is_none() && on.asking == 0,
        on.serving.is_some(),
    );
    let healed = on.healer.is_some_and(|healer| sim.sched.is_alive(healer));
    let (close, heal) = (world.rng.chance(12), world.rng.chance(2));
    if serving && close {
        world.hosts[host].close = true;
    }
    drop(world);
    if free {
        daemon::start(sim, host);
    } else if serving && heal && !healed {
        healer::start(sim, host);
    }
}

fn mend_something(sim: &Sim) {
    let mut world = sim.world();
    if !world.rng.chance(40) {
        return;
    }
    let host = world.rng.below(BRICKS);
    if world.rng.chance(3) {
        world.hosts[host].parted = false;
    } else {
        mend(&mut world, host);
    }
}

/// The host has power and its brick's process runs.
fn mend(world: &mut World, host: usize) {
    if !world.hosts[host].up || !world.bricks[host].up {
        world.tell(|| format!("host {host}: its brick is back"));
        world.hosts[host].up = true;
        world.bricks[host].start();
    }
}

/// Everything is back.
pub fn mend_all(sim: &Sim) {
    let mut world = sim.world();
    world.client.cut = [false; BRICKS];
    for host in 0..BRICKS {
        world.hosts[host].parted = false;
        mend(&mut world, host);
    }
}

fn break_something(sim: &Sim, plan: &Plan) {
    let fault = {
        let mut world = sim.world();
        let host = match world.rng.chance(2) {
            true => plan.home,
            false => world.rng.below(BRICKS),
        };
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
        let index = world.rng.below(faults.len());
        world.tell(|| format!("FAULT {:?}", faults[index]));
        faults[index]
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
            let mut world = sim.world();
            world.hosts[host].parted = true;
            for conn in world.conns.values_mut() {
                conn.cut |= conn.host != conn.brick && (conn.host == host || conn.brick == host);
            }
        }
        Fault::Client(brick) => {
            let mut world = sim.world();
            let mut client = std::mem::take(&mut world.client);
            client.toggle(brick, &mut world);
            world.client = client;
        }
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
/// is, and of its words what happened to be written back.
fn lose_map(path: &std::path::Path, rng: &mut super::rng::Rng) {
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
    std::fs::write(path, bytes).unwrap();
}
