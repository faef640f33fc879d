//! What the handles of a connection and its reader thread share: the socket, the
//! table of unanswered calls, and the end.

use std::collections::HashMap;
use std::io::IoSlice;
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::SendFlags;

use super::pulse::{Beat, Pulse, Watch};
use super::socket::{Stream, write_all};
use super::{
    Answer, CallError, Deadline, Disconnect, HoldError, MAX_CALLS, MAX_COUNTED_CALLS, Undo, Weight,
};
use crate::gluster::notice::Notice;
use crate::gluster::rpc::{self, Call, Credentials};

mod reader;

/// The transaction id of pings; no other call gets it.
const PING_XID: u32 = 0;
/// Procedure PING of the handshake program.
const PING: u32 = 3;

pub(super) type DisconnectListener = Box<dyn FnOnce(&Arc<Disconnect>) + Send>;
pub(super) type NoticeListener = Arc<dyn Fn(&Notice) + Send + Sync>;

/// A call's transaction id, and where its answer comes.
pub(super) type Enlisted = (u32, Receiver<Answer>);

pub(super) struct Waiter {
    answer: SyncSender<Answer>,
    weight: Weight,
    /// Set once nobody waits any more.
    undo: Option<Undo>,
}

#[derive(Default)]
struct State {
    calls: HashMap<u32, Waiter>,
    counted: usize,
    /// Callers that wait for room.
    waiting: usize,
    last_xid: u32,
    gone: Option<Arc<Disconnect>>,
    listeners: Vec<DisconnectListener>,
    notices: Option<NoticeListener>,
    /// Absent where nobody wants to know.
    pulse: Option<Pulse>,
    /// Nothing is to be sent or read.
    held: bool,
    /// The reader has seen that, between two records.
    resting: bool,
}

/// One connection, without its owners.
pub(super) struct Link {
    stream: Stream,
    /// Held while records are written.
    turn: Mutex<()>,
    send_timeout: Duration,
    state: Mutex<State>,
    room: Condvar,
    /// `held` or `resting` has changed.
    rest: Condvar,
}

