//! The thread that heals one peer: connects, runs passes, waits.
//!
//! It copies only while the session holds the peer and has marks against it, and
//! only what is dirty: with nothing dirty it looks at the map and at nothing else.

use std::sync::Arc;
use std::time::Duration;

use crate::image::dirty_map::{Healer, Peer};
use crate::image::error_chain::chain;
use crate::image::heal::copies::Copies;
use crate::image::heal::engine::Engine;
use crate::image::heal::link::{HealState, Obstacle};
use crate::image::heal::local::LocalFiles;
use crate::image::heal::pass::{PassEnd, PassOptions};

use super::board::{Board, Orders};
use super::retry::{self, Retry};

/// How often a peer that has marks is looked at for dirty extents. Passes begin no
/// more often either: each costs the peer an FSYNC, and takes what gathered.
const PERIOD_MARKED: Duration = Duration::from_millis(50);
/// How often one without marks is.
const PERIOD_UNMARKED: Duration = Duration::from_millis(500);
/// How often one is looked at while there is nothing to do before the session says so.
const PERIOD_AT_REST: Duration = Duration::from_secs(60);
/// Looking takes this part of the time at most: a large map takes a while.
const LOOK_SHARE: u32 = 20;

/// Why a copy is not possible.
struct Hindrance {
    /// What has to change.
    on: Obstacle,
    /// The peer was asked and said no: as with a full disk, it will again.
    refused: bool,
    why: String,
}

impl Hindrance {
    fn new(on: Obstacle, refused: bool, error: &dyn std::error::Error) -> Self {
        Self {
            on,
            refused,
            why: chain(error),
        }
    }

    /// Nothing that the session will change in a moment.
    fn is_failure(&self) -> bool {
        !matches!(self.on, Obstacle::Session | Obstacle::Mark)
    }
}

/// Heals one peer until it is told to stop.
pub struct PeerHealer {
    pub id: Peer,
    /// `volume/image`, for the log.
    pub image: String,
    pub board: Arc<Board>,
    pub healer: Arc<Healer>,
    pub copies: Arc<dyn Copies>,
    /// The local copy.
    pub files: Arc<LocalFiles>,
    /// For its engines, the board's switches among them.
    pub options: PassOptions,
    pub state: Connection,
}

/// What changes from turn to turn.
#[derive(Default)]
pub struct Connection {
    engine: Option<Engine>,
    retry: Retry,
    /// No attempt before then.
    not_before: Duration,
    /// See [`Orders::returns`].
    returns: u64,
    /// The log has said why nothing is copied.
    told: Option<String>,
}

impl PeerHealer {
    /// Until the board says stop. What was sent has been answered then, or the
    /// connection is lost.
    pub fn run(mut self) {
        loop {
            let orders = self.board.orders(self.id);
            if orders.stop {
                return;
            }
            let until = self.turn(&orders);
            self.board.wait_for_orders(&orders, until);
        }
    }

    /// Does what there is to do now; when to look again.
    fn turn(&mut self, orders: &Orders) -> Duration {
        if orders.returns != self.state.returns {
            self.state = Connection {
                engine: self.state.engine.take(),
                returns: orders.returns,
                told: self.state.told.take(),
                ..Connection::default()
            };
        }
        if !orders.held {
            // The copy lock goes with it.
            self.state.engine = None;
        }
        let begin = self.now();
        if self.healer.map().next_dirty(self.id, 0).is_none() {
            self.board.tell_clean(self.id, begin);
            let took = self.now().saturating_sub(begin);
            let period = match (orders.at_rest, orders.marked) {
                (true, _) => PERIOD_AT_REST,
                (false, true) => PERIOD_MARKED,
                (false, false) => PERIOD_UNMARKED,
            };
            return begin + period.max(took * LOOK_SHARE);
        }
        self.board.tell_dirty(self.id, begin);
        if let Some(why) = hindrance(orders) {
            let on = Obstacle::Session;
            self.board.tell(self.id, HealState::Waiting { on, why });
            return match orders.at_rest {
                true => begin + PERIOD_AT_REST,
                false => begin + PERIOD_UNMARKED,
            };
        }
        if begin < self.state.not_before {
            return self.state.not_before;
        }
        match self.heal(begin) {
            Ok(()) => {
                self.succeeded();
                begin + PERIOD_MARKED
            }
            Err(hindrance) => self.failed(begin, hindrance),
        }
    }

    fn succeeded(&mut self) {
        self.state.retry.reset();
        self.board.tell_failing(self.id, None);
        if self.state.told.take().is_some() {
            log::info!("{}: {} is healed again", self.image, self.name());
        }
    }

    /// When to try again.
    fn failed(&mut self, begin: Duration, hindrance: Hindrance) -> Duration {
        let longest = match hindrance.refused {
            true => retry::REFUSED,
            false => retry::LONGEST,
        };
        if hindrance.is_failure() {
            self.board.tell_failing(self.id, Some(begin));
        }
        let Hindrance { on, why, .. } = hindrance;
        if self.state.told.as_ref() != Some(&why) {
            log::warn!("{}: {}: {why}", self.image, self.name());
            self.state.told = Some(why.clone());
        }
        self.board.tell(self.id, HealState::Waiting { on, why });
        self.state.not_before = self.now() + self.state.retry.pause(longest);
        self.state.not_before
    }

    /// One pass, over a new connection if need be.
    fn heal(&mut self, begin: Duration) -> Result<(), Hindrance> {
        let engine = match self.state.engine.take().filter(Engine::is_usable) {
            Some(engine) => engine,
            None => self.connect()?,
        };
        let engine = self.state.engine.insert(engine);
        self.board.tell(self.id, HealState::Copying);
        match engine.run_pass() {
            Ok(pass) => {
                if pass.covered {
                    self.board.tell_covered(self.id, begin);
                }
                match pass.end {
                    PassEnd::Complete | PassEnd::Stopped => Ok(()),
                    PassEnd::Locked => Err(Hindrance {
                        on: Obstacle::Lock,
                        refused: false,
                        why: "another client keeps its lock on a part of the image. Look for a mount that hangs"
                            .to_owned(),
                    }),
                }
            }
            Err(error) => Err(Hindrance::new(error.obstacle(), error.is_refusal(), &error)),
        }
    }

    fn connect(&self) -> Result<Engine, Hindrance> {
        let (map, layout) = (self.healer.map(), self.files.layout());
        let peer = self.copies.connect(map, layout, self.id);
        let peer = peer.map_err(|error| Hindrance::new(error.obstacle(), false, &error))?;
        let (healer, files) = (Arc::clone(&self.healer), Arc::clone(&self.files));
        Ok(Engine::new(
            healer,
            self.id,
            files,
            peer,
            self.options.clone(),
        ))
    }

    fn name(&self) -> String {
        match &self.state.engine {
            Some(engine) => engine.peer_name().to_owned(),
            None => format!("peer {}", self.id.index()),
        }
    }

    fn now(&self) -> Duration {
        self.options.clock.now()
    }
}

/// Why nothing may be copied now.
fn hindrance(orders: &Orders) -> Option<String> {
    let why = if !orders.held {
        "the session does not hold the peer"
    } else if !orders.marked {
        "the session has not said yet that the peer is marked"
    } else {
        return None;
    };
    Some(why.to_owned())
}
