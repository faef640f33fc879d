//! The gate between the guest's requests and the session.
//!
//! Queue threads ask it before every request, and it answers from one atomic.
//! The session thread is its only operator. It keeps no request: a queue whose
//! write has to wait keeps that request itself and is woken when the answer may
//! have changed.
//!
//! Every admitted write is in the dirty map before it is submitted. Who removes
//! marks closes the gate first and looks at the map then; a write enters the map
//! first and looks at the gate then. So one of them sees the other.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::device::gate::{Admission, Gate};
use crate::image::dirty_map::{Begun, DirtyMap, Ended};
use crate::image::layout::{FileIndex, Layout};
use crate::image::local::Durability;

use super::state_machine::GateState;

/// Told when the session's thread has something to do.
type Tell = Box<dyn Fn() + Send + Sync>;
/// The same about a file of the image.
type TellOf = Box<dyn Fn(FileIndex) + Send + Sync>;

/// How near to the end of a file a write has to come for the next file to be made ready, as a
/// part of the file's size: a quarter. Marks take some milliseconds, in which a fast writer
/// gets some ten MiB far; a file of 64 MiB has 16 left then.
const AHEAD: u64 = 4;

/// See the module.
pub struct WriteGate {
    base: FileGate,
    /// Those of the other files, if the image is several.
    more: Box<[FileGate]>,
    /// Bytes of the image in each file but the last.
    piece: u64,
    /// Absent in a read-only session.
    map: Option<Arc<DirtyMap>>,
    on_wanted: TellOf,
    durability: Arc<Durability>,
    on_sync_failed: Tell,
    wakers: Mutex<Vec<Arc<EventFd>>>,
}

impl WriteGate {
    /// A held gate over an image of one file. `on_wanted` is called from a queue thread when
    /// the first write waits, and again after each change to [`GateState::Hold`]. Without a
    /// map no write is let through.
    pub fn new(map: Option<Arc<DirtyMap>>, on_wanted: impl Fn() + Send + Sync + 'static) -> Self {
        let whole = Layout::new(uuid::Uuid::nil(), 0, None);
        Self::over_files(&whole, map, move |_| on_wanted())
    }

    /// The same over an image of several files: each has a state of its own.
    pub fn over_files(
        layout: &Layout,
        map: Option<Arc<DirtyMap>>,
        on_wanted: impl Fn(FileIndex) + Send + Sync + 'static,
    ) -> Self {
        Self {
            base: FileGate::held(),
            more: layout.files().skip(1).map(|_| FileGate::held()).collect(),
            piece: layout.piece(),
            map,
            on_wanted: Box::new(on_wanted),
            durability: Arc::default(),
            on_sync_failed: Box::new(|| {}),
            wakers: Mutex::new(Vec::new()),
        }
    }

    /// With what is known of the local file's syncs. `on_failed` is called from a queue
    /// thread when one of the guest's is the first that fails.
    #[must_use]
    pub fn over(
        self,
        durability: Arc<Durability>,
        on_failed: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            durability,
            on_sync_failed: Box::new(on_failed),
            ..self
        }
    }

    /// What is known of the local file's syncs.
    pub fn durability(&self) -> &Arc<Durability> {
        &self.durability
    }

    /// Where the writes that are let through are noted.
    pub fn map(&self) -> Option<&Arc<DirtyMap>> {
        self.map.as_ref()
    }

    /// Changes the answer for every file and wakes every queue. Whoever looks at the map
    /// after this has returned sees every write that the state before let through.
    pub fn set(&self, state: GateState) {
        self.base.set(state);
        self.more.iter().for_each(|file| file.set(state));
        fence(Ordering::SeqCst);
        self.wake_all();
    }

    /// The same for one file.
    pub fn set_file(&self, file: FileIndex, state: GateState) {
        if let Some(file) = self.file(file.at() as u64) {
            file.set(state);
        }
        fence(Ordering::SeqCst);
        self.wake_all();
    }

    /// The present answer for a file; of one that is not there, what it is at the beginning.
    pub fn state_of(&self, file: FileIndex) -> GateState {
        let file = self.file(file.at() as u64);
        file.map_or(GateState::Hold, FileGate::state)
    }

    fn file(&self, index: u64) -> Option<&FileGate> {
        match index.checked_sub(1) {
            None => Some(&self.base),
            Some(index) => self.more.get(usize::try_from(index).ok()?),
        }
    }

    fn wake_all(&self) {
        let wakers = self.wakers.lock().unwrap_or_else(|e| e.into_inner());
        for wake in wakers.iter() {
            if let Err(error) = wake.write(1) {
                log::error!("cannot wake a queue that waits at the gate: {error}");
            }
        }
    }

    /// The present answer for the first file.
    pub fn state(&self) -> GateState {
        self.base.state()
    }

    /// What a write of `len` bytes at `offset` is told now.
    fn ask(&self, offset: u64, len: u64) -> Admission {
        match self.more.is_empty() {
            true => self.ask_file(FileIndex::BASE, &self.base),
            false => self.ask_files(offset, len),
        }
    }

    fn ask_file(&self, index: FileIndex, file: &FileGate) -> Admission {
        match file.state() {
            GateState::Open => Admission::Go,
            GateState::Hold => {
                self.want(index, file);
                Admission::Wait
            }
            GateState::FailWrites | GateState::FailAll => Admission::Refuse,
        }
    }

    fn want(&self, index: FileIndex, file: &FileGate) {
        if !file.wanted.swap(true, Ordering::SeqCst) {
            (self.on_wanted)(index);
        }
    }

    /// All files that it touches are asked, so that they are made ready together.
    fn ask_files(&self, offset: u64, len: u64) -> Admission {
        let end = offset.saturating_add(len.max(1));
        let (first, last) = (offset / self.piece, (end - 1) / self.piece);
        let mut answer = Admission::Go;
        for number in first..=last {
            let index = FileIndex(u32::try_from(number).unwrap_or(u32::MAX));
            let Some(file) = self.file(number) else {
                return Admission::Refuse;
            };
            match self.ask_file(index, file) {
                Admission::Go => {}
                Admission::Refuse => return Admission::Refuse,
                // The others' files may be open.
                Admission::Wait | Admission::WaitAlone => answer = Admission::WaitAlone,
            }
        }
        self.make_next_ready(last, end);
        answer
    }

    /// Of whoever writes up to here in one file, the next write may be in the one behind.
    fn make_next_ready(&self, last: u64, end: u64) {
        let left = (last + 1).saturating_mul(self.piece).saturating_sub(end);
        if left < self.piece / AHEAD
            && let Some(next) = self.file(last + 1)
            && next.state() == GateState::Hold
        {
            let index = u32::try_from(last + 1).unwrap_or(u32::MAX);
            self.want(FileIndex(index), next);
        }
    }

    /// Is a write waiting now?
    pub fn is_wanted(&self) -> bool {
        let mut files = [&self.base].into_iter().chain(self.more.iter());
        files.any(FileGate::is_wanted)
    }
}