impl Link {
    /// The next call has the transaction id after `last_xid`.
    pub(super) fn new(
        stream: Stream,
        last_xid: u32,
        send_timeout: Duration,
        pulse: Option<Pulse>,
    ) -> Self {
        Self {
            stream,
            turn: Mutex::default(),
            send_timeout,
            state: Mutex::new(State {
                last_xid,
                pulse,
                ..State::default()
            }),
            room: Condvar::new(),
            rest: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the connection is gone, if it is.
    pub(super) fn gone(&self) -> Option<Arc<Disconnect>> {
        self.lock().gone.clone()
    }

    /// Keeps `listener` for the end; if that has come, runs it now.
    pub(super) fn listen(&self, listener: DisconnectListener) {
        let mut state = self.lock();
        match state.gone.clone() {
            None => state.listeners.push(listener),
            Some(reason) => {
                drop(state);
                listener(&reason);
            }
        }
    }

    /// From now on `listener` hears what the peer says unasked.
    pub(super) fn listen_to_notices(&self, listener: NoticeListener) {
        self.lock().notices = Some(listener);
    }

    /// Nobody waits for this call any more; `undo` is for when it is answered. Is
    /// it still unanswered?
    pub(super) fn abandon(&self, xid: u32, undo: Undo) -> bool {
        match self.lock().calls.get_mut(&xid) {
            Some(waiter) => {
                waiter.undo = Some(undo);
                true
            }
            None => false,
        }
    }

    /// Stops sending and reading, between two records and with no call unanswered. The
    /// socket, and the last transaction id; until [`Link::go_on`].
    pub(super) fn hold(&self, limit: Duration) -> Result<(TcpStream, u32), HoldError> {
        {
            let mut state = self.lock();
            if let Some(reason) = &state.gone {
                return Err(HoldError::Gone(Arc::clone(reason)));
            }
            if state.held || !state.calls.is_empty() {
                return Err(HoldError::Busy);
            }
            state.held = true;
        }
        let held = self.wait_for_rest(limit);
        if held.is_err() {
            self.go_on();
        }
        held
    }

    fn wait_for_rest(&self, limit: Duration) -> Result<(TcpStream, u32), HoldError> {
        // Its reply brings the reader out of its wait. A peer that is not pinged is not
        // kept either.
        self.ping()
            .map_err(|reason| HoldError::Gone(self.disconnect(reason)))?;
        let waiting = |state: &mut State| !state.resting && state.gone.is_none();
        let (state, _) = self
            .rest
            .wait_timeout_while(self.lock(), limit, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        match &state.gone {
            Some(reason) => Err(HoldError::Gone(Arc::clone(reason))),
            None if !state.resting || !state.calls.is_empty() => Err(HoldError::Busy),
            None => Ok((self.stream.share()?, state.last_xid)),
        }
    }

    /// Ends [`Link::hold`].
    pub(super) fn go_on(&self) {
        self.lock().held = false;
        self.rest.notify_all();
        self.room.notify_all();
    }

    /// The reader waits here while the connection is held.
    fn rest_while_held(&self) {
        let mut state = self.lock();
        while state.held && state.gone.is_none() {
            if !std::mem::replace(&mut state.resting, true) {
                self.rest.notify_all();
            }
            state = self
                .rest
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.resting = false;
    }

    /// Waits for room and enters `count` calls into the table, all at once.
    pub(super) fn enlist(
        &self,
        count: usize,
        weight: Weight,
        deadline: Deadline,
    ) -> Result<Vec<Enlisted>, CallError> {
        let mut begun = None;
        let mut state = self.lock();
        loop {
            if let Some(reason) = &state.gone {
                return Err(CallError::Disconnected(Arc::clone(reason)));
            }
            if state.has_room(count, weight) {
                break;
            }
            let left = deadline.left();
            if left.is_zero() {
                return Err(deadline.missed());
            }
            let watch = Watch::Caller(*begun.get_or_insert_with(Instant::now));
            let wait = match self.look_into(&mut state, watch) {
                Ok(look) => look.map_or(left, |look| look.min(left)),
                Err(reason) => {
                    drop(state);
                    return Err(CallError::Disconnected(self.disconnect(reason)));
                }
            };
            state.waiting += 1;
            (state, _) = self
                .room
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        Ok((0..count).map(|_| state.enter(weight)).collect())
    }

    /// Takes a call out of the table, which makes room for the next.
    pub(super) fn withdraw(&self, xid: u32) -> Option<Waiter> {
        let mut state = self.lock();
        let waiter = state.calls.remove(&xid)?;
        if waiter.weight == Weight::Counted {
            state.counted = state.counted.saturating_sub(1);
        }
        // To wake nobody would cost a system call for every answer.
        let awaited = state.waiting > 0;
        drop(state);
        if awaited {
            self.room.notify_all();
        }
        Some(waiter)
    }

    /// Sends the parts of records; a failure in the middle of it ends the connection.
    pub(super) fn send(&self, parts: &mut [IoSlice<'_>]) -> Result<(), CallError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &self.lock().gone {
            return Err(CallError::Disconnected(Arc::clone(reason)));
        }
        write_all(self.stream.socket(), parts, self.send_timeout)
            .map_err(|reason| CallError::Disconnected(self.disconnect(reason)))
    }

    /// Sends a ping if that needs no waiting. Is it on its way?
    fn ping(&self) -> Result<bool, Disconnect> {
        let Ok(_turn) = self.turn.try_lock() else {
            return Ok(false);
        };
        let call = Call {
            program: rpc::HANDSHAKE,
            procedure: PING,
            credentials: &Credentials::None,
            arguments: &[],
            payload: &[],
        };
        let bytes = call.encode(PING_XID).unwrap_or_default();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(self.stream.socket(), &bytes, flags) {
            Ok(sent) if sent == bytes.len() => Ok(true),
            // Half a ping: nothing can follow it.
            Ok(_) => Err(Disconnect::SendStuck {
                after: Duration::ZERO,
            }),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(Disconnect::Socket(error.into())),
        }
    }

    /// Looks at the clock for somebody who waits for the peer: pings it, or gives it up,
    /// if it is time for that. How long he may wait until the next look; `None`: as long as
    /// he likes.
    pub(super) fn look(&self, watch: Watch) -> Option<Duration> {
        let looked = self.look_into(&mut self.lock(), watch);
        looked.unwrap_or_else(|reason| {
            self.disconnect(reason);
            None
        })
    }

    /// The same; the error is for [`Link::disconnect`]. Under the lock, so that nothing is
    /// sent while the connection rests.
    fn look_into(&self, state: &mut State, watch: Watch) -> Result<Option<Duration>, Disconnect> {
        if state.held || state.gone.is_some() {
            return Ok(None);
        }
        let Some(pulse) = &mut state.pulse else {
            return Ok(None);
        };
        let now = Instant::now();
        match pulse.beat(watch, now) {
            Beat::Quiet => {}
            Beat::Dead { after } => return Err(Disconnect::Silent { after }),
            Beat::Ping => {
                if !self.ping()? {
                    return Ok(Some(pulse.put_off()));
                }
                pulse.pinged(now);
            }
        }
        Ok(Some(pulse.due(watch).saturating_duration_since(now)))
    }

    /// Ends the connection for `reason` unless it is gone already, and fails
    /// every waiting call. Returns the reason that holds. The reader thread
    /// notices by the shut-down socket and tells the listeners.
    pub(super) fn disconnect(&self, reason: Disconnect) -> Arc<Disconnect> {
        let reason = self.stream.explain(reason);
        let (reason, calls) = {
            let mut state = self.lock();
            if let Some(earlier) = &state.gone {
                return Arc::clone(earlier);
            }
            let reason = Arc::new(reason);
            state.gone = Some(Arc::clone(&reason));
            state.counted = 0;
            (reason, std::mem::take(&mut state.calls))
        };
        // Fails only where the socket is down already, which is what is wanted.
        let _ = self.stream.socket().shutdown(Shutdown::Both);
        for waiter in calls.into_values() {
            let answer = Err(CallError::Disconnected(Arc::clone(&reason)));
            // Fails where nobody waits any more.
            let _ = waiter.answer.try_send(answer);
        }
        self.room.notify_all();
        self.rest.notify_all();
        reason
    }
}

impl State {
    fn has_room(&self, count: usize, weight: Weight) -> bool {
        !self.held
            && self.calls.len() + count <= MAX_CALLS
            && (weight == Weight::Uncounted || self.counted + count <= MAX_COUNTED_CALLS)
    }

    fn enter(&mut self, weight: Weight) -> Enlisted {
        let xid = self.new_xid();
        // One answer at most, so the reader never waits for the caller.
        let (sender, answer) = mpsc::sync_channel(1);
        if weight == Weight::Counted {
            self.counted += 1;
        }
        let waiter = Waiter {
            answer: sender,
            weight,
            undo: None,
        };
        self.calls.insert(xid, waiter);
        (xid, answer)
    }

    /// An id that no unanswered call has; there are far fewer of those than ids.
    fn new_xid(&mut self) -> u32 {
        loop {
            self.last_xid = self.last_xid.wrapping_add(1);
            if self.last_xid != PING_XID && !self.calls.contains_key(&self.last_xid) {
                return self.last_xid;
            }
        }
    }
}
