//! Makes this host's stale copy the fresh one, for `bypass-blk promote`, which asks the operator
//! between the look and the change. What may be promoted, and which counters say so, is
//! decided by [`promotion`].

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::gluster::Timeouts;
use crate::image::brick_client::session_port::GlusterPort;
use crate::image::replica::brick_port::{BrickPort, CopyState, Lock, PortError};
use crate::image::replica::brick_set::{BrickSet, Shape};
use crate::image::replica::names::Names;
use crate::image::replica::promotion::{self, Plan, Promotion, Step};
use crate::image::replica::session_lock::{Blocked, Claim, lock_background, lock_session};
use crate::image::session::error::OpenError;
use crate::image::state_dir::{Entry, StateDir};

use super::brick_view::lock_owner;
use super::failure::Failure;
use super::session_setup::Place;

/// How long other clients' writes are waited for.
const DATA_LOCK_LIMIT: Duration = Duration::from_secs(10);
/// Between two attempts to get AFR's data lock.
const DATA_LOCK_PAUSE: Duration = Duration::from_millis(20);

/// An image whose copy on this host may be promoted. As long as it lasts, what is reached is
/// locked as by a session: nobody serves the image, heals or moves it.
pub struct Candidate {
    place: Place,
    shape: Shape,
    names: Names,
    ports: Vec<Box<dyn BrickPort>>,
    reached: BrickSet,
}

impl Candidate {
    /// Connects to the bricks and locks the image on those that answer.
    ///
    /// # Errors
    /// Who has the image.
    pub fn lock(place: Place) -> Result<Self, Failure> {
        let owner = lock_owner(&place.me)?;
        let mut ports = GlusterPort::for_set(&place.located, &owner, Timeouts::default(), None);
        let reached = connect(&mut ports);
        let mut candidate = Self {
            shape: place.located.shape(place.local),
            names: place.located.names(),
            place,
            ports,
            reached,
        };
        candidate.lock_session()?;
        Ok(candidate)
    }

    /// The image, and where its copies are.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What a promotion would do now.
    ///
    /// # Errors
    /// [`Failure::NotPromoted`], and what goes wrong with a brick.
    pub fn plan(&mut self) -> Result<Plan, Failure> {
        let copies = self.probe()?;
        self.plan_for(&copies)
    }

    /// Does it, as the copies are by now, and notes in `state` what is overruled by it.
    ///
    /// # Errors
    /// As [`Candidate::plan`]. All can be done again then.
    pub fn promote(&mut self, state: &StateDir) -> Result<Plan, Failure> {
        self.lock_data()?;
        let copies = self.probe()?;
        let plan = self.plan_for(&copies)?;
        let stamp = new_stamp();
        let answered = copies.iter().enumerate();
        let all: Vec<_> = answered
            .filter_map(|(brick, copy)| Some((brick, copy.as_ref()?)))
            .map(|(brick, copy)| {
                let changes = promotion::changes(&self.shape, &plan, stamp, brick, copy);
                (brick, changes)
            })
            .collect();
        let names = &self.names;
        let failed = |(brick, error)| brick_failed(names, brick, &error);
        promotion::carry_out(Step::Accuse, &all, &mut self.ports).map_err(failed)?;
        record(&self.place, &plan, state)?;
        promotion::carry_out(Step::Acquit, &all, &mut self.ports).map_err(failed)?;
        for (brick, port) in reached(&mut self.ports, self.reached) {
            if let Err(error) = port.unlock(Lock::Data) {
                log::warn!("{}: {error}", names.one(brick));
            }
        }
        Ok(plan)
    }

    fn lock_session(&mut self) -> Result<(), OpenError> {
        let names = &self.names;
        let claim = Claim {
            session: self.place.me.session,
            read_only: false,
            files: 1,
        };
        for (brick, port) in reached(&mut self.ports, self.reached) {
            lock_session(port, &claim)
                .and_then(|()| lock_background(port, &claim))
                .map_err(|blocked| match blocked {
                    Blocked::Session(holder) => OpenError::Locked {
                        brick: names.one(brick),
                        holder,
                    },
                    Blocked::Busy(lock) => busy(names, brick, lock),
                    Blocked::Port(error) => brick_failed(names, brick, &error),
                })?;
        }
        Ok(())
    }

    fn lock_data(&mut self) -> Result<(), OpenError> {
        let names = &self.names;
        let begin = Instant::now();
        for (brick, port) in reached(&mut self.ports, self.reached) {
            let failed = |error| brick_failed(names, brick, &error);
            while !port.try_lock(Lock::Data).map_err(failed)? {
                if begin.elapsed() > DATA_LOCK_LIMIT {
                    return Err(busy(names, brick, Lock::Data));
                }
                std::thread::sleep(DATA_LOCK_PAUSE);
            }
        }
        Ok(())
    }

    /// What each brick says, in child order.
    fn probe(&mut self) -> Result<Vec<Option<CopyState>>, OpenError> {
        let mut copies = vec![None; self.ports.len()];
        for (brick, port) in reached(&mut self.ports, self.reached) {
            let copy = port.probe();
            copies[brick] = Some(copy.map_err(|error| brick_failed(&self.names, brick, &error))?);
        }
        Ok(copies)
    }

    fn plan_for(&self, copies: &[Option<CopyState>]) -> Result<Plan, Failure> {
        let plan = promotion::plan(&self.shape, copies);
        plan.map_err(|why| Failure::NotPromoted {
            image: format!("{}{}", self.names.volume, self.place.located.image),
            why: why.told(&self.names),
        })
    }
}

fn connect(ports: &mut [Box<dyn BrickPort>]) -> BrickSet {
    let ports = ports.iter_mut().enumerate();
    let connected = ports.filter_map(|(brick, port)| {
        let done = port.connect(Box::new(|_| {}));
        done.ok().map(|()| brick)
    });
    connected.collect()
}

fn reached(
    ports: &mut [Box<dyn BrickPort>],
    reached: BrickSet,
) -> impl Iterator<Item = (usize, &mut dyn BrickPort)> {
    let ports = ports.iter_mut().enumerate();
    let ports = ports.filter(move |(brick, _)| reached.contains(*brick));
    ports.map(|(brick, port)| (brick, &mut **port as &mut dyn BrickPort))
}

/// On the disk when this returns: without it, the lost copy's accusation would count when
/// it comes back.
fn record(place: &Place, plan: &Plan, state: &StateDir) -> Result<(), Failure> {
    state.create()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let promotion = Promotion {
        at: now.unwrap_or_default().as_secs(),
        lost: plan.lost.iter().collect(),
        stamps: plan.stamps.clone(),
    };
    let located = &place.located;
    state.change(&located.volume, located.gfid, |known| {
        let extent_size = known.as_ref().and_then(Entry::chosen_extent_size);
        let mut entry = place.entry(known, extent_size);
        entry.promoted = Some(promotion);
        Some(entry)
    })?;
    Ok(())
}

/// Small and unlike what sessions store often enough: the next session stores its own.
fn new_stamp() -> i32 {
    i32::try_from(Uuid::new_v4().as_u128() as u32 >> 2)
        .unwrap_or(1)
        .max(1)
}

fn busy(names: &Names, brick: usize, lock: Lock) -> OpenError {
    OpenError::Busy {
        volume: names.volume.clone(),
        lock,
        brick: names.one(brick),
    }
}

fn brick_failed(names: &Names, brick: usize, error: &PortError) -> OpenError {
    OpenError::BrickFailed {
        brick: names.one(brick),
        why: error.to_string(),
    }
}
