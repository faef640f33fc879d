//! What a queue's io_uring looks out for besides completions: that somebody writes to an
//! event fd.
//!
//! A [`WakeUp`] is one standing poll. Each write to its event fd makes it report once, read or
//! not: nobody has to read the event fd, and nothing has to be set up again after a report. It
//! only makes the entries for the kernel and understands the kernel's; the engine carries them.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};

/// Set in all tokens of look-outs, and in none of an operation.
pub const WAKE_UP: u64 = 1 << 63;
/// The token of an entry whose completion says nothing.
const IGNORED: u64 = u64::MAX;

/// One event fd that is looked out for, or none yet.
pub struct WakeUp<F> {
    /// What its tokens have in common.
    kind: u64,
    /// How many event fds there were before this one.
    serial: u64,
    /// Kept open for as long as the kernel may look at it.
    file: Option<Arc<F>>,
    state: PollState,
    /// The token of the poll of the event fd before, if the kernel may still have it.
    before: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PollState {
    /// The kernel does not look.
    Off,
    /// It does.
    On,
    /// It does no longer, and is not asked again for the same event fd.
    Refused,
}

impl<F: AsRawFd> WakeUp<F> {
    /// Looks out for nothing. Others of the same ring have another `kind`, below 2^16.
    pub fn new(kind: u16) -> Self {
        Self {
            kind: WAKE_UP | u64::from(kind) << 32,
            serial: 0,
            file: None,
            state: PollState::Off,
            before: None,
        }
    }

    /// From now on looks out for `file` alone.
    pub fn watch(&mut self, file: Option<Arc<F>>) {
        if self.state == PollState::On {
            // The kernel has at most one: an entry is handed over before the next change.
            self.before = Some(self.token());
        }
        self.serial = self.serial.wrapping_add(1) & u64::from(u32::MAX >> 1);
        self.file = file;
        self.state = PollState::Off;
    }

    /// Whether there is an event fd and every write to it will be reported, once
    /// [`set_up`](Self::set_up) has had room.
    pub fn is_reliable(&self) -> bool {
        self.file.is_some() && self.state != PollState::Refused
    }

    /// Gives the entries that the kernel needs to see to `push`, which says whether there is room.
    /// What had none is given again the next time.
    pub fn set_up(&mut self, mut push: impl FnMut(&squeue::Entry) -> bool) {
        if let Some(token) = self.before {
            let remove = opcode::PollRemove::new(token).build();
            if !push(&remove.user_data(IGNORED)) {
                return;
            }
            self.before = None;
        }
        if self.state == PollState::Off
            && let Some(file) = &self.file
        {
            let add = opcode::PollAdd::new(Fd(file.as_raw_fd()), libc::POLLIN as u32);
            if push(&add.multi(true).build().user_data(self.token())) {
                self.state = PollState::On;
            }
        }
    }

    /// Whether the completion of an entry reports a write.
    pub fn reports(&mut self, completion: &cqueue::Entry) -> bool {
        if completion.user_data() != self.token() {
            return false;
        }
        // Of what is always ready a new poll would end at once too.
        if !cqueue::more(completion.flags()) {
            self.state = PollState::Refused;
        }
        completion.result() >= 0
    }

    fn token(&self) -> u64 {
        self.kind | self.serial
    }
}
