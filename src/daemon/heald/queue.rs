//! The images of this host whose sessions have ended: which are healed now, and which
//! wait for their turn. So many at one time, or all images of a host would be compared at
//! once after it crashed.
//!
//! Kept by [`super::host_healer`], which looks at the state directory; the healing of one is
//! [`super::finish_image`]'s.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::control::socket::HealQueue;
use crate::image::state_dir::Entry;

/// How long an image without a session is left alone: whoever served it may be
/// starting again.
const GRACE: Duration = Duration::from_secs(5);
/// How often it is looked whether an image is finished.
const WHILE_RUNNING: Duration = Duration::from_secs(1);
/// The longest pause between two attempts to finish an image.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// See the module.
pub struct Queue {
    jobs: usize,
    /// Images without a session, and when to try them next.
    waiting: HashMap<Uuid, Waiting>,
    running: HashMap<Uuid, Running>,
    /// For who asks.
    shown: Arc<Mutex<HealQueue>>,
}

/// The healing of one image.
struct Running {
    name: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

#[derive(Clone, Copy)]
struct Waiting {
    next: Instant,
    pause: Duration,
}

impl Queue {
    /// Of at most so many at one time; `shown` always tells how it stands.
    pub fn new(jobs: usize, shown: Arc<Mutex<HealQueue>>) -> Self {
        Self {
            jobs,
            waiting: HashMap::new(),
            running: HashMap::new(),
            shown,
        }
    }

    /// `unfinished` are all images that wait for nobody but a healer. As many as may be
    /// are started, those first that have waited longest.
    pub fn look(
        &mut self,
        now: Instant,
        unfinished: Vec<Entry>,
        start: impl Fn(Entry, Arc<AtomicBool>) -> Option<JoinHandle<()>>,
    ) {
        self.running.retain(|_, one| !one.thread.is_finished());
        let (waiting, running) = (&mut self.waiting, &self.running);
        waiting.retain(|gfid, _| {
            running.contains_key(gfid) || unfinished.iter().any(|entry| entry.gfid == *gfid)
        });
        let first = Waiting {
            next: now + GRACE,
            pause: GRACE,
        };
        let mut due: Vec<_> = unfinished
            .into_iter()
            .filter(|entry| !running.contains_key(&entry.gfid))
            .map(|entry| (waiting.entry(entry.gfid).or_insert(first).next, entry))
            .filter(|(next, _)| now >= *next)
            .collect();
        due.sort_by_key(|(next, _)| *next);
        let room = self.jobs.saturating_sub(self.running.len());
        let queued = due.split_off(room.min(due.len()));
        for (_, entry) in due {
            self.run(now, entry, &start);
        }
        self.show(queued.iter().map(|(_, entry)| entry.name()).collect());
    }

    /// When it is worth another look, if nothing else changes.
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        match self.running.is_empty() {
            true => self.waiting.values().map(|waiting| waiting.next).min(),
            false => Some(now + WHILE_RUNNING),
        }
    }

    fn run(
        &mut self,
        now: Instant,
        entry: Entry,
        start: &impl Fn(Entry, Arc<AtomicBool>) -> Option<JoinHandle<()>>,
    ) {
        let (gfid, name) = (entry.gfid, entry.name());
        if let Some(waiting) = self.waiting.get_mut(&gfid) {
            waiting.pause = (waiting.pause * 2).min(LONGEST_PAUSE);
            waiting.next = now + waiting.pause;
        }
        let stop = Arc::new(AtomicBool::new(false));
        if let Some(thread) = start(entry, stop.clone()) {
            let running = Running { name, stop, thread };
            self.running.insert(gfid, running);
        }
    }

    fn show(&self, queued: Vec<String>) {
        let mut healing: Vec<_> = self.running.values().map(|one| one.name.clone()).collect();
        healing.sort();
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if !queued.is_empty() && shown.queued != queued {
            let (count, jobs) = (queued.len(), self.jobs);
            log::info!(
                "{count} images wait for their turn to be healed, {jobs} at one time (--jobs): {}",
                queued.join(", ")
            );
        }
        (shown.healing, shown.queued) = (healing, queued);
    }

    /// Tells all of them to end.
    pub fn request_stop(&self) {
        for one in self.running.values() {
            one.stop.store(true, Ordering::SeqCst);
        }
    }

    /// Waits for their ends.
    pub fn join(self) {
        for one in self.running.into_values() {
            if one.thread.join().is_err() {
                log::error!("a thread panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn entry(number: u128) -> Entry {
        Entry::example("v", &format!("/{number}"), Uuid::from_u128(number))
    }

    #[test]
    fn after_a_crash_so_many_are_healed_at_one_time_and_the_others_wait_for_their_turn() {
        let shown = Arc::<Mutex<HealQueue>>::default();
        let mut queue = Queue::new(2, shown.clone());
        let (done, end) = mpsc::channel::<()>();
        let end = Mutex::new(end);
        let end = Arc::new(end);
        let start = |_: Entry, _: Arc<AtomicBool>| {
            let end = end.clone();
            Some(std::thread::spawn(move || {
                let _ = end.lock().unwrap().recv();
            }))
        };
        let all = || (1..=4).map(entry).collect::<Vec<_>>();
        let now = Instant::now();
        queue.look(now, all(), start);
        assert_eq!(*shown.lock().unwrap(), HealQueue::default(), "left alone");
        let later = now + GRACE;
        assert_eq!(queue.next_look(now), Some(later));
        queue.look(later, all(), start);
        let told = shown.lock().unwrap().clone();
        assert_eq!((told.healing.len(), told.queued.len()), (2, 2));
        queue.look(later, all(), start);
        assert_eq!(queue.running.len(), 2);
        // One is over: the next has its turn, before the one that was tried already.
        done.send(()).unwrap();
        while !queue.running.values().any(|one| one.thread.is_finished()) {
            std::thread::yield_now();
        }
        queue.look(later + LONGEST_PAUSE, all(), start);
        let next = shown.lock().unwrap().clone();
        assert!(next.healing.contains(&told.queued[0]), "{next:?}");
        assert!(next.queued.contains(&told.queued[1]), "{next:?}");
        // Whoever is served meanwhile waits for nothing.
        queue.look(later + LONGEST_PAUSE, Vec::new(), start);
        assert!(shown.lock().unwrap().queued.is_empty());
        assert_eq!(queue.next_look(later), Some(later + WHILE_RUNNING));
        drop(done);
        queue.join();
    }
}
