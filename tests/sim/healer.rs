//! A healer's process: the real follower, engines and all, of the session that its host
//! had when it began.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bypass_blk::image::dirty_map::{DirtyMap, Peer};
use bypass_blk::image::heal::{
    Copies, FollowOptions, Follower, HealPeer, HealReport, Hint, Job, LinkError, LocalFiles,
    PeerError, SessionLink, Unmarked, Wait,
};
use bypass_blk::image::layout::Layout;
use bypass_blk::image::local::error::LocalError;
use bypass_blk::image::replica::copy_lock;
use bypass_blk::image::scheduler::Scheduler;
use bypass_blk::image::session::handle::SessionHandle;
use uuid::Uuid;

use super::brick::{Domain, EXTENT, Held};
use super::peer::SimPeer;
use super::piece::GFID;
use super::sched::{self, Process};
use super::sim::Sim;

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
        let healing = Arc::new(Healing {
            sim: own,
            host,
            daemon,
            session,
            process,
        });
        follow(&healing);
    });
    sim.world().hosts[host].healer = Some(process);
}

/// Until the session is over. An image that cannot be healed now is left to the next.
fn follow(healing: &Arc<Healing>) {
    let threads = Scheduler::simulated(Arc::new(sched::Scheduler {
        sched: healing.sim.sched.clone(),
        process: healing.process,
    }));
    let options = FollowOptions {
        window: 3 * EXTENT,
        // A brick that gave a connection up has done, or never does, what that sent.
        quiet: Duration::ZERO,
        threads,
        ..FollowOptions::default()
    };
    let copies = healing.clone();
    let follower = Follower::start(healing.clone(), &options, move |_| copies);
    let ended = follower.and_then(Follower::join);
    let host = healing.host;
    let world = healing.sim.world();
    world.tell(|| format!("healer on {host}: {ended:?}"));
}

/// Which session it heals for, and from where.
struct Healing {
    sim: Sim,
    host: usize,
    /// The session's daemon.
    daemon: Process,
    session: Uuid,
    process: Process,
}

impl Healing {
    /// Over the link to the session, which is closed with its daemon.
    fn ask<T>(&self, question: impl FnOnce(&SessionHandle) -> T) -> Result<T, LinkError> {
        self.sim.sched.step();
        let mut world = self.sim.world();
        let host = &mut world.hosts[self.host];
        let serving = host.serving.as_ref().filter(|s| s.process == self.daemon);
        let handle = serving.map(|s| s.handle.clone());
        let handle = handle.ok_or_else(|| LinkError::Ended("its daemon is gone".to_owned()))?;
        host.asking += 1;
        drop(world);
        let asking = Asking(self);
        let answer = question(&handle);
        drop((handle, asking));
        Ok(answer)
    }
}

struct Asking<'a>(&'a Healing);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.sim.world().hosts[self.0.host].asking -= 1;
    }
}

impl SessionLink for Healing {
    fn job(&self) -> Result<Job, LinkError> {
        let peers = self.ask(SessionHandle::peer_children)?;
        Ok(Job {
            volume: "gv0".to_owned(),
            image: "/image".to_owned(),
            gfid: GFID,
            session: self.session,
            server: String::new(),
            port: 0,
            local_path: PathBuf::new(),
            local: self.host,
            bricks: Vec::new(),
            map: self.sim.map(self.host),
            peers,
        })
    }

    fn report(&self, report: &HealReport, wait: Option<&Wait>) -> Result<Hint, LinkError> {
        self.ask(|session| session.report(report, wait, |hint| hint))?
    }

    fn unmark(&self) -> Result<Unmarked, LinkError> {
        let answer = self.ask(SessionHandle::unmark)?;
        let copies = self.ask(|session| session.snapshot().copies);
        let all_held = copies.is_ok_and(|copies| copies.iter().all(|copy| copy.locked));
        let mut world = self.sim.world();
        world.tell(|| format!("healer on {}: {answer:?}", self.host));
        world.unmarked += u64::from(matches!(answer, Ok(Unmarked::All | Unmarked::Some { .. })));
        let some = matches!(answer, Ok(Unmarked::Some { .. }));
        world.beside += u64::from(some && all_held);
        answer
    }
}

impl Copies for Healing {
    fn local(&self, _: &DirtyMap) -> Result<LocalFiles, LocalError> {
        let world = self.sim.world();
        let files = world.bricks[self.host].files.iter();
        let files = files.map(|piece| piece.file.try_clone());
        let files = files.collect::<Result<_, _>>();
        let files = files.map_err(|source| LocalError::Io {
            what: "open",
            path: PathBuf::new(),
            source,
        })?;
        Ok(LocalFiles::new(world.files.clone(), files))
    }

    /// Connects, takes the copy lock, and only then looks whether the session has the
    /// brick.
    fn connect(
        &self,
        map: &DirtyMap,
        _: &Arc<Layout>,
        peer: Peer,
    ) -> Result<Box<dyn HealPeer>, PeerError> {
        let child = self
            .sim
            .world()
            .shape(self.host)
            .peers()
            .iter()
            .nth(peer.index());
        let brick = child.ok_or_else(|| PeerError::NoBrick {
            volume: map.path().display().to_string(),
            child: peer.index(),
        })?;
        self.sim.sched.step();
        let peer = SimPeer::connect(&self.sim, self.process, self.host, brick)?;
        let byte = copy_lock::byte_of(self.session);
        let name = peer.name().to_owned();
        if !peer.take(Held {
            first: byte,
            last: byte,
            ..Held::whole(peer.owner(), Domain::Copy, 0)
        })? {
            return Err(PeerError::CopyLocked { peer: name });
        }
        match peer.holder()? {
            Some(holder) if holder.session == self.session => Ok(Box::new(peer)),
            holder => Err(PeerError::NotHeld { peer: name, holder }),
        }
    }
}
