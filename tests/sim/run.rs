//! One schedule: some chapters of trouble, and after each everything comes back, is
//! healed by us or by stock Gluster alone, and must be equal.

use std::time::Duration;

use bypass_blk::image::session::state_machine::Phase;

use super::act::{self, Plan};
use super::brick::SECTORS;
use super::sim::Sim;
use super::{daemon, fault, healer, promotion};

/// Steps until everything must have come to an end.
const LONGEST: u64 = 40_000;

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub steps: u64,
    pub opened: u64,
    pub unmarked: u64,
    /// Unmarked beside a peer that is held and behind.
    pub beside: u64,
    pub promoted: u64,
    /// Schedules that failed after [`super::world::World::one_sided`].
    pub excused: u64,
}

/// Runs the schedule of a seed.
///
/// # Errors
/// What went wrong first.
pub fn run(seed: u64, plan: Plan, told: bool) -> Result<Figures, String> {
    // No image in shards is promoted.
    let in_shards = !seed.is_multiple_of(2) && plan.promotes == 0;
    let sim = Sim::new(seed, plan.layout, in_shards, told);
    if plan.outlived {
        sim.world().stuck_odds = 8;
    }
    sim.world().slow_flushes = plan.overtaken.then_some(plan.home);
    let run = Run { sim: &sim, plan };
    let done = run.chapters();
    sim.sched.set_act(None);
    let last = sim.world().next_process;
    (1..=last).for_each(|process| sim.sched.kill(process));
    sim.sched.step();
    let world = sim.world();
    let first = sim.sched.panics().into_iter().next();
    let excused = plan.clients_fail && world.one_sided;
    match first.map_or(done, Err) {
        Err(why) if !excused => Err(format!("step {}: {why}", world.steps)),
        done => Ok(Figures {
            steps: world.steps,
            opened: world.opened,
            unmarked: world.unmarked,
            beside: world.beside,
            promoted: world.promoted,
            excused: u64::from(done.is_err()),
        }),
    }
}

struct Run<'a> {
    sim: &'a Sim,
    plan: Plan,
}

