//! A session: one image, opened by one daemon, until it is closed or stops.
//!
//! [`Session::open`] brings it up and is the handle that its owner keeps; the
//! session's thread itself is [`super::runner`]. It serves no I/O: the guest's
//! requests meet only the [`WriteGate`].

use super::map_place::{MapPlace, open_map, sync_first};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::image::error_chain::chain;
use crate::image::layout::{FileIndex, Layout};
use crate::image::local::error::LocalError;
use crate::image::local::{Fingerprint, Local};
use crate::image::replica::brick_port::{BrickPort, CopyState, FileCopies};
use crate::image::replica::brick_set::{Shape, VolumeChange};
use crate::image::replica::brick_worker::Worker;
use crate::image::replica::holder::Holder;
use crate::image::replica::missed_writes::MissedWrites;
use crate::image::replica::names::Names;
use crate::image::replica::session_lock::Claim;
use crate::image::scheduler::Scheduler;

use super::bell::Bell;
use super::ending::{Ending, KeptSession, Parting};
use super::error::OpenError;
use super::extension::Extend;
use super::handle::SessionHandle;
use super::input::Input;
use super::open::{self, Opened, Waiting};
use super::resize::{Insist, NewSize, ResizeError, Resized};
use super::runner::{FileReplica, Runner, gate_over};
use super::snapshot::{CopySnapshot, Snapshot};
use super::state_machine::{Machine, Phase, StopReason};
use super::terms::Terms;
use super::write_gate::WriteGate;

/// What a session needs to begin.
pub struct Setup {
    /// The replica set.
    pub shape: Shape,
    /// The files that the image is made of.
    pub layout: Layout,
    /// The bricks' names, in child order.
    pub names: Names,
    /// Its bricks, in child order.
    pub ports: Vec<Box<dyn BrickPort>>,
    /// Names of the pending attributes (`trusted.afr.…`), in child order.
    pub pending_names: Arc<[String]>,
    /// Who we are.
    pub me: Holder,
    /// How to open.
    pub terms: Terms,
    /// How long a first write waits for a quorum before it fails.
    pub quorum_timeout: Duration,
    /// Where the dirty map is. Not used by a read-only session.
    pub map: MapPlace,
    /// Told how it ends, from the session's thread, while it still has its locks: what is
    /// kept about the image is not kept about a later session's.
    pub on_end: Box<dyn Fn(Parting, Ending) + Send>,
    /// Told when a brick that was away is back.
    pub on_return: Box<dyn Fn() + Send>,
}

/// A running session.
pub struct Session {
    inbox: Sender<Input>,
    /// Another one when the image has grown.
    gate: Arc<ArcSwap<WriteGate>>,
    handle: SessionHandle,
    threads: Scheduler,
    /// Taken when it is over.
    ended: Option<Receiver<Ending>>,
}

impl Session {
    /// Opens the image. `open_local` opens the local copy once it is known to be
    /// fresh; `on_stop` is called, from the session's thread, if the session
    /// later ends by itself.
    ///
    /// # Errors
    /// Whatever forbids it; every lock is then given back.
    pub fn open<L: Local>(
        setup: Setup,
        cancelled: &AtomicBool,
        open_local: impl FnOnce(&CopyState) -> Result<L, LocalError>,
        on_stop: impl Fn(StopReason) + Send + 'static,
    ) -> Result<(Self, L), OpenError> {
        Self::open_on(Scheduler::default(), setup, cancelled, open_local, on_stop)
    }

