//! Makes this host's stale copy the fresh one, for `bypass-blk promote`, which asks the operator
//! between the look and the change. What may be promoted, and which counters say so, is
//! decided by [`promotion`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::gluster::Timeouts;
use crate::image::brick_client::session_port::GlusterPort;
use crate::image::layout::FileIndex;
use crate::image::replica::brick_port::{BrickPort, CopyState, FileCopies, Lock, PortError};
use crate::image::replica::brick_set::{BrickSet, Shape};
use crate::image::replica::names::Names;
use crate::image::replica::promotion::{self, Changes, ImagePlan, Plan, Promotion, Step};
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
    /// The files that are marked, and the first: from these heals are kept.
    guarded: BTreeSet<FileIndex>,
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
            guarded: BTreeSet::new(),
        };
        candidate.lock_session()?;
        candidate.guard(BTreeSet::from([FileIndex::BASE]))?;
        let marked = marked(&candidate.probe()?);
        candidate.guard(marked)?;
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
    pub fn plan(&mut self) -> Result<ImagePlan, Failure> {
        let copies = self.probe()?;
        self.plan_for(&copies)
    }

    /// Does it, as the copies are by now, and notes in `state` what is overruled by it.
    ///
    /// # Errors
    /// As [`Candidate::plan`]. All can be done again then.
    pub fn promote(&mut self, state: &StateDir) -> Result<ImagePlan, Failure> {
        self.lock_data()?;
        let copies = self.probe()?;
        let plan = self.plan_for(&copies)?;
        let stamp = new_stamp();
        let of_file = |(file, plan): &(FileIndex, Plan)| {
            let copies = copies.get(file.at()).into_iter().flatten().enumerate();
            let answered = copies.filter_map(|(brick, copy)| Some((brick, copy.as_ref()?)));
            let changes = answered.map(|(brick, copy)| {
                let changes = promotion::changes(&self.shape, plan, stamp, brick, copy);
                (brick, changes)
            });
            (*file, changes.collect())
        };
        let all: Vec<_> = plan.files.iter().map(of_file).collect();
        self.fill_empty(&plan, &copies)?;
        self.carry_out(Step::Accuse, &all)?;
        record(&self.place, &plan.all, state)?;
        self.carry_out(Step::Acquit, &all)?;
        self.unlock_data();
        Ok(plan)
    }

    /// A shard that was never written to is an empty file. Where copies accuse each other AFR
    /// takes the only one that is not empty, whatever the marks say
    /// (`afr_mark_source_sinks_if_file_empty`): that would be the lost one.
    fn fill_empty(&mut self, plan: &ImagePlan, copies: &[FileCopies]) -> Result<(), OpenError> {
        let (local, layout) = (self.shape.local, self.place.located.layout());
        let Some(port) = self.ports.get_mut(local) else {
            return Ok(());
        };
        for (file, _) in &plan.files {
            let copy = copies
                .get(file.at())
                .and_then(|copies| copies.get(local)?.as_ref());
            if copy.is_none_or(|copy| copy.size != 0) {
                continue;
            }
            let range = layout.range(*file);
            port.select(*file);
            port.truncate(range.end - range.start)
                .and_then(|()| port.fsync())
                .map_err(|error| brick_failed(&self.names, local, &error))?;
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        step: Step,
        all: &[(FileIndex, Vec<(usize, Changes)>)],
    ) -> Result<(), OpenError> {
        for (file, changes) in all {
            self.ports.iter_mut().for_each(|port| port.select(*file));
            promotion::carry_out(step, changes, &mut self.ports)
                .map_err(|(brick, error)| brick_failed(&self.names, brick, &error))?;
        }
        Ok(())
    }

    fn unlock_data(&mut self) {
        for (brick, port) in reached(&mut self.ports, self.reached) {
            for file in &self.guarded {
                port.select(*file);
                if let Err(error) = port.unlock(Lock::Data) {
                    log::warn!("{}: {error}", self.names.one(brick));
                }
            }
        }
    }

    fn claim(&self) -> Claim {
        Claim {
            session: self.place.me.session,
            read_only: false,
            files: self.place.located.layout().len() as u32,
        }
    }

    fn lock_session(&mut self) -> Result<(), OpenError> {
        let (names, claim) = (&self.names, self.claim());
        for (brick, port) in reached(&mut self.ports, self.reached) {
            lock_session(port, &claim).map_err(|why| blocked(names, brick, why))?;
        }
        Ok(())
    }

    /// Keeps heals from these files, besides those from which they are kept already.
    fn guard(&mut self, files: BTreeSet<FileIndex>) -> Result<(), OpenError> {
        let claim = self.claim();
        let new: Vec<_> = files.difference(&self.guarded).copied().collect();
        for (brick, port) in reached(&mut self.ports, self.reached) {
            for file in &new {
                port.select(*file);
                lock_background(port, &claim)
                    .map_err(|why| blocked(&self.names, brick, why).of_file(*file))?;
            }
        }
        self.guarded.extend(new);
        Ok(())
    }

    fn lock_data(&mut self) -> Result<(), OpenError> {
        let names = &self.names;
        let begin = Instant::now();
        for (brick, port) in reached(&mut self.ports, self.reached) {
            let failed = |error| brick_failed(names, brick, &error);
            for file in &self.guarded {
                port.select(*file);
                while !port.try_lock(Lock::Data).map_err(failed)? {
                    if begin.elapsed() > DATA_LOCK_LIMIT {
                        return Err(busy(names, brick, Lock::Data).of_file(*file));
                    }
                    std::thread::sleep(DATA_LOCK_PAUSE);
                }
            }
        }
        Ok(())
    }

    /// What the bricks say of each file, in the layout's order.
    fn probe(&mut self) -> Result<Vec<FileCopies>, OpenError> {
        let files = self.claim().files;
        let mut copies = vec![vec![None; self.ports.len()]; files as usize];
        for (brick, port) in reached(&mut self.ports, self.reached) {
            let failed = |error| brick_failed(&self.names, brick, &error);
            let read = port.look_at_all(files).map_err(failed)?;
            for (of_file, copy) in copies.iter_mut().zip(read) {
                of_file[brick] = Some(copy);
            }
            for file in &self.guarded {
                port.select(*file);
                copies[file.at()][brick] = Some(port.probe().map_err(failed)?);
            }
        }
        Ok(copies)
    }

    fn plan_for(&self, copies: &[FileCopies]) -> Result<ImagePlan, Failure> {
        let refused = |why| Failure::NotPromoted {
            image: format!("{}{}", self.names.volume, self.place.located.image),
            why,
        };
        let plan = promotion::plan_image(&self.shape, copies);
        let plan = plan.map_err(|(file, why)| match file {
            FileIndex::BASE => refused(why.told(&self.names)),
            file => refused(format!("shard {}: {}", file.0, why.told(&self.names))),
        })?;
        let new = plan
            .files
            .iter()
            .find(|(file, _)| !self.guarded.contains(file));
        match new {
            None => Ok(plan),
            Some((file, _)) => Err(refused(format!(
                "shard {} was marked at this moment. Try again",
                file.0
            ))),
        }
    }
}

/// The files that some brick has marks on.
fn marked(copies: &[FileCopies]) -> BTreeSet<FileIndex> {
    let is_marked = |copy: &CopyState| copy.dirty != 0 || !copy.accuses().is_empty();
    let files = (0..).map(FileIndex).zip(copies);
    let marked = files.filter(|(_, copies)| copies.iter().flatten().any(is_marked));
    marked.map(|(file, _)| file).collect()
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

fn blocked(names: &Names, brick: usize, why: Blocked) -> OpenError {
    match why {
        Blocked::Session(holder) => OpenError::Locked {
            brick: names.one(brick),
            holder,
        },
        Blocked::Busy(lock) => busy(names, brick, lock),
        Blocked::Port(error) => brick_failed(names, brick, &error),
    }
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
