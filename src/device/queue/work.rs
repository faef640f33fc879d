//! One queue at work: takes requests from the ring, asks the gate, submits,
//! completes, drains.
//!
//! Everything here runs on the queue's own thread, called by the backend, and touches
//! no other queue. How that thread waits, in `waiting`, is half of how fast the disk is.
//!
//! # A closed gate
//! A request whose change must wait is *parked*, and while one is parked the
//! queue takes no further request. So at most one request per queue waits, it is
//! always the last one taken, and when the ring stops it is simply put back: the
//! available index goes one back, and whoever starts the ring next, here or on
//! another host, takes it again. (Of requests that are done again after a crash
//! more than one may wait so: see `intake`.) The price is that reads behind a parked write
//! in the same queue wait too; reads on other queues go on.
//!
//! # A ring without its memory
//! A front-end that changes a region of the guest's memory may take it away and
//! add it again while the rings run. A queue whose ring is in no memory does
//! nothing, not even reap, until the next map or until it is to stop.

mod admission;
mod alone;
mod batches;
mod holding;
mod syncing;
#[cfg(test)]
mod tests;
mod waiting;

use crate::device::request::outcome::Step;
use std::sync::Arc;

use crate::device::gate::Gate;
use crate::device::guest::memory::View;
use crate::device::io::bounce::BouncePool;
use crate::device::io::engine::{Completion, Engine, Event, Reaped};
use crate::device::request::decode::Status;
use crate::device::request::slot::{Access, Loaded};
use crate::device::request::slots::Slots;
use crate::device::shared_memory::log_switch::LogView;
use crate::device::stats::Stopwatch;

use super::control::{CLOSED, Control};
use super::intake::Intake;
use super::ring::{Ring, RingError};
use super::shared::{Connection, Shared};
use super::vring::Vring;
use alone::Alone;
use batches::Batches;
use holding::Holding;
use syncing::Syncing;
use waiting::Waiting;

/// One queue, for one connection.
pub struct Queue<G> {
    index: usize,
    shared: Arc<Shared<G>>,
    control: Arc<Control>,
    view: View,
    log: LogView,
    intake: Intake,
    engine: Engine,
    slots: Slots,
    parked: Option<usize>,
    alone: Alone,
    holding: Holding,
    syncing: Syncing,
    /// Requests taken.
    taken: u64,
    stopwatch: Stopwatch,
    pool: BouncePool,
    waiting: Waiting,
    /// The guest spoiled the ring: nothing is taken until it is started anew.
    broken: bool,
    /// The newest map lacks the ring: nothing is done before one that has it.
    stranded: bool,
    /// The kernel takes no I/O, as the log says already.
    refused: bool,
    /// The last drain that was answered.
    drained: u64,
}

/// What comes after a round.
enum Next {
    /// Another one, at once.
    Round,
    /// A wait for whatever comes first. The guest has been asked to kick, if it may.
    Wait,
    /// A wait for the front-end alone.
    WaitForFrontEnd,
}

impl<G: Gate> Queue<G> {
    /// Queue `index`, woken through `control`.
    ///
    /// # Errors
    /// What the kernel refused in setting up io_uring.
    pub fn new(
        index: usize,
        shared: Arc<Shared<G>>,
        control: Arc<Control>,
        connection: &Connection,
        view: View,
    ) -> std::io::Result<Self> {
        let size = shared.config.queue_size;
        let syncing = Syncing::new(&shared.disk, size);
        Ok(Self {
            index,
            engine: Engine::new(shared.disk.files(), syncing.tokens(), control.event())?,
            shared,
            control,
            view,
            log: LogView::new(Arc::clone(&connection.logging), index),
            intake: Intake::new(index, Arc::clone(&connection.inflight)),
            slots: Slots::new(size),
            parked: None,
            alone: Alone::default(),
            holding: Holding::new(),
            syncing,
            taken: 0,
            stopwatch: Stopwatch::default(),
            pool: BouncePool::default(),
            waiting: Waiting::new(connection.idle),
            broken: false,
            stranded: false,
            refused: false,
            drained: 0,
        })
    }

    fn look(&mut self, vring: &Vring) -> Next {
        let mut ring = vring.open();
        let next = self.round(&mut ring).unwrap_or_else(|error| {
            self.break_ring(&error);
            Next::Round
        });
        self.count_in_flight();
        self.answer_drain(&mut ring, vring);
        next
    }

