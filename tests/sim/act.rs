//! What happens between two steps of the threads: news travels, guests and clients
//! write, stock heal heals, daemons start, and what failed comes back.

use super::brick::BRICKS;
use super::sim::Sim;
use super::world::World;
use super::{daemon, fault, healer};

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
        fault::break_something(sim, plan);
    }
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