    /// [`Session::open`] with threads of a simulator's.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open_on<L: Local>(
        threads: Scheduler,
        setup: Setup,
        cancelled: &AtomicBool,
        open_local: impl FnOnce(&CopyState) -> Result<L, LocalError>,
        on_stop: impl Fn(StopReason) + Send + 'static,
    ) -> Result<(Self, L), OpenError> {
        let Setup {
            shape,
            layout,
            names,
            ports,
            pending_names,
            me,
            terms,
            quorum_timeout,
            map: map_place,
            on_end,
            on_return,
        } = setup;
        let claim = Claim {
            session: me.session,
            read_only: terms.read_only,
            files: layout.len() as u32,
        };
        let (inbox, events) = mpsc::channel();
        let workers = start_workers(&names, ports, claim, &threads, &inbox)?;
        let open_watched = |copy: &CopyState, copies: &[FileCopies]| {
            let local = open_local(copy)?;
            let watches = local.watch_all(pending_names)?;
            let durability = local.durability();
            let debt = Unbegun(match terms.read_only {
                true => None,
                false => {
                    // As large as it is now, and the file that the brick has now.
                    let layout = layout.as_opened(copy.gfid, local.size());
                    let (map, trust) = open_map(&map_place, &shape, &names, &layout)?;
                    let files = layout.files().zip(copies).zip(&watches);
                    let written = files.filter(|((file, copies), _)| {
                        let behind = map.behind_in(layout.range(*file));
                        may_be_written(&layout, copies) || !behind.is_empty()
                    });
                    sync_first(written.map(|(_, watch)| &**watch), &durability, &map)?;
                    let (layout, durability) = (layout.clone(), durability.clone());
                    let session = me.session;
                    Some(MissedWrites::adopt(
                        shape, layout, map, trust, copies, session, durability,
                    )?)
                }
            });
            Ok((local, watches, debt, durability))
        };
        let (opened, (local, watches, debt, durability)) = open::open(
            &shape,
            &names,
            &workers,
            claim,
            &terms,
            Waiting {
                cancelled,
                threads: &threads,
            },
            open_watched,
        )?;
        let layout = layout.as_opened(layout.gfid(FileIndex::BASE), local.size());
        let debt = debt.begin();
        let map = debt.as_ref().map(|debt| debt.map().clone());
        let gate = Arc::new(ArcSwap::from_pointee(gate_over(
            &layout,
            map,
            durability.clone(),
            &inbox,
        )));
        for (brick, worker) in workers.iter().enumerate() {
            opened
                .guarded
                .iter()
                .for_each(|file| worker.guard(*file, true));
            worker.watch(opened.held.contains(brick));
        }
        let files = layout.files().zip(watches).zip(&opened.copies);
        let files = files.map(|((file, watch), copies)| {
            let machine = Machine::new(shape, opened.held);
            FileReplica::new(machine, watch, copies, opened.guarded.contains(&file))
        });
        let snapshot = Arc::new(Mutex::new(first_snapshot(
            &names,
            &opened,
            &me,
            terms.read_only,
        )));
        let bell = Arc::new(Bell::new(threads.clone()));
        let runner = Runner {
            files: files.collect(),
            layout,
            claim,
            shape,
            names,
            workers,
            gate: gate.clone(),
            inbox: inbox.clone(),
            extent_size: map_place.extent_size,
            fence: opened.fence,
            hot_files: terms.hot_files,
            read_only: terms.read_only,
            debt,
            durability,
            sync_failure_noted: false,
            quorum_timeout,
            reached: opened.held,
            quorum_deadline: None,
            looked_at: threads.now(),
            contended: false,
            cooled_at: threads.now(),
            robbed: false,
            threads: threads.clone(),
            snapshot: snapshot.clone(),
            bell: bell.clone(),
            on_stop: Box::new(on_stop),
            on_end,
            on_return,
            volume: VolumeChange::NONE,
            stopped: false,
            given_back: false,
        };
        let (end, ended) = mpsc::channel();
        let run = move || {
            // An owner that is gone does not ask how it ended.
            let _ = end.send(runner.run(&events));
        };
        threads
            .spawn("session", run)
            .map_err(|source| OpenError::Thread {
                brick: "session".to_owned(),
                source,
            })?;
        Ok((
            Self {
                handle: SessionHandle::new(
                    shape,
                    inbox.clone(),
                    gate.clone(),
                    snapshot,
                    threads.clone(),
                    bell,
                ),
                inbox,
                gate,
                threads,
                ended: Some(ended),
            },
            local,
        ))
    }

    /// The gate to give to the device.
    pub fn gate(&self) -> Arc<WriteGate> {
        self.gate.load_full()
    }

    /// Makes all copies larger, and answers when each has the new size or is marked and
    /// behind. The guest's writes wait for a moment; from then on they need the gate that
    /// [`Session::gate`] gives. `block` is the disk's, in bytes; `extend` makes the files that the
    /// image needs then. Healers that are at work end, and may begin again afterwards.
    ///
    /// # Errors
    /// Why not: every copy has its old size, but those of bricks that were lost meanwhile.
    pub fn grow(
        &self,
        wanted: NewSize,
        block: u64,
        insist: Insist,
        extend: Extend,
    ) -> Result<Resized, ResizeError> {
        let gate = self.gate();
        let map = gate.map().ok_or(ResizeError::ReadOnly)?;
        let from = map.geometry().size();
        let to = wanted.of(from, block)?;
        if to == from {
            let behind = Vec::new();
            return Ok(Resized { from, to, behind });
        }
        let _away = self.handle.send_healers_away();
        let _none = map.keep_healers_out()?;
        let over = || ResizeError::Over("its thread is gone".to_owned());
        let (answer, receiver) = mpsc::channel();
        let grow = Input::Grow {
            to,
            insist,
            extend,
            answer,
        };
        self.inbox.send(grow).map_err(|_| over())?;
        let answered = self.threads.receive(&receiver, None);
        answered.unwrap_or_else(|_| Err(over()))
    }

    /// A way to see the session's state, and to ask things of it, from other threads.
    pub fn handle(&self) -> SessionHandle {
        self.handle.clone()
    }

    /// Ends the session: removes the marks against peers that miss nothing, lifts the
    /// fence and gives the locks back. The device must be drained before.
    pub fn close(mut self) -> Ending {
        self.end()
    }

    /// Ends the session if no copy that is held misses anything, with no mark left on it:
    /// whoever opens the image next may do so from any of them. If `to` is named, that
    /// child's copy must be among them. The device must be drained before. Returns what
    /// changes when somebody writes to the local copy from then on, if that is known.
    ///
    /// # Errors
    /// Why not; the session goes on.
    pub fn hand_over(&mut self, to: Option<usize>) -> Result<Option<Fingerprint>, String> {
        let (answer, receiver) = mpsc::channel();
        let over = || "the session's thread is gone".to_owned();
        let wish = Input::HandOver(to, answer);
        self.inbox.send(wish).map_err(|_| over())?;
        let answered = self.threads.receive(&receiver, None);
        let left = answered.unwrap_or_else(|_| Err(over()))?;
        self.end();
        Ok(left)
    }

    /// Lets the session rest. The device must be drained before.
    ///
    /// # Errors
    /// Why not; the session goes on.
    pub fn keep(&self) -> Result<KeptSession, String> {
        let (answer, receiver) = mpsc::channel();
        let over = || "the session is over".to_owned();
        self.inbox.send(Input::Keep(answer)).map_err(|_| over())?;
        let answer = self.threads.receive(&receiver, None);
        answer.unwrap_or_else(|_| Err(over()))
    }

    fn end(&mut self) -> Ending {
        let Some(ended) = self.ended.take() else {
            return Ending::Behind;
        };
        // A thread that is gone has closed its inbox.
        let _ = self.inbox.send(Input::Close);
        self.threads.receive(&ended, None).unwrap_or_else(|_| {
            log::error!("the session's thread panicked while it gave the image back");
            Ending::Behind
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

/// The debt of a session to be. If none comes of it, nothing was written: the map is closed
/// as it should be.
struct Unbegun(Option<MissedWrites>);

impl Unbegun {
    fn begin(mut self) -> Option<MissedWrites> {
        self.0.take()
    }
}

impl Drop for Unbegun {
    fn drop(&mut self) {
        if let Some(debt) = &self.0
            && let Err(error) = debt.close()
        {
            log::warn!("{}", chain(&error));
        }
    }
}

/// Of an image in pieces, those that nobody accuses anybody of, and of which the map knows
/// nothing, were not written to since they were made durable.
fn may_be_written(layout: &Layout, copies: &FileCopies) -> bool {
    let marked = |copy: &CopyState| copy.dirty != 0 || !copy.accuses().is_empty();
    layout.is_whole() || copies.iter().flatten().any(marked)
}

fn start_workers(
    names: &Names,
    ports: Vec<Box<dyn BrickPort>>,
    claim: Claim,
    threads: &Scheduler,
    inbox: &Sender<Input>,
) -> Result<Vec<Worker>, OpenError> {
    let start = |(brick, port)| {
        let inbox = inbox.clone();
        let report = move |report| {
            // A session that is over wants no reports.
            let _ = inbox.send(Input::Brick(brick, report));
        };
        Worker::start(&format!("brick-{brick}"), port, claim, threads, report).map_err(|source| {
            OpenError::Thread {
                brick: names.one(brick),
                source,
            }
        })
    };
    ports.into_iter().enumerate().map(start).collect()
}

fn first_snapshot(names: &Names, opened: &Opened, me: &Holder, read_only: bool) -> Snapshot {
    let copy = |(brick, name): (usize, &String)| CopySnapshot {
        brick: name.clone(),
        locked: opened.held.contains(brick),
        why_away: opened
            .away
            .iter()
            .find(|(b, _)| *b == brick)
            .map(|(_, why)| why.clone()),
        pending: opened
            .copies
            .first()
            .and_then(|copies| copies.get(brick)?.clone())
            .map(|copy| copy.pending),
        read_at: Some(Instant::now()),
    };
    Snapshot {
        phase: Phase::Unmarked,
        read_only,
        fence: opened.fence,
        holder: me.clone(),
        copies: names.bricks.iter().enumerate().map(copy).collect(),
        write_waiting: false,
        clean_before_writes: None,
        files: None,
        healing: None,
        sync_failed: None,
    }
}

#[cfg(test)]
mod tests;
