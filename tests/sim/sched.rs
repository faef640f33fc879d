//! Scheduler of which one at a time goes on: the one that has the baton. Who gets it
//! next is drawn from the seed, each time its holder waits for something.
//!
//! Production code runs on these threads unchanged; it comes here through
//! [`bypass_blk::image::scheduler`] and through the simulated bricks. Before each choice
//! the world makes a step of its own ([`Act`]): guests, clients, faults.
//!
//! A killed process's threads unwind at the place where they wait, one after the
//! other, before anybody else goes on.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::Thread;
use std::time::Duration;

use bypass_blk::image::scheduler::Simulator;
use bypass_blk::image::scheduler::clock::Clock;

use super::rng::Rng;

/// How much later it is at each choice.
const TICK: Duration = Duration::from_millis(20);

/// A process, by number; never used twice.
pub type Process = usize;
/// The simulator's own thread's process.
pub const DIRECTOR: Process = 0;

/// What the world does before somebody goes on.
pub type Act = Box<dyn FnMut() + Send>;

/// What a killed thread unwinds with.
struct Killed;

/// A question asked of a thread that waits; see [`Sched::wait`].
struct Ready(*mut (dyn FnMut() -> bool + 'static));

// SAFETY: it is called only by the holder of the baton, while the thread that it
// belongs to waits in `Sched::wait` and so uses nothing of it.
unsafe impl Send for Ready {}

struct Task {
    name: String,
    process: Process,
    ready: Option<Ready>,
    deadline: Option<Duration>,
    over: bool,
    /// To be woken.
    thread: Option<Thread>,
}

impl Task {
    fn new(name: &str, process: Process) -> Self {
        Self {
            name: name.to_owned(),
            process,
            ready: None,
            deadline: Some(Duration::ZERO),
            over: false,
            thread: None,
        }
    }

    /// Can it go on? Not asked again once it can: the answer may have taken something.
    fn is_able(&mut self, now: Duration) -> bool {
        let ready = self.ready.as_ref().filter(|_| !self.over);
        if let Some(Ready(ready)) = ready {
            // SAFETY: see `Ready`.
            let ready = unsafe { (**ready)() };
            if ready {
                (self.ready, self.deadline) = (None, Some(Duration::ZERO));
            }
        }
        !self.over && self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

struct Inner {
    tasks: Vec<Task>,
    current: usize,
    now: Duration,
    rng: Rng,
    killed: Vec<Process>,
    act: Option<Act>,
    /// Panics of threads that were not killed.
    panics: Vec<String>,
}

/// See the module.
pub struct Sched {
    inner: Mutex<Inner>,
}

thread_local! {
    static ME: Cell<usize> = const { Cell::new(0) };
}

impl Sched {
    /// The calling thread is the director and has the baton.
    pub fn new(rng: Rng) -> Arc<Self> {
        ME.set(0);
        Arc::new(Self {
            inner: Mutex::new(Inner {
                tasks: vec![Task::new("director", DIRECTOR)],
                current: 0,
                now: Duration::ZERO,
                rng,
                killed: Vec::new(),
                act: None,
                panics: Vec::new(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What the world does from now on.
    pub fn set_act(&self, act: Option<Act>) {
        self.lock().act = act;
    }

    pub fn panics(&self) -> Vec<String> {
        self.lock().panics.clone()
    }

    pub fn now(&self) -> Duration {
        self.lock().now
    }

    /// The process's threads unwind before anybody else goes on.
    pub fn kill(&self, process: Process) {
        self.lock().killed.push(process);
    }

    /// Has the process threads?
    pub fn is_alive(&self, process: Process) -> bool {
        let inner = self.lock();
        let lives = |task: &Task| task.process == process && !task.over;
        inner.tasks.iter().any(lives) && !inner.killed.contains(&process)
    }

    /// Starts a thread of `process`; it begins when it is chosen.
    pub fn spawn(
        self: &Arc<Self>,
        process: Process,
        name: &str,
        body: Box<dyn FnOnce() + Send>,
    ) -> io::Result<()> {
        let mut inner = self.lock();
        let me = inner.tasks.len();
        inner.tasks.push(Task::new(name, process));
        drop(inner);
        let sched = self.clone();
        let run = move || {
            ME.set(me);
            sched.await_turn(me);
            let done = match sched.is_killed(me) {
                true => Ok(()),
                false => catch_unwind(AssertUnwindSafe(body)),
            };
            let mut inner = sched.lock();
            if let Err(panic) = done
                && !panic.is::<Killed>()
            {
                let text = format!("{}: {}", inner.tasks[me].name, text_of(&*panic));
                inner.panics.push(text);
            }
            inner.tasks[me].over = true;
            drop(inner);
            sched.pass_on();
        };
        std::thread::Builder::new().spawn(run).map(drop)
    }

    /// Waits, while others go on, until `ready` says yes or `limit` is over.
    pub fn wait(&self, ready: &mut dyn FnMut() -> bool, limit: Option<Duration>) {
        let me = ME.get();
        if std::thread::panicking() || self.is_killed(me) {
            return self.die(me);
        }
        let mut inner = self.lock();
        let deadline = limit.map(|limit| inner.now + limit);
        let ready: *mut (dyn FnMut() -> bool + '_) = ready;
        // SAFETY: only the lifetime changes; `await_turn` returns only after the
        // pointer was taken out again.
        let ready: *mut (dyn FnMut() -> bool + 'static) = unsafe { std::mem::transmute(ready) };
        inner.tasks[me].ready = Some(Ready(ready));
        inner.tasks[me].deadline = deadline;
        drop(inner);
        self.pass_on();
        self.await_turn(me);
        if self.is_killed(me) {
            self.die(me);
        }
    }

    /// Lets others go on.
    pub fn step(&self) {
        self.wait(&mut || true, None);
    }

    fn die(&self, me: usize) {
        if !std::thread::panicking() && self.is_killed(me) {
            resume_unwind(Box::new(Killed));
        }
    }

    fn is_killed(&self, me: usize) -> bool {
        let inner = self.lock();
        inner.killed.contains(&inner.tasks[me].process)
    }

    fn await_turn(&self, me: usize) {
        let mut inner = self.lock();
        while inner.current != me {
            inner.tasks[me].thread = Some(std::thread::current());
            drop(inner);
            std::thread::park();
            inner = self.lock();
        }
        inner.tasks[me].ready = None;
        inner.tasks[me].deadline = None;
    }

    fn act(&self) {
        let Some(mut act) = self.lock().act.take() else {
            return;
        };
        match catch_unwind(AssertUnwindSafe(&mut act)) {
            Ok(()) => {
                self.lock().act.get_or_insert(act);
            }
            Err(panic) => {
                let text = text_of(&*panic);
                self.lock().panics.push(text);
            }
        }
    }

    /// Gives the baton to whoever is chosen.
    fn pass_on(&self) {
        loop {
            self.act();
            let mut inner = self.lock();
            inner.now += TICK;
            if let Some(next) = choose(&mut inner) {
                inner.current = next;
                if let Some(thread) = &inner.tasks[next].thread {
                    thread.unpark();
                }
                return;
            }
        }
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    text.unwrap_or_default()
}

fn choose(inner: &mut Inner) -> Option<usize> {
    let doomed = |task: &Task| !task.over && inner.killed.contains(&task.process);
    if let Some(next) = inner.tasks.iter().position(doomed) {
        return Some(next);
    }
    let now = inner.now;
    let tasks = inner.tasks.iter_mut().enumerate();
    let able: Vec<_> = tasks
        .filter_map(|(index, task)| task.is_able(now).then_some(index))
        .collect();
    inner.rng.pick(&able)
}

/// A process's way to its threads.
pub struct Scheduler {
    pub sched: Arc<Sched>,
    pub process: Process,
}

impl Clock for Scheduler {
    fn now(&self) -> Duration {
        self.sched.now()
    }

    /// Random pauses are made the same.
    fn sleep(&self, _time: Duration) {
        self.sched.wait(&mut || false, Some(TICK));
    }
}

impl Simulator for Scheduler {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        self.sched.spawn(self.process, name, body)
    }

    fn until(&self, ready: &mut dyn FnMut() -> bool, limit: Option<Duration>) {
        self.sched.wait(ready, limit);
    }
}
