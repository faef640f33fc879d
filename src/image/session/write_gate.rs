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
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::image::dirty_map::{ExtentSize, Identity, Peer, Peers};

    /// A clean map of two extents and one peer.
    fn map() -> (tempfile::TempDir, Arc<DirtyMap>) {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity {
            gfid: uuid::Uuid::from_u128(1),
            size: 8192,
            extent_size: ExtentSize::new(4096).unwrap(),
            local: "a:/b".into(),
            peers: vec!["b:/b".into()],
        };
        let (map, _) = DirtyMap::open(&directory.path().join("map"), &identity).unwrap();
        map.declare_clean(Peers::first(1));
        (directory, Arc::new(map))
    }

    fn the_peer() -> Peer {
        Peer::new(0).unwrap()
    }

    #[test]
    fn an_admitted_write_is_in_the_map_and_one_that_waits_is_not() {
        let (_directory, map) = map();
        let gate = WriteGate::new(Some(map.clone()), || {});
        let seen = || (map.dirty_extents(the_peer()), map.extents_in_flight());
        assert_eq!(gate.begin_write(0, 512), Admission::Wait);
        assert_eq!(seen(), (0, 0));
        gate.set(GateState::Open);
        assert_eq!(gate.begin_write(4096, 512), Admission::Go);
        assert_eq!(seen(), (1, 1));
        gate.end_write(4096, 512);
        assert_eq!(seen(), (1, 0));
        let behind_the_end = gate.begin_write(8192, 1);
        assert_eq!(behind_the_end, Admission::Refuse);
    }

    #[test]
    fn a_full_extent_makes_a_write_wait_until_one_has_ended() {
        let (_directory, map) = map();
        let gate = WriteGate::new(Some(map), || {});
        gate.set(GateState::Open);
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        gate.subscribe(wake.clone());
        (0..255).for_each(|_| assert_eq!(gate.begin_write(0, 512), Admission::Go));
        assert_eq!(gate.begin_write(0, 512), Admission::Wait);
        assert!(wake.read().is_err(), "woken too early");
        gate.end_write(0, 512);
        assert_eq!(wake.read().unwrap(), 1);
        assert_eq!(gate.begin_write(0, 512), Admission::Go);
    }

    #[test]
    fn after_a_flush_that_failed_none_is_answered_well_not_even_one_that_was_under_way() {
        let told = Arc::new(AtomicUsize::new(0));
        let telling = told.clone();
        let gate = WriteGate::new(None, || {}).over(Arc::default(), move || {
            telling.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(gate.begin_sync(), Admission::Go);
        assert!(gate.end_sync());
        assert_eq!([gate.begin_sync(), gate.begin_sync()], [Admission::Go; 2]);
        gate.sync_failed(libc::EIO);
        gate.sync_failed(libc::EIO);
        assert_eq!(told.load(Ordering::SeqCst), 1);
        assert_eq!([gate.end_sync(), gate.end_sync()], [false; 2]);
        assert_eq!(gate.begin_sync(), Admission::Refuse);
    }

    #[test]
    fn whoever_closes_the_gate_and_then_finds_the_map_clean_is_followed_by_no_write() {
        for _ in 0..300 {
            let (_directory, map) = map();
            let gate = WriteGate::new(Some(map.clone()), || {});
            gate.set(GateState::Open);
            let (admitted, found_clean) = std::thread::scope(|scope| {
                let writer = scope.spawn(|| gate.begin_write(0, 512) == Admission::Go);
                gate.set(GateState::Hold);
                let clean = map.next_dirty(the_peer(), 0).is_none();
                (writer.join().unwrap(), clean)
            });
            assert!(!(admitted && found_clean));
        }
    }

    #[test]
    fn a_held_gate_asks_for_marks_once_and_again_after_it_was_held_anew() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let (_directory, map) = map();
        let gate = WriteGate::new(Some(map), move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(gate.begin_write(0, 512), Admission::Wait);
        assert_eq!(gate.begin_write(0, 512), Admission::Wait);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        gate.set(GateState::FailWrites);
        assert_eq!(gate.begin_write(0, 512), Admission::Refuse);
        gate.set(GateState::Hold);
        assert_eq!(gate.begin_write(0, 512), Admission::Wait);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn reads_go_on_in_every_state_but_the_stopped_one() {
        let (_directory, map) = map();
        let gate = WriteGate::new(Some(map), || {});
        for state in [GateState::Hold, GateState::Open, GateState::FailWrites] {
            gate.set(state);
            assert_eq!(gate.admit_read(), Admission::Go);
        }
        gate.set(GateState::FailAll);
        assert_eq!(gate.admit_read(), Admission::Refuse);
        assert_eq!(gate.begin_write(0, 1), Admission::Refuse);
    }

    #[test]
    fn a_change_wakes_every_subscribed_queue_and_forgets_those_that_are_gone() {
        let gate = WriteGate::new(None, || {});
        let (kept, gone) = (
            Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
            Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
        );
        gate.subscribe(gone.clone());
        drop(gone);
        gate.subscribe(kept.clone());
        gate.set(GateState::Open);
        assert_eq!(kept.read().unwrap(), 1);
        assert_eq!(gate.wakers.lock().unwrap().len(), 1);
    }
}
