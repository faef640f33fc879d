//! Connections between processes and bricks. Each end learns in its own time that
//! one is gone: a brick keeps the locks, and may carry out what it was sent, until it
//! does.

use super::brick::{Owner, Version};
use super::sched::Process;
use super::world::World;

pub type Lost = Box<dyn FnOnce(String) + Send>;

/// A change that a brick was sent and has not made yet.
#[derive(Clone, Debug)]
pub struct Late {
    pub number: u64,
    pub sector: usize,
    pub versions: Vec<Version>,
}

pub struct Conn {
    pub process: Process,
    /// The client's host.
    pub host: usize,
    pub brick: usize,
    /// The client may use it.
    pub client: bool,
    /// The brick keeps its locks.
    pub server: bool,
    /// Nothing gets through any more.
    pub cut: bool,
    /// Before this step the client does not learn of it, unless it asks for something.
    pub deaf: u64,
    pub lost: Option<Lost>,
    pub late: Vec<Late>,
    /// A healer's.
    pub heals: bool,
}

impl World {
    /// Can this host reach that brick's process?
    pub fn reaches(&self, host: usize, brick: usize) -> bool {
        let parted = host != brick && (self.hosts[host].parted || self.hosts[brick].parted);
        self.bricks[brick].up && !parted
    }

    pub fn connect(&mut self, process: Process, host: usize, brick: usize) -> Option<Owner> {
        if !self.reaches(host, brick) {
            return None;
        }
        self.next_conn += 1;
        let conn = Conn {
            process,
            host,
            brick,
            client: true,
            server: true,
            cut: false,
            deaf: 0,
            lost: None,
            late: Vec::new(),
            heals: false,
        };
        self.conns.insert(self.next_conn, conn);
        Some(self.next_conn)
    }

    /// Does a request get through now? A client that finds it does not knows then.
    pub fn gets_through(&mut self, id: Owner) -> bool {
        let Some(conn) = self.conns.get(&id) else {
            return false;
        };
        let through = conn.client && conn.server && !conn.cut;
        if !through {
            self.client_notices(id);
        }
        through
    }

    /// The client learns that the connection is gone.
    pub fn client_notices(&mut self, id: Owner) {
        if let Some(conn) = self.conns.get_mut(&id)
            && conn.client
        {
            conn.client = false;
            conn.cut = true;
            if let Some(lost) = conn.lost.take() {
                lost("the connection is gone".to_owned());
            }
            self.forget(id);
        }
    }

    /// The client gives it up; the brick hears of it later.
    pub fn hang_up(&mut self, id: Owner) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.client = false;
            conn.cut = true;
            conn.lost = None;
            self.forget(id);
        }
    }

    /// The brick learns that the connection is gone: what it was sent may have come
    /// before that or not.
    pub fn server_notices(&mut self, id: Owner) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let late = std::mem::take(&mut conn.late);
        conn.cut = true;
        if std::mem::replace(&mut conn.server, false) {
            let brick = conn.brick;
            for late in late {
                if self.rng.chance(2) {
                    self.carry_out(brick, &late);
                }
            }
            self.bricks[brick].release(id);
        }
        self.forget(id);
    }

    /// A brick's process is gone with what it had not done. Its own host hears of it at
    /// once.
    pub fn server_dies(&mut self, brick: usize) {
        let own = self
            .conns
            .iter()
            .filter(|(_, c)| c.host == brick && c.brick == brick);
        let own: Vec<_> = own.map(|(id, _)| *id).collect();
        for conn in self.conns.values_mut().filter(|c| c.brick == brick) {
            conn.late.clear();
            conn.server = false;
            conn.cut = true;
        }
        own.into_iter().for_each(|id| self.client_notices(id));
        self.conns.retain(|_, conn| conn.client || conn.server);
    }

    pub fn carry_out(&mut self, brick: usize, late: &Late) {
        for (index, version) in late.versions.iter().enumerate() {
            self.bricks[brick].write(late.sector + index, *version);
        }
    }

    /// One request that a brick was sent is carried out.
    pub fn carry_out_one(&mut self) {
        let waiting = self.conns.iter().filter(|(_, c)| !c.late.is_empty());
        let waiting: Vec<_> = waiting.map(|(id, _)| *id).collect();
        if let Some(id) = self.rng.pick(&waiting)
            && let Some(conn) = self.conns.get_mut(&id)
        {
            let index = self.rng.below(conn.late.len());
            let (brick, late) = (conn.brick, conn.late.swap_remove(index));
            self.carry_out(brick, &late);
        }
    }

    fn forget(&mut self, id: Owner) {
        let over = |conn: &Conn| !conn.client && !conn.server;
        if self.conns.get(&id).is_some_and(over) {
            self.conns.remove(&id);
        }
    }
}
