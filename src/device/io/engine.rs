//! One queue's io_uring: operations on the disk's files, in flight and done, and the
//! queue's thread asleep until one is.
//!
//! This and `buffer` are the only files on the way of a request with `unsafe` code.
//! What makes it sound: a [`Buffer`] can only be made over memory that it keeps alive
//! itself, and the engine owns the buffer of every operation until the kernel has
//! completed it. It knows nothing of rings or requests; a token links an operation to
//! whoever submitted it.
//!
//! Made by any thread, then used by one, which the kernel is told: what the disk has
//! completed waits until that thread asks for it, and interrupts nobody.

mod buffer;
mod operation;
mod wakeup;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use vmm_sys_util::eventfd::EventFd;

use super::table::Table;
use wakeup::{WAKE_UP, WakeUp};

pub use buffer::{Buffer, MAX_ZEROES, Unsuitable, Vectors};
pub use operation::Operation;

/// Entries beside those of operations: each look-out ends one poll and begins another, and
/// there may be an alarm.
const WAKE_UP_ENTRIES: u32 = 5;
/// The token of the alarm: that of a look-out of a kind of its own.
const ALARM: u64 = WAKE_UP | 2 << 32;

/// An operation the kernel is done with.
pub struct Completion {
    /// As given to [`Engine::push`].
    pub token: usize,
    /// Bytes transferred, or the error number.
    pub result: Result<usize, i32>,
    /// The operation's buffer, if it had one.
    pub buffer: Option<Buffer>,
}

/// What [`Engine::reap`] found.
pub enum Reaped {
    /// An operation is over.
    Operation(Completion),
    /// Something else happened, perhaps several times.
    Event(Event),
}

/// Why a queue's thread is woken, other than for its operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// By the guest's driver: its event fd was written to, and is as it was left.
    Kick,
    /// By this program, likewise.
    Wake,
    /// The time has come that [`Engine::set_alarm`] was given.
    Alarm,
}

/// What is known of a token's operation.
enum Pending {
    None,
    InFlight(Option<Buffer>),
}

/// One io_uring over the disk's files.
pub struct Engine {
    ring: IoUring,
    /// Keeps the files open.
    files: Arc<Table>,
    /// So many of them are registered with the ring.
    registered: u32,
    pending: Vec<Pending>,
    in_flight: usize,
    /// Made for one thread, which has not introduced itself yet.
    disabled: bool,
    kick: WakeUp<File>,
    wake: WakeUp<EventFd>,
    alarm: Alarm,
}

/// When the thread is woken though nothing happens.
struct Alarm {
    /// Read by the kernel when it is told.
    pause: Box<Timespec>,
    state: AlarmState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AlarmState {
    Off,
    /// The kernel is to be told.
    Set,
    /// It knows.
    On,
}

impl Engine {
    /// An engine for `slots` operations on `files` at a time, which looks out for `event`. Those that
    /// are there now are registered with the ring, these very open files: the ring of a killed
    /// process outlives it as long as the kernel is at work on any of its requests, and holds the
    /// files open with it, so also the lock that says whose they are. Later ones are used as they
    /// come, which costs a little more.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn new(files: &Arc<Table>, slots: u16, event: Arc<EventFd>) -> io::Result<Self> {
        let (ring, disabled) = ring(u32::from(slots) + WAKE_UP_ENTRIES)?;
        let mut wake = WakeUp::new(1);
        wake.watch(Some(event));
        let descriptors = files.descriptors();
        ring.submitter().register_files(&descriptors)?;
        Ok(Self {
            ring,
            files: Arc::clone(files),
            // A disk has at most MAX_FILES.
            registered: descriptors.len() as u32,
            pending: (0..slots).map(|_| Pending::None).collect(),
            in_flight: 0,
            disabled,
            kick: WakeUp::new(0),
            wake,
            alarm: Alarm {
                pause: Box::default(),
                state: AlarmState::Off,
            },
        })
    }

