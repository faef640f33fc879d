//! What happens between two steps of the threads: news travels, guests and clients
//! write, stock heal heals, daemons start, and what failed comes back.

use bypass_blk::image::session::state_machine::Phase;

use super::brick::BRICKS;
use super::promotion::{self, Promoting};
use super::sim::Sim;
use super::world::{Layout, Serving, World};
use super::{daemon, fault, healer};

/// What may happen in a schedule.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub layout: Layout,
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
    /// The disk at home fails to sync now and then, and says so once.
    pub syncs_fail: bool,
    /// Disks of peers are full for a while.
    pub full: bool,
    /// Stock heal runs all the time.
    pub stock: bool,
    /// Healers get stuck, and their sessions end meanwhile.
    pub outlived: bool,
    /// The session at home is cut off while nothing is marked, or in the middle of storing
    /// marks, and another one begins.
    pub overtaken: bool,
    /// Locks are cleared, and clients hang with theirs; nothing is killed.
    pub administrator: bool,
    /// A host with the newest data fails, and another copy is promoted; so often.
    pub promotes: usize,
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
        world.note_recovered();
        if !world.robbed {
            world.check_unaccused();
        }
        // Else a peer may have what others wrote.
        if !plan.rivals && !plan.overtaken && !plan.clients && !plan.stock {
            world.check_clean();
        }
    }
    if !plan.calm {
        start_something(sim, plan);
        if plan.outlived {
            outlive(sim);
        }
        if plan.overtaken {
            overtake(sim, plan);
        }
        if plan.promotes > 0 {
            give_up_a_host(sim, plan);
        }
        mend_something(sim, plan);
        fault::break_something(sim, plan);
    }
}

