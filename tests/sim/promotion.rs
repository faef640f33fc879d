//! `bypass-blk promote`: the operator gave a host up for good, and makes the stale copy
//! of another one the fresh one. The plan and the changes of each brick are the real
//! ones (`promote.rs`); their order is that of `cli/promote.rs`.

use std::time::Duration;

use bypass_blk::image::replica::brick_port::{BrickPort, CopyState, Lock};
use bypass_blk::image::replica::promotion::{self, Promotion, PromotionRefusal, Step};
use bypass_blk::image::replica::session_lock::{Claim, lock_background, lock_session};

use super::daemon;
use super::sched::Process;
use super::sim::Sim;

/// How often a data lock is tried.
const ATTEMPTS: usize = 100;
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// What the operator is about. Until it is done, the lost host stays away.
#[derive(Clone, Copy, Debug)]
pub struct Promoting {
    pub host: usize,
    pub lost: usize,
}

/// Begins again what was not done yet, if nobody is at it.
pub fn go_on(sim: &Sim) {
    let world = sim.world();
    let due = world.promoting.map(|promoting| promoting.host);
    let Some(host) = due.filter(|host| world.hosts[*host].is_free()) else {
        return;
    };
    drop(world);
    let own = sim.clone();
    let process = sim.start(&format!("promote-{host}"), move |process| {
        let mut ports = daemon::ports(&own, host, process, &daemon::holder(&own, host, process));
        let done = promote(&own, host, process, &mut ports);
        ports.iter_mut().for_each(|port| port.disconnect());
        let mut world = own.world();
        world.hosts[host].daemon = None;
        if done.is_some() {
            world.promoting = None;
        }
    });
    let mut world = sim.world();
    world.tell(|| format!("host {host}: its copy is to be promoted"));
    world.hosts[host].daemon = Some(process);
}

/// `None`: to be tried again.
fn promote(
    sim: &Sim,
    host: usize,
    process: Process,
    ports: &mut [Box<dyn BrickPort>],
) -> Option<()> {
    let claim = Claim {
        session: daemon::holder(sim, host, process).session,
        read_only: false,
        files: 1,
    };
    let mut copies: Vec<Option<CopyState>> = vec![None; ports.len()];
    let mut reached = Vec::new();
    for (brick, port) in ports.iter_mut().enumerate() {
        if port.connect(Box::new(|_| {})).is_ok() {
            lock_session(&mut **port, &claim).ok()?;
            lock_background(&mut **port, &claim).ok()?;
            reached.push(brick);
        }
    }
    for brick in &reached {
        let mut tries = 0..ATTEMPTS;
        while !ports[*brick].try_lock(Lock::Data).ok()? {
            tries.next()?;
            sim.sched.wait(&mut || false, Some(PAUSE));
        }
    }
    for brick in &reached {
        copies[*brick] = Some(ports[*brick].probe().ok()?);
    }
    let shape = sim.world().shape(host);
    let plan = match promotion::plan(&shape, &copies) {
        Ok(plan) => plan,
        Err(PromotionRefusal::NoQuorum(_) | PromotionRefusal::LocalAway(_)) => return None,
        Err(why) => {
            sim.world().tell(|| format!("not promoted: {why:?}"));
            return Some(());
        }
    };
    let stamp = 1 + (claim.session.as_u128() as i32 & 0xff_ffff);
    let answered = copies.iter().enumerate();
    let answered = answered.filter_map(|(brick, copy)| Some((brick, copy.as_ref()?)));
    let all: Vec<_> = answered
        .map(|(brick, copy)| (brick, promotion::changes(&shape, &plan, stamp, brick, copy)))
        .collect();
    promotion::carry_out(Step::Accuse, &all, ports).ok()?;
    record(sim, host, &plan);
    promotion::carry_out(Step::Acquit, &all, ports).ok()
}

/// From now on what only the lost copy has is given up.
fn record(sim: &Sim, host: usize, plan: &promotion::Plan) {
    let mut world = sim.world();
    world.tell(|| format!("host {host} is promoted: {plan:?}"));
    world.promoted += 1;
    world.hosts[host].promotion = Some(Promotion {
        at: 0,
        lost: plan.lost.iter().collect(),
        stamps: plan.stamps.clone(),
    });
    let copy = world.bricks[host].cache.clone();
    world.oracle.promoted(host, &copy);
}