impl Run<'_> {
    fn chapters(&self) -> Result<(), String> {
        let count = 1 + self.sim.world().rng.below(3);
        for chapter in 0..count {
            self.sim.world().tell(|| format!("CHAPTER {chapter}"));
            self.trouble()?;
            if self.sim.world().rng.chance(2) {
                self.come_to_rest()?;
            }
            self.end()?;
            let ours = self.sim.world().rng.chance(2);
            match ours {
                true => self.heal()?,
                false => self.leave_to_stock()?,
            }
            self.check()?;
        }
        Ok(())
    }

    fn set(&self, plan: Plan) {
        let (sim, mut plan) = (self.sim.clone(), plan);
        self.sim
            .sched
            .set_act(Some(Box::new(move || act::act(&sim, &mut plan))));
    }

    /// Waits until something is so.
    fn until(&self, what: &str, so: impl Fn() -> bool) -> Result<(), String> {
        let begin = self.sim.world().steps;
        while !so() {
            if !self.sim.sched.panics().is_empty() {
                return Err(String::new());
            }
            let world = self.sim.world();
            if world.steps > begin + LONGEST {
                let conns = world.conns.iter().map(|(id, c)| {
                    (
                        id, c.process, c.host, c.brick, c.client, c.server, c.cut, c.heals,
                    )
                });
                let conns: Vec<_> = conns.collect();
                return Err(format!(
                    "it never came to this: {what}; {:?} {conns:?}",
                    world.all_rows()
                ));
            }
            drop(world);
            let moment = Duration::from_millis(100);
            self.sim.sched.wait(&mut || false, Some(moment));
        }
        Ok(())
    }

    fn trouble(&self) -> Result<(), String> {
        let mut world = self.sim.world();
        let end = world.steps + 300 + world.rng.below(1500) as u64;
        let faults = match self.plan.faults {
            0 => 0,
            most => world.rng.below(most + 1),
        };
        drop(world);
        self.set(Plan {
            faults,
            ..self.plan
        });
        self.until("the time is over", || {
            let world = self.sim.world();
            let stuck = self.plan.outlived && world.stuck_host().is_some();
            let overtaken = self.plan.overtaken && act::is_overtaken(&world, &self.plan);
            world.steps >= end && !stuck || overtaken && world.steps + 300 >= end
        })
    }

    /// Everything is back, and a session that is still there comes to an end of its
    /// debt.
    fn come_to_rest(&self) -> Result<(), String> {
        self.calm(false);
        let open = |host: &super::world::Host| host.serving.is_some() && !host.close;
        let serving = self.sim.world().hosts.iter().position(open);
        let Some(host) = serving else {
            act::mend_all(self.sim);
            return Ok(());
        };
        self.sim
            .world()
            .tell(|| format!("COME TO REST on host {host}"));
        if self.plan.overtaken {
            let others = (0..self.plan.layout.bricks).filter(|other| *other != host);
            others.for_each(|other| fault::kill_daemon(self.sim, other));
        }
        act::mend_all(self.sim);
        for host in &mut self.sim.world().hosts {
            let serving = host.serving.as_mut();
            serving.into_iter().for_each(|s| s.guest.quiet = true);
        }
        let healer_due = || {
            let healer = self.sim.world().hosts[host].healer;
            !healer.is_some_and(|healer| self.sim.sched.is_alive(healer))
        };
        self.until("at rest", || {
            if healer_due() {
                healer::start(self.sim, host);
            }
            let world = self.sim.world();
            let over = world.hosts[host].close || world.hosts[host].serving.is_none();
            let serving = world.hosts[host].serving.as_ref();
            // What it marked stays until another session has compared the copies.
            let unsure = serving.is_some_and(|s| s.handle.snapshot().sync_failed.is_some());
            drop(world);
            over || unsure || self.is_healed(host) && self.has_all_bricks(host)
        })?;
        let world = self.sim.world();
        let on = &world.hosts[host];
        let lost = world.oracle.missing(&world.bricks[host].cache);
        match lost.filter(|_| on.serving.is_some() && !on.close) {
            Some(lost) => Err(format!("host {host} goes on with a stale copy: {lost}")),
            None => Ok(()),
        }
    }

    fn has_all_bricks(&self, host: usize) -> bool {
        let world = self.sim.world();
        let serving = world.hosts[host].serving.as_ref();
        serving.is_none_or(|s| s.handle.snapshot().copies.iter().all(|copy| copy.locked))
    }

    /// Everything is back, and nobody uses the image any more.
    fn end(&self) -> Result<(), String> {
        self.calm(false);
        let mended_first = self.sim.world().rng.chance(2);
        if mended_first {
            act::mend_all(self.sim);
        }
        for host in 0..self.plan.layout.bricks {
            let (killed, too) = {
                let mut world = self.sim.world();
                // Who is killed before it notices what it has lost has no chance.
                (world.rng.chance(3) && !world.robbed, world.rng.chance(2))
            };
            match killed {
                true => fault::kill_daemon(self.sim, host),
                false => self.sim.world().hosts[host].close = true,
            }
            if too {
                fault::kill_healer(self.sim, host);
            }
        }
        self.until("no session", || self.is_quiet())?;
        act::mend_all(self.sim);
        self.until("promoted", || {
            promotion::go_on(self.sim);
            self.sim.world().promoting.is_none() && self.is_quiet()
        })?;
        act::mend_all(self.sim);
        self.until("no connection", || self.sim.world().conns.is_empty())
    }

    fn calm(&self, stock: bool) {
        self.set(Plan {
            calm: true,
            stock,
            ..self.plan
        });
    }

    fn is_quiet(&self) -> bool {
        let world = self.sim.world();
        let alive = |process: Option<usize>| process.is_some_and(|p| self.sim.sched.is_alive(p));
        let busy = |host: &super::world::Host| alive(host.daemon) || alive(host.healer);
        world.client.is_idle() && !world.hosts.iter().any(busy)
    }

    /// The session knows of nothing to do.
    fn is_healed(&self, host: usize) -> bool {
        let world = self.sim.world();
        let Some(serving) = &world.hosts[host].serving else {
            return true;
        };
        let snapshot = serving.handle.snapshot();
        let behind = snapshot
            .healing
            .is_none_or(|h| h.behind.iter().any(|b| b.extents > 0));
        let clean = snapshot.phase == Phase::Unmarked && !behind && serving.guest.is_idle();
        clean && world.is_unmarked()
    }

    /// A session on any host that has a fresh copy, with its healer.
    fn heal(&self) -> Result<(), String> {
        self.until("no stock heal", || self.sim.world().stock.is_idle())?;
        self.sim.world().tell(|| "HEAL".to_owned());
        let hosts = self.sim.world().copies();
        let hosts = self.sim.world().rng.shuffled(hosts);
        for host in hosts {
            daemon::start(self.sim, host);
            let ready = || {
                let world = self.sim.world();
                world.hosts[host].serving.is_some() || world.hosts[host].daemon.is_none()
            };
            self.until("opened or refused", ready)?;
            if self.sim.world().hosts[host].serving.is_none() {
                self.until("no connection", || self.sim.world().conns.is_empty())?;
                continue;
            }
            let quiet = self.sim.world().rng.chance(2);
            if let Some(serving) = &mut self.sim.world().hosts[host].serving {
                serving.guest.quiet = quiet;
            }
            healer::start(self.sim, host);
            self.until("the guest has written", || {
                quiet || self.sim.world().rng.chance(20)
            })?;
            if let Some(serving) = &mut self.sim.world().hosts[host].serving {
                serving.guest.quiet = true;
            }
            self.until("healed", || self.is_healed(host))?;
            self.sim.world().hosts[host].close = true;
            self.until("the session is over", || self.is_quiet())?;
            self.until("no connection", || self.sim.world().conns.is_empty())?;
            return self.crash_all();
        }
        // A brick that accuses itself may stand against every copy; AFR does not listen
        // to it.
        self.leave_to_stock()
    }

    /// Power fails everywhere: what was healed stays.
    fn crash_all(&self) -> Result<(), String> {
        if self.sim.world().rng.chance(2) {
            self.sim.world().tell(|| "POWER CUT".to_owned());
            (0..self.plan.layout.bricks).for_each(|host| fault::crash(self.sim, host));
            act::mend_all(self.sim);
        }
        Ok(())
    }

    fn leave_to_stock(&self) -> Result<(), String> {
        let mut world = self.sim.world();
        world.tell(|| "STOCK HEAL".to_owned());
        world.stock.split_brain.clear();
        drop(world);
        self.calm(true);
        self.until("healed by Gluster", || {
            let world = self.sim.world();
            let over = world.stock.is_idle() && world.is_unmarked();
            over || !world.stock.split_brain.is_empty()
        })?;
        let world = self.sim.world();
        if !world.stock.split_brain.is_empty() {
            let (rows, files) = (world.all_rows(), &world.stock.split_brain);
            return Err(format!(
                "nobody can tell which copy is fresh of {files:?}: {rows:?}"
            ));
        }
        drop(world);
        self.calm(false);
        self.until("stock heal is over", || self.sim.world().stock.is_idle())
    }

    fn check(&self) -> Result<(), String> {
        let world = self.sim.world();
        if !world.is_unmarked() {
            return Err(format!("marks are left: {:?}", world.all_rows()));
        }
        if let Some(lost) = world.oracle.missing(&world.bricks[0].cache) {
            return Err(format!("something acknowledged is lost: {lost}"));
        }
        for brick in world.copies().into_iter().skip(1) {
            let (one, two) = (&world.bricks[0].cache, &world.bricks[brick].cache);
            // What a client could not write everywhere was never acknowledged.
            let differs = |s: &usize| one[*s] != two[*s] && !world.client.cut_short[*s];
            if let Some(sector) = (0..SECTORS).find(differs) {
                return Err(format!(
                    "copies 0 and {brick} differ in sector {sector}: {} and {}",
                    one[sector], two[sector]
                ));
            }
            let size = |brick: usize, file: usize| world.bricks[brick].files[file].size;
            let odd = |file: &usize| size(0, *file) != size(brick, *file);
            if let Some(file) = world.each_file().find(odd) {
                return Err(format!(
                    "file {file} of copies 0 and {brick} have other sizes"
                ));
            }
        }
        Ok(())
    }
}