/// Each end of a connection learns in its own time that it is gone.
fn news(world: &mut World) {
    if world.rng.chance(4) {
        let gone = world
            .conns
            .iter()
            .filter(|(_, c)| c.client && (c.cut || !c.server) && c.deaf <= world.steps);
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
    for host in 0..world.bricks.len() {
        if world.rng.chance(2)
            && let Some(mut serving) = world.hosts[host].serving.take()
        {
            let cut_off = plan.overtaken && world.hosts[host].parted;
            serving.guest.quiet ^= !plan.calm && !cut_off && world.rng.chance(80);
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
    let soon = plan.calm || world.stuck_host().is_some();
    let begins = plan.stock && (soon || world.rng.chance(30));
    let often = if world.stuck_host().is_some() { 2 } else { 6 };
    if world.rng.chance(often) && (begins || !world.stock.is_idle()) {
        let mut stock = std::mem::take(&mut world.stock);
        stock.step(world);
        world.stock = stock;
    }
}

fn start_something(sim: &Sim, plan: &Plan) {
    let mut world = sim.world();
    if !world.rng.chance(30) || world.promoting.is_some() {
        return;
    }
    let host = match plan.rivals && world.rng.chance(4) {
        true => world.any_copy(),
        false => plan.home,
    };
    let on = &world.hosts[host];
    let overtaken = plan.overtaken && on.parted;
    let (free, serving) = (on.is_free() && on.stuck == 0, on.serving.is_some());
    let healed = on.healer.is_some_and(|healer| sim.sched.is_alive(healer));
    let (close, heal) = (world.rng.chance(12), world.rng.chance(2));
    if serving && close && !overtaken {
        world.hosts[host].close = true;
    }
    drop(world);
    if free {
        daemon::start(sim, host);
    } else if serving && heal && !healed {
        healer::start(sim, host);
    }
}

/// The healer of a host got stuck: its session ends, and others have the image.
fn outlive(sim: &Sim) {
    let mut world = sim.world();
    let Some(host) = world.stuck_host() else {
        return;
    };
    let (end, begin, other) = (world.rng.chance(10), world.rng.chance(30), world.any_copy());
    let serves = world.hosts[host].serving.is_some();
    // Not where AFR does not come out of it either.
    if !serves && world.stock.is_idle() && world.rng.chance(50) {
        let mut client = std::mem::take(&mut world.client);
        client.toggle(host, &mut world);
        world.client = client;
    }
    let alone = world.hosts.iter().all(|host| host.daemon.is_none());
    let free = alone && other != host && world.hosts[other].is_free();
    drop(world);
    if serves && end {
        fault::kill_daemon(sim, host);
    } else if !serves && begin && free {
        daemon::start(sim, other);
    }
}

/// The session at home has written nothing since it was clean, or waits for its disk
/// before it stores marks, and is cut off: another one may begin. When that has ended, the
/// first is back.
fn overtake(sim: &Sim, plan: &Plan) {
    let mut world = sim.world();
    if changes_marks(&world, plan.home) && world.rng.chance(8) {
        world.tell(|| "killed and cut off while it changes marks".to_owned());
        fault::part(&mut world, plan.home);
        drop(world);
        return fault::kill_daemon(sim, plan.home);
    }
    if !world.rng.chance(15) {
        return;
    }
    let (host, other) = (plan.home, world.any_copy());
    let clean = |s: &Serving| s.guest.is_idle() && s.handle.snapshot().phase == Phase::Unmarked;
    let alone = (0..world.bricks.len()).all(|h| h == host || world.hosts[h].daemon.is_none());
    let wrote = world.landed.iter().sum::<u64>() > world.landed[host];
    let (close, back) = (world.rng.chance(6), world.rng.chance(3));
    let on = &world.hosts[host];
    if on.parted && alone && wrote && back {
        world.hosts[host].parted = false;
    } else if other != host && world.hosts[other].serving.is_some() && close {
        world.hosts[other].close = true;
    } else if !on.parted && (on.slow > 0 || on.serving.as_ref().is_some_and(clean)) {
        world.tell(|| format!("host {host} is cut off"));
        fault::part(&mut world, host);
    } else if on.parted && alone && other != host && world.hosts[other].is_free() {
        drop(world);
        daemon::start(sim, other);
    }
}

/// Some bricks have the marks that a session stores or removes, and some do not.
fn changes_marks(world: &World, host: usize) -> bool {
    let serving = world.hosts[host].serving.as_ref();
    let differ = |file: usize| {
        let rows = world
            .bricks
            .iter()
            .map(|brick| brick.files[file].row.pending);
        let next = rows.clone().skip(1);
        rows.zip(next).any(|(row, next)| row != next)
    };
    world.each_file().any(differ) && serving.is_some_and(|_| fault::is_marking(world))
}

/// The session at home is cut off, and another one's guest wrote.
pub fn is_overtaken(world: &World, plan: &Plan) -> bool {
    let on = &world.hosts[plan.home];
    let clean = |s: &Serving| s.guest.is_idle() && s.handle.snapshot().phase == Phase::Unmarked;
    let stale = world.oracle.missing(&world.bricks[plan.home].cache);
    on.parted && on.serving.as_ref().is_some_and(clean) && stale.is_some()
}

/// The host of the only copy that is not stale burns, as far as the operator knows. Or
/// the promotion of another copy, which was cut short, is begun anew.
fn give_up_a_host(sim: &Sim, plan: &mut Plan) {
    let mut world = sim.world();
    if world.promoting.is_some() {
        drop(world);
        return promotion::go_on(sim);
    }
    let copies = world.copies();
    let accused = |copy: usize| world.each_file().any(|file| world.is_accused(copy, file));
    let fresh: Vec<_> = copies.iter().copied().filter(|&c| !accused(c)).collect();
    let others: Vec<_> = (0..world.bricks.len())
        .filter(|b| !fresh.contains(b))
        .collect();
    let up = others
        .iter()
        .all(|&b| world.hosts[b].up && world.bricks[b].up);
    let stale: Vec<_> = copies.iter().copied().filter(|&c| accused(c)).collect();
    let may = fresh.len() == 1 && up && world.is_quorum(&others) && world.hosts[fresh[0]].up;
    if !may || !world.rng.chance(60) {
        return;
    }
    let (lost, host) = (fresh[0], world.rng.pick(&stale));
    let Some(host) = host else { return };
    plan.promotes -= 1;
    world.tell(|| format!("host {lost} is given up for the copy of {host}"));
    world.promoting = Some(Promoting { host, lost });
    drop(world);
    fault::crash(sim, lost);
    copies
        .into_iter()
        .for_each(|copy| fault::kill_daemon(sim, copy));
}

fn mend_something(sim: &Sim, plan: &Plan) {
    let mut world = sim.world();
    if !world.rng.chance(40) {
        return;
    }
    let host = world.any_brick();
    if world.is_given_up(host) {
        return;
    }
    if world.rng.chance(3) {
        world.hosts[host].parted &= plan.overtaken;
    } else {
        mend(&mut world, host);
    }
}

/// The host has power and its brick's process runs.
fn mend(world: &mut World, host: usize) {
    world.bricks[host].release(fault::HANGING);
    if !world.hosts[host].up || !world.bricks[host].up {
        world.tell(|| format!("host {host}: its brick is back"));
        world.hosts[host].up = true;
        world.bricks[host].start();
    }
}

/// Everything is back, but what was given up.
pub fn mend_all(sim: &Sim) {
    let mut world = sim.world();
    world.client.cut = [false; BRICKS];
    for host in 0..world.bricks.len() {
        if world.is_given_up(host) {
            continue;
        }
        world.hosts[host].parted = false;
        world.bricks[host].sync_fails = false;
        world.bricks[host].full = false;
        mend(&mut world, host);
    }
}
