//! Counts the instructions of one thread of another process: lets it take one at a time
//! (ptrace(2), PTRACE_SINGLESTEP). A system call is one, whatever the kernel does in it.
//!
//! Why not valgrind: 3.19 takes `io_uring_enter` for a call that does not wait, so that
//! the first thread to sleep in it stops all others of its process.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::places::Addresses;

/// The count of a thread that goes on under our eyes until its process ends.
pub struct Steps(Arc<Seen>);

#[derive(Default)]
struct Seen {
    count: AtomicU64,
    /// By address, if they are asked for.
    addresses: Option<Mutex<Addresses>>,
}

impl Steps {
    /// Begins with the thread of this name of process `pid`; keeps the addresses of the
    /// instructions if that is asked for.
    ///
    /// # Errors
    /// There is no such thread, or the kernel does not let us.
    pub fn of(pid: u32, name: &str, addresses: bool) -> Result<Steps, String> {
        let thread = find(pid, name).ok_or_else(|| format!("no thread {name} in {pid}"))?;
        let steps = Arc::new(Seen {
            addresses: addresses.then(Mutex::default),
            ..Seen::default()
        });
        let counting = Arc::clone(&steps);
        let (begun, begins) = mpsc::channel();
        // The kernel obeys the thread that seized, and no other.
        thread::spawn(move || {
            let seized = seize(thread);
            let mut going = seized.is_ok();
            // Whoever waits for it is there: it waits with no time-out.
            let _ = begun.send(seized);
            let mut signal = None;
            while going {
                counting.note_address(thread);
                let step = step(thread, signal);
                going = step.is_ok();
                if let Ok(Step { counts, next }) = step {
                    counting.count.fetch_add(counts.into(), Ordering::SeqCst);
                    signal = next;
                }
            }
        });
        match begins.recv() {
            Ok(Ok(())) => Ok(Steps(steps)),
            Ok(Err(errno)) => Err(format!("thread {name} cannot be traced: {errno}")),
            Err(_) => Err("the tracer panicked".to_owned()),
        }
    }

    /// Instructions so far: all, while the thread sleeps.
    pub fn so_far(&self) -> u64 {
        self.0.count.load(Ordering::SeqCst)
    }

    /// How often which, if that was asked for, since this was last called.
    pub fn take_addresses(&self) -> Addresses {
        let addresses = self.0.addresses.as_ref();
        addresses.map_or_else(Addresses::new, |addresses| {
            std::mem::take(&mut *addresses.lock().unwrap_or_else(PoisonError::into_inner))
        })
    }
}

impl Seen {
    /// The thread's next instruction.
    fn note_address(&self, thread: Pid) {
        if let Some(addresses) = &self.addresses
            && let Ok(registers) = ptrace::getregs(thread)
        {
            let mut addresses = addresses.lock().unwrap_or_else(PoisonError::into_inner);
            *addresses.entry(registers.rip).or_default() += 1;
        }
    }
}

fn find(pid: u32, name: &str) -> Option<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let mut named = tasks.flatten().filter(|task| {
        let comm = fs::read_to_string(task.path().join("comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name)
    });
    let id = named.next()?.file_name().into_string().ok()?;
    Some(Pid::from_raw(id.parse().ok()?))
}

fn wait(thread: Pid) -> Result<WaitStatus, Errno> {
    waitpid(thread, Some(WaitPidFlag::__WALL))
}

/// Stops it, which ends a system call that it sleeps in.
fn seize(thread: Pid) -> Result<(), Errno> {
    ptrace::seize(thread, ptrace::Options::empty())?;
    ptrace::interrupt(thread)?;
    wait(thread).map(drop)
}

struct Step {
    /// It was an instruction.
    counts: bool,
    /// What the thread is to be given with the next.
    next: Option<Signal>,
}

/// One step, which takes as long as the system call that it may be.
fn step(thread: Pid, signal: Option<Signal>) -> Result<Step, Errno> {
    ptrace::step(thread, signal)?;
    let (counts, next) = match wait(thread)? {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => (true, None),
        WaitStatus::Stopped(_, signal) => (false, Some(signal)),
        WaitStatus::PtraceEvent(..) => (false, None),
        _ => return Err(Errno::ESRCH),
    };
    Ok(Step { counts, next })
}