    /// One look at everything.
    fn round(&mut self, ring: &mut Ring<'_>) -> Result<Next, RingError> {
        let stopping = self.drained == CLOSED || self.control.drain_asked(self.drained).is_some();
        if self.view.refresh() || self.stranded {
            self.find_ring(ring);
        }
        if let Some(epoch) = self.log.refresh() {
            self.control.adopted(epoch);
            if ring.running() {
                ring.check_log(self.log.current())?;
            }
        }
        if self.stranded && !stopping {
            return Ok(Next::WaitForFrontEnd);
        }
        self.reap(ring)?;
        let mut taking = !stopping && !self.broken && ring.running();
        if stopping {
            self.put_back(ring)?;
        } else if taking {
            self.start(ring)?;
            taking = self.shared.gate.may_take();
            if taking {
                self.retry_alone(ring)?;
                self.retry_parked(ring)?;
                self.try_held(ring)?;
                self.take(ring)?;
            }
        }
        // What was taken is handed over by whoever waits, unless there is something to say
        // before that: the disk begins first.
        if ring.has_pushed() && !self.broken {
            let submitted = self.submit();
            self.publish(ring)?;
            if !submitted {
                return Ok(Next::Round);
            }
        }
        if self.view.is_stale() {
            return Ok(Next::Round);
        }
        if taking && self.parked.is_none() && self.slots.has_free() {
            let more = ring.rearm(self.view.current(), self.log.current())?;
            return Ok(if more { Next::Round } else { Next::Wait });
        }
        Ok(Next::Wait)
    }

    /// Hands over what was pushed. Returns whether the kernel took it; what it did not
    /// take is handed over again.
    fn submit(&mut self) -> bool {
        let submitted = self.engine.submit();
        self.note_refusal(submitted)
    }

    fn note_refusal(&mut self, submitted: std::io::Result<()>) -> bool {
        let taken = submitted.is_ok();
        if let Err(error) = submitted
            && !self.refused
        {
            log::warn!(
                "queue {}: the kernel takes no I/O, trying again: {error}",
                self.index
            );
        }
        self.refused = !taken;
        taken
    }

    fn find_ring(&mut self, ring: &Ring<'_>) {
        let before = std::mem::replace(&mut self.stranded, !ring.is_within(self.view.current()));
        if self.stranded && !before && ring.running() {
            log::info!(
                "queue {}: the guest's memory lacks its ring; it waits for the front-end's next map",
                self.index
            );
        }
    }

    /// The first time that a ring is seen to run.
    fn start(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        if !self.intake.started() {
            self.intake.starting();
            self.shared.gate.ring_started();
            if let Some(stats) = self.shared.stats.queue(self.index) {
                stats.starts.add(1);
            }
            self.shared.stats.ring_started();
            let size = self.shared.disk.size();
            self.shared.size_changes.ring_started(size);
            ring.check_log(self.log.current())?;
            self.intake.start(ring)?;
        }
        Ok(())
    }

    fn publish(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        let memory = self.view.current();
        if let Some(published) = ring.publish(memory, self.log.current())? {
            self.intake.published(ring);
            self.log.current().tell();
            ring.signal(memory, &published)?;
        }
        Ok(())
    }

    fn reap(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        let mut batches = Batches::new();
        while let Some(reaped) = self.engine.reap() {
            let Completion {
                token,
                result,
                buffer,
            } = match reaped {
                Reaped::Operation(completion) => completion,
                Reaped::Event(Event::Alarm) => {
                    self.holding.pause_over();
                    continue;
                }
                Reaped::Event(event) => {
                    self.waiting.note(event);
                    continue;
                }
            };
            let Some(slot) = self.slots.get_mut(token) else {
                self.lane_ended(ring, token, result)?;
                continue;
            };
            let next = slot.completed(result, buffer, &self.shared.disk, &mut self.pool);
            self.go_on(ring, token, next, true)?;
            if batches.add() && !self.broken {
                self.publish(ring)?;
            }
        }
        Ok(())
    }