    /// Operations that are not reaped yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Queues an operation for the next [`submit`](Self::submit). Each `token`,
    /// below the number of slots, has at most one operation in flight.
    ///
    /// # Errors
    /// The operation, if the token, the file or the kind of buffer is wrong or there is no room: a bug in the caller.
    pub fn push(&mut self, token: usize, operation: Operation) -> Result<(), Operation> {
        if matches!(&operation, Operation::Read { buffer, .. } if !buffer.is_writable()) {
            return Err(operation);
        }
        let Some((number, flags)) = self.target(operation.file()) else {
            return Err(operation);
        };
        let entry = operation.entry(number).flags(flags).user_data(token as u64);
        let Some(pending @ Pending::None) = self.pending.get_mut(token) else {
            return Err(operation);
        };
        // SAFETY: the entry points at the vectors of the operation's buffer, and
        // these at memory which the buffer keeps alive. On success the buffer is
        // kept in `pending` until the completion is reaped; moving it does not
        // move the vectors, which are on the heap. On failure the kernel never
        // sees the entry.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            return Err(operation);
        }
        *pending = Pending::InFlight(match operation {
            Operation::Read { buffer, .. } | Operation::Write { buffer, .. } => Some(buffer),
            _ => None,
        });
        self.in_flight += 1;
        Ok(())
    }

    /// How the kernel is told of a file: by its index among the registered ones, or as any
    /// process names it.
    fn target(&self, file: u32) -> Option<(Fd, squeue::Flags)> {
        if file < self.registered {
            // Below MAX_FILES.
            return Some((Fd(file as i32), squeue::Flags::FIXED_FILE));
        }
        let descriptor = self.files.descriptor(file)?;
        Some((Fd(descriptor), squeue::Flags::empty()))
    }

    /// Hands what was pushed to the kernel and takes what it has completed, in one
    /// system call, or none if there is neither.
    ///
    /// # Errors
    /// What the kernel refused for now; what was pushed stays.
    pub fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            self.enter(0)?;
        }
        if self.ring.submission().taskrun() {
            self.enter(0)?;
        }
        Ok(())
    }

    /// Looks out for `kick` from now on, in place of the one before.
    pub fn set_kick(&mut self, kick: Option<Arc<File>>) {
        self.kick.watch(kick);
    }

    /// Wakes the thread after `pause`, unless an alarm is set already.
    pub fn set_alarm(&mut self, pause: Duration) {
        if self.alarm.state == AlarmState::Off {
            *self.alarm.pause = Timespec::from(pause);
            self.alarm.state = AlarmState::Set;
        }
    }

    /// Whether something will happen that only this engine's [`sleep`](Self::sleep) notices.
    pub fn must_wake(&self) -> bool {
        self.in_flight > 0 || self.alarm.state != AlarmState::Off
    }

    /// Hands over what was pushed and sleeps until there is something to
    /// [`reap`](Self::reap), or until a signal.
    ///
    /// # Errors
    /// What the kernel refused for now; what was pushed stays.
    pub fn sleep(&mut self) -> io::Result<()> {
        self.look_out();
        if self.in_flight > 0 || !self.ring.params().is_feature_no_iowait() {
            return self.enter(1);
        }
        self.enable()?;
        let pushed = self.ring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS | EnterFlags::NO_IOWAIT;
        let submitter = self.ring.submitter();
        // SAFETY: what was pushed is sound, see there; there is no argument to point at memory.
        taken(unsafe { submitter.enter::<libc::sigset_t>(pushed, 1, flags.bits(), None) })
    }

    /// Whether the thread may sleep here with nothing in flight: all its events wake it, and
    /// the kernel need not count that as waiting for the disk (6.15 and later).
    pub fn can_idle(&self) -> bool {
        self.ring.params().is_feature_no_iowait()
            && self.kick.is_reliable()
            && self.wake.is_reliable()
    }

    fn look_out(&mut self) {
        let mut push = |entry: &squeue::Entry| {
            // SAFETY: the entries of look-outs point at no memory, and that of the alarm at its
            // pause, which is on the heap and not changed before the kernel has completed it.
            unsafe { self.ring.submission().push(entry) }.is_ok()
        };
        self.kick.set_up(&mut push);
        self.wake.set_up(&mut push);
        if self.alarm.state == AlarmState::Set {
            let entry = opcode::Timeout::new(&*self.alarm.pause).build();
            if push(&entry.user_data(ALARM)) {
                self.alarm.state = AlarmState::On;
            }
        }
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        self.enable()?;
        taken(self.ring.submit_and_wait(want))
    }

    fn enable(&mut self) -> io::Result<()> {
        if self.disabled {
            self.ring.submitter().register_enable_rings()?;
            self.disabled = false;
        }
        Ok(())
    }

    /// The next operation that the kernel has completed, or event that it has seen.
    pub fn reap(&mut self) -> Option<Reaped> {
        loop {
            let entry = self.ring.completion().next()?;
            if entry.user_data() & WAKE_UP != 0 {
                match self.event(&entry) {
                    Some(event) => return Some(Reaped::Event(event)),
                    None => continue,
                }
            }
            let token = entry.user_data() as usize;
            let pending = std::mem::replace(self.pending.get_mut(token)?, Pending::None);
            let Pending::InFlight(buffer) = pending else {
                return None;
            };
            self.in_flight -= 1;
            let result = entry.result();
            return Some(Reaped::Operation(Completion {
                token,
                result: usize::try_from(result).map_err(|_| result.saturating_neg()),
                buffer,
            }));
        }
    }

    fn event(&mut self, entry: &cqueue::Entry) -> Option<Event> {
        if entry.user_data() == ALARM {
            self.alarm.state = AlarmState::Off;
            Some(Event::Alarm)
        } else if self.kick.reports(entry) {
            Some(Event::Kick)
        } else {
            self.wake.reports(entry).then_some(Event::Wake)
        }
    }
}

/// A call that a signal ended has done its part, or will be made again.
fn taken(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// A ring, and whether it must be enabled by the thread that is going to use it. The
/// older the kernel, the more a completion disturbs: from 6.1 on it waits for its
/// thread, from 5.19 on for that thread's next system call.
fn ring(entries: u32) -> io::Result<(IoUring, bool)> {
    let deferred = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_r_disabled()
        .build(entries);
    if let Ok(ring) = deferred {
        return Ok((ring, true));
    }
    let cooperative = IoUring::builder()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    let ring = cooperative.or_else(|_| IoUring::new(entries))?;
    Ok((ring, false))
}

impl Drop for Engine {
    /// Memory that the kernel may still write to must not be freed. The queue has
    /// drained long before; this is the last line of defence. (Of an engine made for one
    /// thread another one cannot wait for anything: the memory stays allocated.)
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                log::error!("cannot wait for I/O in flight, its memory stays allocated: {error}");
                std::mem::forget(std::mem::take(&mut self.pending));
                return;
            }
            while self.reap().is_some() {}
        }
    }
}

#[cfg(test)]
mod tests;