/// What is known of one file.
struct FileGate {
    state: AtomicU8,
    wanted: AtomicBool,
}

impl FileGate {
    fn held() -> Self {
        Self {
            state: AtomicU8::new(encode(GateState::Hold)),
            wanted: AtomicBool::new(false),
        }
    }

    fn set(&self, state: GateState) {
        if state == GateState::Hold {
            self.wanted.store(false, Ordering::SeqCst);
        }
        self.state.store(encode(state), Ordering::SeqCst);
    }

    fn state(&self) -> GateState {
        decode(self.state.load(Ordering::SeqCst))
    }

    fn is_wanted(&self) -> bool {
        self.state() == GateState::Hold && self.wanted.load(Ordering::SeqCst)
    }
}

impl Gate for WriteGate {
    fn admit_read(&self) -> Admission {
        match decode(self.base.state.load(Ordering::Acquire)) {
            GateState::FailAll => Admission::Refuse,
            GateState::Hold | GateState::Open | GateState::FailWrites => Admission::Go,
        }
    }

    fn begin_write(&self, offset: u64, len: u64) -> Admission {
        let Some(map) = &self.map else {
            return Admission::Refuse;
        };
        let answer = self.ask(offset, len);
        if answer != Admission::Go {
            return answer;
        }
        match map.begin_write(offset, len) {
            Begun::Yes => {}
            Begun::Full => return Admission::Wait,
            Begun::Outside => return Admission::Refuse,
        }
        fence(Ordering::SeqCst);
        let answer = self.ask(offset, len);
        if answer != Admission::Go {
            self.end_write(offset, len);
        }
        answer
    }

    fn end_write(&self, offset: u64, len: u64) {
        let ended = self.map.as_ref().map(|map| map.end_write(offset, len));
        if ended == Some(Ended::RoomAgain) {
            self.wake_all();
        }
    }

    fn begin_sync(&self) -> Admission {
        match self.durability.begin() {
            true => Admission::Go,
            false => Admission::Refuse,
        }
    }

    fn sync_failed(&self, errno: i32) {
        if self.durability.fail_with("the guest's flush", errno) {
            (self.on_sync_failed)();
        }
    }

    fn end_sync(&self) -> bool {
        self.durability.end();
        self.durability.failure().is_none()
    }

    fn subscribe(&self, wake: Arc<EventFd>) {
        let mut wakers = self.wakers.lock().unwrap_or_else(|e| e.into_inner());
        // A queue that is gone holds its event fd no longer.
        wakers.retain(|known| Arc::strong_count(known) > 1);
        wakers.push(wake);
    }
}

fn encode(state: GateState) -> u8 {
    match state {
        GateState::Hold => 0,
        GateState::Open => 1,
        GateState::FailWrites => 2,
        GateState::FailAll => 3,
    }
}

fn decode(state: u8) -> GateState {
    match state {
        0 => GateState::Hold,
        1 => GateState::Open,
        2 => GateState::FailWrites,
        _ => GateState::FailAll,
    }
}

#[cfg(test)]
mod tests;