    /// Takes every request there is, until one must wait.
    fn take(&mut self, ring: &mut Ring<'_>) -> Result<(), RingError> {
        if self.parked.is_some() {
            return Ok(());
        }
        ring.look(self.view.current())?;
        if self.view.is_stale() {
            // What the guest has made available may lie in memory that was added
            // meanwhile: the next round takes it.
            return Ok(());
        }
        let mut batches = Batches::new();
        while self.slots.has_free() {
            let Some(head) = self.intake.take(ring, self.view.current())? else {
                break;
            };
            let Some((token, slot)) = self.slots.take() else {
                break;
            };
            self.taken += 1;
            slot.order = self.taken;
            self.stopwatch.begin(token);
            let durable = self.shared.cache.write_through();
            let loaded = slot.load(
                self.view.current(),
                ring.descriptors(),
                head,
                &self.shared.disk,
                durable,
            );
            match loaded {
                Loaded::Ready => self.admit(ring, token)?,
                Loaded::Answer(status) => self.finish(ring, token, status, false)?,
                Loaded::Unanswerable => self.finish(ring, token, Status::IoError, false)?,
            }
            if self.parked.is_some() {
                break;
            }
            if batches.add() {
                // What is refused is submitted again, and told, at the end of the round.
                let _ = self.engine.submit();
            }
        }
        Ok(())
    }

    fn go_on(
        &mut self,
        ring: &mut Ring<'_>,
        token: usize,
        next: Step,
        admitted: bool,
    ) -> Result<(), RingError> {
        let status = match next {
            Step::Submit(operation) => match self.engine.push(token, operation) {
                Ok(()) => return Ok(()),
                Err(_) => {
                    log::error!("queue {}: the I/O engine has no room", self.index);
                    Status::IoError
                }
            },
            Step::SyncFiles => {
                self.syncing.add(token);
                return self.begin_syncs(ring);
            }
            Step::Done(status) => status,
            Step::Full(errno) => {
                self.hold(token, errno);
                return Ok(());
            }
            Step::Unsynced(errno) => {
                self.shared.gate.sync_failed(errno);
                Status::IoError
            }
        };
        self.finish(ring, token, status, admitted)
    }

    /// Answers a request and frees its slot; `admitted` if the gate let it in.
    fn finish(
        &mut self,
        ring: &mut Ring<'_>,
        token: usize,
        mut status: Status,
        admitted: bool,
    ) -> Result<(), RingError> {
        let Some(slot) = self.slots.get_mut(token) else {
            return Ok(());
        };
        if admitted && let Access::Change(extents) = slot.access() {
            for extent in extents {
                self.shared.gate.end_write(extent.offset, extent.len);
            }
        }
        if admitted && slot.syncs() && !self.shared.gate.end_sync() {
            status = Status::IoError;
        }
        if let Some(stats) = self.shared.stats.queue(self.index) {
            stats.count(slot.kind(), status);
            self.stopwatch.end(token, stats);
        }
        if slot.held_since.take().is_some() {
            self.shared.space.wait_over();
        }
        let log = self.log.current();
        let (written, settled) = slot.answer(status, log.data());
        let head = slot.head();
        self.slots.free(token, settled);
        if !self.broken {
            ring.push_used(self.view.current(), log, head, written)?;
            self.intake.answered(head);
        }
        let others = self.holding.answered(token, status);
        self.try_all(ring, others)
    }

    fn break_ring(&mut self, error: &RingError) {
        if !self.broken {
            log::error!(
                "queue {}: {error}; it does nothing until the guest's driver starts it anew",
                self.index
            );
            self.tell_dead(Some(error.to_string()));
        }
        self.broken = true;
    }

    fn tell_dead(&self, why: Option<String>) {
        if let Some(stats) = self.shared.stats.queue(self.index) {
            stats.set_dead(why);
        }
    }

    fn count_in_flight(&self) {
        if let Some(stats) = self.shared.stats.queue(self.index) {
            stats.in_flight.set(self.slots.taken() as u64);
            let parked = usize::from(self.parked.is_some()) + self.alone.len();
            stats.parked.set(parked as u64);
            stats.held.set(self.holding.len() as u64);
            // Of a stopped ring the last figure stands: its record may come back.
            if self.intake.started() {
                let waits = self.parked.is_some();
                let unrepeated = self.intake.unrepeated(waits) + self.alone.unrepeated();
                stats.unrepeated.set(unrepeated as u64);
            }
        }
    }

    fn answer_drain(&mut self, ring: &mut Ring<'_>, vring: &Vring) {
        if let Some(ticket) = self.control.drain_asked(self.drained)
            && self.slots.taken() == 0
        {
            ring.stop();
            // QEMU, who has the event fd next, would take it for a new one.
            vring.take_kick();
            if self.intake.started() {
                self.intake.stopped(ring);
                self.shared.gate.ring_stopped();
            }
            if std::mem::take(&mut self.broken) {
                self.tell_dead(None);
            }
            self.drained = ticket;
            self.control.drained(ticket);
        }
    }
}
