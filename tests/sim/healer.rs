//! A healer's process: the real engine, one thread a peer, for the session that its
//! host had when it began.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bypass_blk::image::copy_lock;
use bypass_blk::image::dirty::{DirtyMap, Healer, Peer};
use bypass_blk::image::heal::{
    Engine, HealPeer, HealReport, Hint, LinkError, Options, PeerError, Unmarked,
};
use uuid::Uuid;

use super::brick::{Domain, EXTENT, Held};
use super::peer::SimPeer;
use super::sched::{Process, Threads};
use super::sim::Sim;
use super::world::shape;

/// Between two looks at the session.
const PAUSE: Duration = Duration::from_millis(100);

/// Which session it heals for.
#[derive(Clone)]
struct Job {
    sim: Sim,
    host: usize,
    /// The session's daemon.
    daemon: Process,
    session: Uuid,
    process: Process,
}

/// Starts one on `host`, if a session is served there.
pub fn start(sim: &Sim, host: usize) {
    let serving = sim.world().hosts[host]
        .serving
        .as_ref()
        .map(|s| (s.process, s.session));
    let Some((daemon, session)) = serving else {
        return;
    };
    let own = sim.clone();
    let process = sim.start(&format!("healer-{host}"), move |process| {
        let job = Job {
            sim: own,
            host,
            daemon,
            session,
            process,
        };
        job.begin();
    });
    sim.world().hosts[host].healer = Some(process);
}

impl Job {
    fn begin(&self) {
        let map = DirtyMap::attach(&self.sim.map(self.host));
        let Ok(healer) = map.and_then(|map| Healer::claim(Arc::new(map))) else {
            return;
        };
        let healer = Arc::new(healer);
        let peers: Vec<_> = shape(self.host).peers().iter().collect();
        for (index, brick) in peers.into_iter().enumerate() {
            let (job, healer) = (self.clone(), healer.clone());
            let name = format!("heal-{}-{brick}", self.host);
            let body = Box::new(move || job.follow(index, brick, &healer));
            self.sim.sched.spawn(self.process, &name, body).unwrap();
        }
    }

    fn pause(&self) {
        self.sim.sched.wait(&mut || false, Some(PAUSE));
    }

    /// Heals one peer until the session is over.
    fn follow(&self, index: usize, brick: usize, healer: &Arc<Healer>) {
        while let Some(hint) = self.report() {
            if hint.held.get(index) == Some(&true)
                && let Ok(peer) = self.connect(brick)
            {
                let conn = peer.conn;
                let _ = self.heal(index, healer, peer);
                self.sim.world().hang_up(conn);
            }
            self.pause();
        }
    }

    /// Connects, takes the copy lock, and only then looks whether the session has the
    /// brick.
    fn connect(&self, brick: usize) -> Result<SimPeer, PeerError> {
        self.sim.sched.step();
        let mut world = self.sim.world();
        // The pause before the first copy is long enough for what an earlier
        // connection left with the brick.
        let old = world
            .conns
            .iter()
            .filter(|(_, c)| c.heals && c.host == self.host && c.brick == brick);
        let old: Vec<_> = old.map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| world.server_notices(id));
        let conn = world.connect(self.process, self.host, brick);
        drop(world);
        let away = || PeerError::NoImage {
            peer: "no connection".to_owned(),
        };
        let conn = conn.ok_or_else(away)?;
        if let Some(conn) = self.sim.world().conns.get_mut(&conn) {
            conn.heals = true;
        }
        let peer = SimPeer {
            sim: self.sim.clone(),
            brick,
            conn,
        };
        let byte = copy_lock::byte_of(self.session);
        let lock = Held {
            first: byte,
            last: byte,
            ..Held::whole(conn, Domain::Copy)
        };
        let taken = peer.take(lock);
        if taken? && peer.holder()? == Some(self.session) {
            return Ok(peer);
        }
        peer.close();
        Err(away())
    }

    fn heal(&self, index: usize, healer: &Arc<Healer>, peer: SimPeer) -> Option<()> {
        let file = self.sim.world().bricks[self.host].file.try_clone().ok()?;
        let clock = Arc::new(Threads {
            sched: self.sim.sched.clone(),
            process: self.process,
        });
        let options = Options {
            window: 3 * EXTENT,
            quiet: Duration::ZERO,
            clock,
            ..Options::default()
        };
        let id = Peer::new(index)?;
        let compare_first = options.compare_first.clone();
        let mut engine = Engine::new(healer.clone(), id, Arc::new(file), Box::new(peer), options);
        loop {
            let hint = self.report()?;
            if hint.held.get(index) != Some(&true) {
                return None;
            }
            compare_first.store(hint.suspect.get(index) == Some(&true), Ordering::Relaxed);
            let dirty = healer.map().next_dirty(id, 0).is_some();
            if dirty && hint.marked && engine.run_pass().is_err_and(|error| error.lost_peer()) {
                return None;
            }
            if hint.removable {
                self.unmark()?;
            }
            self.pause();
        }
    }

    /// `None`: the session is over.
    fn report(&self) -> Option<Hint> {
        let report = HealReport::default();
        let hint = self.ask(|handle| handle.report(&report));
        hint?.ok()
    }

    fn unmark(&self) -> Option<()> {
        let answer = self.ask(|handle| handle.unmark())?;
        let mut world = self.sim.world();
        world.tell(|| format!("healer on {}: {answer:?}", self.host));
        match answer {
            Ok(Unmarked::All | Unmarked::Some { .. }) => world.unmarked += 1,
            Ok(Unmarked::NotYet { .. }) | Err(LinkError::Failed(_)) => {}
            Err(LinkError::Ended(_)) => return None,
        }
        Some(())
    }

    /// Over the link to the session, which is closed with its daemon.
    fn ask<T>(
        &self,
        question: impl FnOnce(&bypass_blk::image::handle::SessionHandle) -> T,
    ) -> Option<T> {
        self.sim.sched.step();
        let mut world = self.sim.world();
        let host = &mut world.hosts[self.host];
        let serving = host.serving.as_ref().filter(|s| s.process == self.daemon);
        let handle = serving.map(|s| s.handle.clone())?;
        host.asking += 1;
        drop(world);
        let asking = Asking(self);
        let answer = question(&handle);
        drop((handle, asking));
        Some(answer)
    }
}

struct Asking<'a>(&'a Job);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.sim.world().hosts[self.0.host].asking -= 1;
    }
}
